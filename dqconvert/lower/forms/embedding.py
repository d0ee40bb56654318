"""Embeddings: rows of a weight, held as codes."""

from __future__ import annotations

from torch.fx import Node
from torch.nn import functional

from dqconvert.kernels.integer.codes import quantize
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.values import Codes, Constant, Plain, Value
from dqconvert.ops import argument, op_name
from dqconvert.trace.note import note_of


def lower_embedding(lowering: Lowering, node: Node) -> Value | None:
    """Lowers ``embedding(index, weight)``, rounded right behind: the weight is rounded before, once."""
    grid = lowering.grid_behind(node) if op_name(node) == "embedding" else None
    if grid is None or len(node.args) < 2 or argument(node, "max_norm"):
        return None  # with max_norm the weight would change
    index, weight = map(lowering.value, node.args[:2])
    if not isinstance(weight, Constant) or not isinstance(index, Plain):
        return None
    codes = quantize(weight.value, grid.numbers(weight.value.device))
    rows = lowering.program.constant(codes, f"{note_of(node).module}.weight")
    return Codes(lowering.program.call(functional.embedding, (index.node, rows), note_of(node)), grid)

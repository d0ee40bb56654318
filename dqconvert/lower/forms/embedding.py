"""Embeddings: rows of a weight, held as codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import Node
from torch.nn import functional

from dqconvert.kernels.integer.codes import quantize
from dqconvert.lower.values import Codes, Known, Plain, Value
from dqconvert.trace.note import note_of
from dqconvert.trace.ops import argument, op_name

if TYPE_CHECKING:
    from dqconvert.lower.walk import Lowering


def lower_embedding(lowering: Lowering, node: Node) -> Value | None:
    """``embedding(index, weight)``, rounded right behind: the weight is rounded before, once."""
    grid = lowering.grid_behind(node) if op_name(node) == "embedding" else None
    if grid is None or len(node.args) < 2 or argument(node, "max_norm"):
        return None  # with max_norm the weight would change
    index, weight = (lowering.values[n] if isinstance(n, Node) else None for n in node.args[:2])
    if not isinstance(weight, Known) or not isinstance(index, Plain):
        return None
    codes = quantize(weight.value, grid.numbers(weight.value.device))
    rows = lowering.out.constant(codes, f"{note_of(node).module}.weight")
    return Codes(lowering.out.call(functional.embedding, (index.node, rows), note_of(node)), grid)

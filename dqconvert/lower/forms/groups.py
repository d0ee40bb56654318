"""Sums, means and maxima over groups of rows, such as the nodes of each graph of a batch: on codes."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from torch.fx import Node

from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.runtime import group_order
from dqconvert.lower.values import Codes, Plain, Value
from dqconvert.ops import op_of, op_of_layer
from dqconvert.trace.note import note_of

_REDUCTIONS = {"sum": "sum", "add": "sum", "mean": "mean", "max": "max", "min": "min"}


class _Reduction(NamedTuple):
    """A reduction of rows in groups.

    Attributes:
        source: The rows.
        groups: The group of each row, a vector.
        how: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.
        size: How many groups; None: as many as the vector names.
    """

    source: Node
    groups: Node
    how: str
    size: Any


def lower_groups(lowering: Lowering, node: Node) -> Value | None:
    """Lowers ``scatter(x, index)``, ``global_add_pool(x, batch)`` or an aggregation of codes, rounded right behind.

    A group receives its rows as a node receives messages.
    """
    note, grid = note_of(node), lowering.grid_behind(node)
    found = _reduction(node, lowering.module(node))
    widths = {size[1] for size in note.sizes} if note.ndim == 2 else set()
    if grid is None or found is None or len(widths) != 1:
        return None
    program, groups, label = lowering.program, lowering.values[found.groups], note.module or "groups"
    value = lowering.coded(lowering.values[found.source], note_of(found.source), label)
    if value is None or not isinstance(groups, Plain) or note_of(found.groups).ndim != 1:
        return None
    rows = program.method("size", (value.node, 0))
    order = program.call(group_order, (groups.node, rows, lowering.plain(found.size)))
    ptr, members = program.items(order, 2)
    finish = program.finish(value.grid.scale, grid, label)
    args = value.node, program.grid(value.grid, f"{label}.input_grid"), ptr, members, widths.pop(), finish
    return Codes(program.call(integer_propagate, args, note, reduce=found.how), grid)


def _reduction(node: Node, module: nn.Module | None) -> _Reduction | None:
    """Returns what a node reduces, if that is whole rows, to groups that a vector names."""
    op, layer = op_of(node), op_of_layer(module)
    if node.op == "call_function" and op.name == "scatter":
        given = _given(node, src=None, index=None, dim=0, dim_size=None, reduce="sum")
        how, source, size = _REDUCTIONS.get(str(given["reduce"])), given["src"], given["dim_size"]
    elif node.op == "call_function" and op.pools:
        given = _given(node, x=None, batch=None, size=None)
        given |= {"index": given["batch"], "dim": 0}
        how, source, size = op.reduces, given["x"], given["size"]
    elif layer.reduces:
        given = _given(node, x=None, index=None, ptr=None, dim_size=None, dim=-2)
        how, source, size = layer.reduces, given["x"], given["dim_size"]
    else:
        return None
    index, of_rows = given["index"], given["dim"] in (0, -2) and given.get("ptr") is None
    if not of_rows or how is None or not isinstance(source, Node) or not isinstance(index, Node):
        return None
    return _Reduction(source, index, how, size)


def _given(node: Node, **defaults: Any) -> dict[str, Any]:
    """Returns the arguments of a call by name."""
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}

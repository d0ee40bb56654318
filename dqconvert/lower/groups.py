"""Sums, means and maxima over groups of rows, such as the nodes of each graph of a batch: on codes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.lower.runtime import group_order
from dqconvert.lower.values import Codes, Plain, Value
from dqconvert.trace.note import annotate, note_of
from dqconvert.trace.ops import op_name

if TYPE_CHECKING:
    from dqconvert.lower.lowering import Lowering

_REDUCTIONS = {"sum": "sum", "add": "sum", "mean": "mean", "max": "max", "min": "min"}
_ARGUMENTS = ("src", "index", "dim", "dim_size", "reduce")
_DEFAULTS = {"dim": 0, "dim_size": None, "reduce": "sum"}


def lower_groups(lowering: Lowering, node: Node) -> Value | None:
    """``scatter(x, index)`` of rows that are codes, rounded right behind: a group receives its rows as messages."""
    note, grid = note_of(node), lowering.grid_behind(node)
    if op_name(node) != "scatter" or node.op != "call_function" or grid is None or note.ndim != 2:
        return None
    given = {**_DEFAULTS, **dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
    source, index = given["src"], given["index"]
    how = _REDUCTIONS.get(str(given["reduce"]))
    if how is None or given["dim"] not in (0, -2) or not isinstance(source, Node) or not isinstance(index, Node):
        return None
    columns = {size[1] for size in note.sizes}
    groups = lowering.values[index]
    label = note.module or "groups"
    value = lowering.coded(lowering.values[source], note_of(source), label) if len(columns) == 1 else None
    if value is None or not isinstance(groups, Plain) or note_of(index).ndim != 1:
        return None
    out, size = lowering.out, given["dim_size"]
    size = lowering.plain(size) if isinstance(size, Node) else size
    order = out.call(group_order, (groups.node, out.graph.call_method("size", (value.node, 0)), size))
    ptr, rows = (out.call(operator.getitem, (order, k)) for k in range(2))
    finish = Finish(
        factor=out.constant(torch.tensor([value.grid.scale]), f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(), f"{label}.grid"),  # type: ignore[arg-type]
    )
    x_grid = out.constant(value.grid.numbers(), f"{label}.input_grid")
    found = out.graph.call_function(
        integer_propagate, (value.node, x_grid, ptr, rows, columns.pop(), finish), {"reduce": how}
    )
    return Codes(annotate(found, note), grid)

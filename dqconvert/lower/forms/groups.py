"""Sums, means and maxima over groups of rows, such as the nodes of each graph of a batch: on codes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.fx import Node
from torch_geometric.nn import aggr

from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.lower.runtime import group_order
from dqconvert.lower.values import Codes, Plain, Value
from dqconvert.trace.note import annotate, note_of
from dqconvert.trace.ops import op_name

if TYPE_CHECKING:
    from dqconvert.lower.walk import Lowering

_REDUCTIONS = {"sum": "sum", "add": "sum", "mean": "mean", "max": "max", "min": "min"}
_POOLS = {"global_add_pool": "sum", "global_mean_pool": "mean", "global_max_pool": "max"}
_AGGREGATIONS: dict[type, str] = {
    aggr.SumAggregation: "sum",
    aggr.MeanAggregation: "mean",
    aggr.MaxAggregation: "max",
    aggr.MinAggregation: "min",
}
"""Exactly these types: a subclass may do something else."""


class _Reduction(NamedTuple):
    """What is reduced, which group each row is of, how, and to how many rows; None: as many as there are groups."""

    source: Node
    groups: Node
    how: str
    size: Any


def lower_groups(lowering: Lowering, node: Node) -> Value | None:
    """``scatter(x, index)``, ``global_add_pool(x, batch)`` or an aggregation of rows that are codes, rounded right
    behind: a group receives its rows as messages.
    """
    note, grid = note_of(node), lowering.grid_behind(node)
    found = _reduction(node, lowering.module(node))
    if grid is None or found is None or note.ndim != 2:
        return None
    source, index, how, size = found
    columns = {size[1] for size in note.sizes}
    groups = lowering.values[index]
    label = note.module or "groups"
    value = lowering.coded(lowering.values[source], note_of(source), label) if len(columns) == 1 else None
    if value is None or not isinstance(groups, Plain) or note_of(index).ndim != 1:
        return None
    out = lowering.out
    size = lowering.plain(size) if isinstance(size, Node) else size
    order = out.call(group_order, (groups.node, out.graph.call_method("size", (value.node, 0)), size))
    ptr, rows = (out.call(operator.getitem, (order, k)) for k in range(2))
    finish = Finish(
        factor=out.constant(torch.tensor([value.grid.scale], dtype=torch.float32), f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(), f"{label}.grid"),  # type: ignore[arg-type]
    )
    x_grid = out.constant(value.grid.numbers(), f"{label}.input_grid")
    call = out.graph.call_function(
        integer_propagate, (value.node, x_grid, ptr, rows, columns.pop(), finish), {"reduce": how}
    )
    return Codes(annotate(call, note), grid)


def _reduction(node: Node, module: nn.Module | None) -> _Reduction | None:
    """What a node reduces, if it does so with rows, to groups that a vector names."""
    name = op_name(node)
    if node.op == "call_function" and name == "scatter":
        given = _given(node, src=None, index=None, dim=0, dim_size=None, reduce="sum")
        source, index, how, size = (
            given["src"],
            given["index"],
            _REDUCTIONS.get(str(given["reduce"])),
            given["dim_size"],
        )
    elif node.op == "call_function" and name in _POOLS:
        given = _given(node, x=None, batch=None, size=None) | {"dim": 0}
        source, index, how, size = given["x"], given["batch"], _POOLS[name], given["size"]
    elif type(module) in _AGGREGATIONS:
        given = _given(node, x=None, index=None, ptr=None, dim_size=None, dim=-2)
        source, index, how, size = given["x"], given["index"], _AGGREGATIONS[type(module)], given["dim_size"]
    else:
        return None
    of_rows = given["dim"] in (0, -2) and given.get("ptr") is None
    if not of_rows or how is None or not isinstance(source, Node) or not isinstance(index, Node):
        return None
    return _Reduction(source, index, how, size)


def _given(node: Node, **defaults: Any) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}

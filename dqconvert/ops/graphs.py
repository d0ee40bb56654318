"""PyG's operations: functions that stay whole in a graph, and aggregations."""

from __future__ import annotations

from typing import Any

from dqconvert.ops.record import PYG, Moves, Op, Sign, Storage


def _pyg(name: str, **facts: Any) -> Op:
    return Op(name, PYG, **facts)


def _of_graph(name: str) -> Op:
    """Records a function that, without edge weights, depends on the graph alone."""
    return _pyg(name, of_graph=True, remembered=True)


def _pool(name: str, reduces: str) -> Op:
    return _pyg(name, reduces=reduces, pools=True, sign=Sign.KEEPS, lets_relu_pass=reduces in _SELECTS)


def _aggregation(name: str, reduces: str) -> Op:
    facts = {"reduces": reduces, "sign": Sign.KEEPS, "lets_relu_pass": reduces in _SELECTS}
    return _pyg(name, modules=(f"torch_geometric.nn.aggr.{name}",), **facts)


_SELECTS = ("max", "min")
"""Reductions that return one of the entries, or 0 where there is none."""


GRAPHS = (
    *map(_of_graph, ("gcn_norm", "add_self_loops", "remove_self_loops", "add_remaining_self_loops")),
    _pyg("scatter", sign=Sign.KEEPS, storage=Storage.OWN, remembered=True),
    _pyg("softmax", sign=Sign.NONNEGATIVE, squashes=True, storage=Storage.OWN),
    _pyg("degree", storage=Storage.OWN, remembered=True),
    _pyg("ptr2index", storage=Storage.OWN),
    _pyg("coalesce", remembered=True),
    _pyg("sort_edge_index", remembered=True),
    _pyg("to_undirected", remembered=True),
    _pyg("narrow", parameters=("input", "start", "length", "dim"), moves=Moves.CUT, sign=Sign.KEEPS),
    _pyg("select", parameters=("input", "index", "dim"), moves=Moves.PICK, sign=Sign.KEEPS),
    _pool("global_add_pool", "sum"),
    _pool("global_mean_pool", "mean"),
    _pool("global_max_pool", "max"),
    _aggregation("SumAggregation", "sum"),
    _aggregation("MeanAggregation", "mean"),
    _aggregation("MaxAggregation", "max"),
    _aggregation("MinAggregation", "min"),
)

"""PyG's functions that put graphs into rows of equal length, cut edges off, or count."""

from __future__ import annotations

from typing import Any

import torch

from dqconvert.onnx.segments import count_rows, reduce_rows
from dqconvert.onnx.values import Size, Wire
from dqconvert.onnx.writers.graphs import number_of_nodes
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import PYG


@writes("cumsum", package=PYG)
def _cumsum(w: Writing, x: Any, dim: int = 0) -> Wire:
    """Writes sums that begin with 0."""
    value = w.wire(x)
    at = dim % value.ndim
    none = w.file.full([1 if each == at else w.file.size(value, each) for each in range(value.ndim)], 0, value.dtype)
    return w.op("Concat", none, w.op("CumSum", value, at), axis=at)


@writes("index2ptr", package=PYG)
def _index2ptr(w: Writing, index: Any, size: Any = None) -> Wire:
    groups = w.wire(index)
    return _cumsum(w, count_rows(w, groups, number_of_nodes(w, groups, size), torch.int64))


@writes("dropout_edge", package=PYG)
def _dropout_edge(
    w: Writing, edge_index: Any, p: float = 0.5, force_undirected: bool = False, training: Any = True
) -> tuple[Any, Wire]:
    if training and p != 0:
        raise w.refusal("dropout_edge drops in evaluation, too: pass training=self.training")
    return edge_index, w.file.full([w.file.size(w.wire(edge_index), 1)], True, torch.bool)


class _Rows:
    """The places of nodes in rows of equal length, one row per graph.

    Attributes:
        graphs: How many there are.
        width: The length of a row.
        places: int64 ``[nodes]``, in its row.
    """

    def __init__(self, w: Writing, batch: Wire, width: Any, graphs: Any) -> None:
        self.graphs: Size = number_of_nodes(w, batch, graphs)
        counts = count_rows(w, batch, self.graphs, torch.int64)
        self.width: Size = number_of_nodes(w, batch, width) if width is not None else _largest(w, counts)
        first = w.file.gather(_cumsum(w, counts), batch)
        self.places = w.op("Sub", w.file.arange(w.file.size(batch, 0)), first)


def _largest(w: Writing, counts: Wire) -> Wire:
    return w.whole(w.op("ReduceMax", w.op("Concat", counts, torch.tensor([0]), axis=0), ndim=0, keepdims=0))


@writes("to_dense_batch", package=PYG)
def _to_dense_batch(
    w: Writing, x: Any, batch: Any = None, fill_value: float = 0.0, max_num_nodes: Any = None, batch_size: Any = None
) -> tuple[Wire, Wire]:
    value = w.wire(x)
    rest = [w.file.size(value, dim) for dim in range(1, value.ndim)]
    if batch is None and max_num_nodes is None:
        return w.file.unsqueeze(value, 0), w.file.full([1, w.file.size(value, 0)], True, torch.bool)
    groups = w.file.full([w.file.size(value, 0)], 0, torch.int64) if batch is None else w.wire(batch)
    rows = _Rows(w, groups, max_num_nodes, batch_size)
    entries = w.whole(w.math("Mul", rows.graphs, rows.width))
    fits = w.math("Less", rows.places, rows.width, dtype=torch.bool)  # what does not comes behind the last, and goes
    place = w.op(
        "Where", fits, w.math("Add", w.math("Mul", groups, rows.width), rows.places), entries, dtype=torch.int64
    )
    place = w.file.unsqueeze(place, 1)

    def spread(values: Wire, sizes: list[Size], fill: float) -> Wire:
        start = w.file.full([w.whole(w.math("Add", entries, 1)), *sizes], fill, values.dtype)
        flat = w.op("ScatterND", start, place, values)
        kept = w.op("Slice", flat, torch.tensor([0]), torch.tensor([-1]), torch.tensor([0]))
        return w.file.reshape(kept, [rows.graphs, rows.width, *sizes])

    there = w.file.full([w.file.size(value, 0)], True, torch.bool)
    return spread(value, rest, fill_value), spread(there, [], False)


@writes("to_dense_adj", package=PYG)
def _to_dense_adj(
    w: Writing,
    edge_index: Any,
    batch: Any = None,
    edge_attr: Any = None,
    max_num_nodes: Any = None,
    batch_size: Any = None,
) -> Wire:
    edges = w.wire(edge_index)
    if batch is None:
        batch = w.file.full([number_of_nodes(w, edges, None)], 0, torch.int64)
    if max_num_nodes is not None:
        raise w.refusal("to_dense_adj with max_num_nodes, which leaves edges out")
    groups = w.wire(batch)
    if batch_size is None:
        batch_size = w.whole(w.math("Max", number_of_nodes(w, groups, None), 1))
    rows = _Rows(w, groups, None, batch_size)
    row, col = (w.file.gather(edges, end) for end in (0, 1))
    at = [w.file.gather(groups, row), *(w.file.gather(rows.places, end) for end in (row, col))]
    place = at[0]
    for one in at[1:]:
        place = w.math("Add", w.math("Mul", place, rows.width), one)
    squares = w.math("Mul", rows.width, rows.width)
    values = w.file.full([w.file.size(row, 0)], 1, torch.float32) if edge_attr is None else w.wire(edge_attr)
    added = reduce_rows(w, values, place, w.whole(w.math("Mul", rows.graphs, squares)), "sum")
    rest = [w.file.size(values, dim) for dim in range(1, values.ndim)]
    return w.file.reshape(added, [rows.graphs, rows.width, rows.width, *rest])

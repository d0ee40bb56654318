"""Sparse matrices within a graph, as the two dense ones that stand for them: ONNX has none."""

from __future__ import annotations

from typing import Any

import torch

from dqconvert.onnx.segments import count_rows, reduce_rows
from dqconvert.onnx.values import Size, Sparse, Wire
from dqconvert.onnx.writers.graphs import number_of_nodes
from dqconvert.onnx.writers.products import matmul
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import PYG


@writes("to_torch_coo_tensor", "to_torch_csr_tensor", "to_torch_csc_tensor", package=PYG)
def _to_sparse_tensor(
    w: Writing, edge_index: Any, edge_attr: Any = None, size: Any = None, is_coalesced: bool = False
) -> Sparse:
    edges = w.wire(edge_index)
    values = None if edge_attr is None else w.wire(edge_attr)
    if values is not None and values.ndim != 1:
        raise w.refusal("a sparse matrix of vectors")
    rows, columns = size if isinstance(size, tuple | list) else (size, size)
    start, end = (w.file.gather(edges, place) for place in (0, 1))
    if None in (rows, columns):
        raise w.refusal("a sparse matrix whose size follows its entries: give size")
    shape: list[Size] = [number_of_nodes(w, edges, one) for one in (rows, columns)]
    place = w.math("Add", w.math("Mul", start, shape[1]), end)
    entries = w.whole(w.math("Mul", *shape))
    counts = w.file.reshape(count_rows(w, place, entries, torch.float32), shape)
    there = w.op("Min", counts, 1.0)
    if values is None:
        return Sparse(there, there)
    return Sparse(w.file.reshape(reduce_rows(w, values, place, entries, "sum"), shape), there)


@writes("matmul", "spmm")
def _matmul(w: Writing, input: Any, other: Any) -> Wire | Sparse:
    pair = input, other
    product = matmul(w, *(one.values if isinstance(one, Sparse) else one for one in pair))
    if not (isinstance(input, Sparse) and isinstance(other, Sparse)):
        return product
    return Sparse(product, w.op("Min", w.op("MatMul", input.there, other.there), 1.0))


@writes("to_sparse", "to_sparse_coo", "to_sparse_csr", "coalesce")
def _as_it_is(w: Writing, x: Any) -> Sparse:
    if not isinstance(x, Sparse):
        raise w.refusal("a dense matrix becomes sparse")
    return x


def _entries(w: Writing, x: Any) -> tuple[Wire, Wire]:
    """Returns the values of a sparse matrix, and where they are: row by row, as torch has them once coalesced."""
    if not isinstance(x, Sparse):
        raise w.refusal("it is asked of what is no sparse matrix here")
    places = w.op("NonZero", x.there, dtype=torch.int64, ndim=2)
    return w.op("GatherND", x.values, w.op("Transpose", places, perm=[1, 0]), ndim=1), places


@writes("values")
def _values(w: Writing, x: Any) -> Wire:
    return _entries(w, x)[0]


@writes("indices")
def _indices(w: Writing, x: Any) -> Wire:
    return _entries(w, x)[1]


@writes("to_dense")
def _to_dense(w: Writing, x: Any) -> Wire:
    return x.values if isinstance(x, Sparse) else w.wire(x)

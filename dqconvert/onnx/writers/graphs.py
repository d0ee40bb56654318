"""PyG's functions: self-loops, norms of edges, scatters, softmaxes, pooling; and our own that graphs call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.segments import count_rows, number_of_groups, reduce_rows, softmax_rows
from dqconvert.onnx.values import Size, Wire
from dqconvert.onnx.writers.products import reduced_over
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import OURS, PYG

# -- edges -----------------------------------------------------------------------------------------------------------


def number_of_nodes(w: Writing, edge_index: Wire, num_nodes: Any) -> Size:
    """Returns how many groups of rows there are: as given, or as many as are named."""
    if num_nodes is not None:
        return num_nodes if isinstance(num_nodes, int) else w.wire(num_nodes)
    return number_of_groups(w, w.file.reshape(edge_index, [-1]))


@writes("maybe_num_nodes", package=PYG)
def _maybe_num_nodes(w: Writing, edge_index: Any, num_nodes: Any = None) -> Size:
    return number_of_nodes(w, w.wire(edge_index), num_nodes)


def _ends(w: Writing, edge_index: Wire) -> tuple[Wire, Wire]:
    return w.file.gather(edge_index, 0), w.file.gather(edge_index, 1)


def _no_loops(w: Writing, edge_index: Wire) -> Wire:
    return w.op("Not", w.op("Equal", *_ends(w, edge_index), dtype=torch.bool))


def _with_loops(w: Writing, edge_index: Wire, num_nodes: Size) -> Wire:
    loops = w.file.unsqueeze(w.file.arange(num_nodes), 0)
    return w.op("Concat", edge_index, w.op("Concat", loops, loops, axis=0), axis=1)


def _loop_attributes(w: Writing, edge_index: Wire, attributes: Wire, num_nodes: Size, fill_value: Any) -> Wire:
    if isinstance(fill_value, str):
        return reduce_rows(w, attributes, w.file.gather(edge_index, 1), num_nodes, fill_value)
    sizes = [num_nodes, *(w.file.size(attributes, dim) for dim in range(1, attributes.ndim))]
    if isinstance(fill_value, Tensor | Wire):
        value = w.file.cast(w.wire(fill_value), attributes.dtype)
        value = value if value.ndim == attributes.ndim else w.file.unsqueeze(value, 0)
        return w.op("Expand", value, w.file.vector(sizes), ndim=attributes.ndim)
    return w.file.full(sizes, 1.0 if fill_value is None else float(fill_value), attributes.dtype)


@writes("remove_self_loops", package=PYG)
def _remove_self_loops(w: Writing, edge_index: Any, edge_attr: Any = None) -> tuple[Wire, Wire | None]:
    edges = w.wire(edge_index)
    mask = _no_loops(w, edges)
    kept = None if edge_attr is None else w.masked(edge_attr, mask, 0)
    return w.masked(edges, mask, 1), kept


@writes("add_self_loops", package=PYG)
def _add_self_loops(
    w: Writing, edge_index: Any, edge_attr: Any = None, fill_value: Any = None, num_nodes: Any = None
) -> tuple[Wire, Wire | None]:
    edges = w.wire(edge_index)
    if isinstance(num_nodes, tuple | list):
        first, second = (number_of_nodes(w, edges, number) for number in num_nodes)
        number: Size = w.whole(w.math("Min", first, second))
    else:
        number = number_of_nodes(w, edges, num_nodes)
    with_loops = _with_loops(w, edges, number)
    if edge_attr is None:
        return with_loops, None
    attributes = w.wire(edge_attr)
    return with_loops, w.op("Concat", attributes, _loop_attributes(w, edges, attributes, number, fill_value), axis=0)


@writes("add_remaining_self_loops", package=PYG)
def _add_remaining_self_loops(
    w: Writing, edge_index: Any, edge_attr: Any = None, fill_value: Any = None, num_nodes: Any = None
) -> tuple[Wire, Wire | None]:
    edges = w.wire(edge_index)
    number = number_of_nodes(w, edges, num_nodes)
    mask = _no_loops(w, edges)
    all_edges = _with_loops(w, w.masked(edges, mask, 1), number)
    if edge_attr is None:
        return all_edges, None
    attributes = w.wire(edge_attr)
    loops = w.op("Not", mask)
    nodes = w.file.unsqueeze(w.masked(w.file.gather(edges, 0), loops, 0), 1)
    own = w.masked(attributes, loops, 0)
    filled = _loop_attributes(w, edges, attributes, number, fill_value)
    filled = w.op("ScatterND", filled, nodes, own)
    return all_edges, w.op("Concat", w.masked(attributes, mask, 0), filled, axis=0)


def _inverse_root(w: Writing, degree: Wire) -> Wire:
    """Returns ``degree ** -0.5``, and 0 where that is infinite."""
    return _or_zero(w, degree, w.op("Reciprocal", w.op("Sqrt", degree)))


def _or_zero(w: Writing, degree: Wire, inverse: Wire) -> Wire:
    none = w.math("Equal", degree, 0.0, dtype=torch.bool)
    return w.op("Where", none, w.file.constant(0, degree.dtype), inverse, dtype=degree.dtype, ndim=degree.ndim)


@writes("gcn_norm", package=PYG)
def _gcn_norm(
    w: Writing,
    edge_index: Any,
    edge_weight: Any = None,
    num_nodes: Any = None,
    improved: bool = False,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: Any = None,
) -> tuple[Wire, Wire]:
    edges, weight = w.wire(edge_index), edge_weight
    number = number_of_nodes(w, edges, num_nodes)
    if add_self_loops:
        edges, weight = _add_remaining_self_loops(w, edges, weight, 2.0 if improved else 1.0, number)
    row, col = _ends(w, edges)
    receiver = col if flow == "source_to_target" else row
    if weight is None:
        degree = count_rows(w, receiver, number, dtype or torch.float32)
    else:
        degree = reduce_rows(w, w.wire(weight), receiver, number, "sum")
    root = _inverse_root(w, degree)
    sent = w.file.gather(root, row)
    return edges, w.math("Mul", sent if weight is None else w.math("Mul", sent, weight), w.file.gather(root, col))


@writes("get_laplacian", package=PYG)
def _get_laplacian(
    w: Writing,
    edge_index: Any,
    edge_weight: Any = None,
    normalization: Any = None,
    dtype: Any = None,
    num_nodes: Any = None,
) -> tuple[Wire, Wire]:
    edges, weight = _remove_self_loops(w, edge_index, edge_weight)
    number = number_of_nodes(w, edges, num_nodes)
    row, col = _ends(w, edges)
    if weight is None:
        degree = count_rows(w, row, number, dtype or torch.float32)
        weight = w.file.full([w.file.size(row, 0)], 1, degree.dtype)
    else:
        degree = reduce_rows(w, weight, row, number, "sum")
    if normalization is None:
        return _with_loops(w, edges, number), w.op("Concat", w.op("Neg", weight), degree, axis=0)
    if normalization == "sym":
        root = _inverse_root(w, degree)
        weight = w.math("Mul", w.math("Mul", w.file.gather(root, row), weight), w.file.gather(root, col))
    else:
        weight = w.math("Mul", w.file.gather(_or_zero(w, degree, w.op("Reciprocal", degree)), row), weight)
    all_edges, weights = _add_self_loops(w, edges, w.op("Neg", weight), 1.0, number)
    assert weights is not None
    return all_edges, weights


@writes("node_norm", package=OURS)
def _node_norm(w: Writing, edge_index: Any, num_nodes: Any, flow: str, dtype: torch.dtype) -> Wire:
    row, col = _ends(w, w.wire(edge_index))
    number = number_of_nodes(w, w.wire(edge_index), num_nodes)
    return _inverse_root(w, count_rows(w, col if flow == "source_to_target" else row, number, dtype))


@writes("scale_rows", package=OURS)
def _scale_rows(w: Writing, x: Any, factor: Any, dim: int = 0) -> Wire:
    value = w.wire(x)
    return w.math("Mul", value, w.file.reshape(w.wire(factor), [-1, *[1] * (value.ndim - 1 - dim)]))


@writes("degree", package=PYG)
def _degree(w: Writing, index: Any, num_nodes: Any = None, dtype: Any = None) -> Wire:
    receiver = w.wire(index)
    return count_rows(w, receiver, number_of_nodes(w, receiver, num_nodes), dtype or torch.float32)


# -- rows of groups --------------------------------------------------------------------------------------------------


def reduced(w: Writing, x: Any, index: Any, dim: int, size: Any, how: str) -> Wire:
    """Returns the rows of each group, along a dimension, reduced to one; ``size=None``: of as many as are named."""
    value, groups = w.wire(x), w.wire(index)
    number = number_of_nodes(w, groups, size)
    at = dim % value.ndim
    if at == 0:
        return reduce_rows(w, value, groups, number, how)
    order = [at, *(each for each in range(value.ndim) if each != at)]
    rows = reduce_rows(w, w.op("Transpose", value, perm=order), groups, number, how)
    return w.op("Transpose", rows, perm=[order.index(each) for each in range(value.ndim)])


@writes("scatter", package=PYG)
def _scatter(w: Writing, src: Any, index: Any, dim: int = 0, dim_size: Any = None, reduce: str = "sum") -> Wire:
    return reduced(w, src, index, dim, dim_size, reduce)


@writes("softmax", package=PYG)
def _softmax(w: Writing, src: Any, index: Any = None, ptr: Any = None, num_nodes: Any = None, dim: int = 0) -> Wire:
    x = w.wire(src)
    if ptr is not None or index is None or dim % x.ndim != 0:
        raise w.refusal("a softmax over ptr, or not over the first dimension")
    receiver = w.wire(index)
    return softmax_rows(w, x, receiver, number_of_nodes(w, receiver, num_nodes))


def _pool(name: str, how: str, whole: str) -> None:
    @writes(name, package=PYG)
    def write(w: Writing, x: Any, batch: Any = None, size: Any = None) -> Wire:
        value = w.wire(x)
        dim = -1 if value.ndim == 1 else -2
        if batch is not None:
            return reduced(w, value, batch, dim, size, how)
        return reduced_over(w, whole, value, dim, value.ndim <= 2)


for _name, _how, _whole in (
    ("global_add_pool", "sum", "ReduceSum"),
    ("global_mean_pool", "mean", "ReduceMean"),
    ("global_max_pool", "max", "ReduceMax"),
):
    _pool(_name, _how, _whole)


# -- our own ---------------------------------------------------------------------------------------------------------


@writes("check_edges", package=OURS)
def _check_edges(w: Writing, edge_index: Any, num_nodes: Any) -> Wire:
    edges = w.wire(edge_index)
    w.require_places(edges, "edge_index names a negative node")
    return edges


@writes("groups_of_nodes", package=OURS)
def _groups_of_nodes(w: Writing, num_nodes: Any, groups: int, *targets: Any) -> Wire:
    receivers = [w.wire(target) for target in targets]
    receiver = receivers[0] if len(receivers) == 1 else w.op("Concat", *receivers, axis=0)
    degree = count_rows(w, receiver, w.numbers((num_nodes,))[0], torch.int64)
    first, *others = [
        w.file.cast(w.math("GreaterOrEqual", degree, 2**power, dtype=torch.bool), torch.int64)
        for power in range(1, groups)
    ]
    for other in others:
        first = w.op("Add", first, other)
    return w.file.cast(first, torch.uint8)


@writes("groups_of_edges", package=OURS)
def _groups_of_edges(w: Writing, groups: Any, receiver: Any) -> Wire:
    return w.file.gather(w.wire(groups), w.wire(receiver))


@writes("either", package=OURS)
def _either(w: Writing, messages: Any, product: Any) -> Any:
    return messages


@writes("stage_output", package=OURS)
def _stage_output(w: Writing, value: Any, *_: Any, **__: Any) -> Any:
    return value


@writes("private", package=OURS)
def _private(w: Writing, value: Any) -> Any:
    return value


@writes("keep_gradient", package=OURS)
def _keep_gradient(w: Writing, before: Any, now: Any) -> Any:
    return now


@writes("by_mode", package=OURS)
def _by_mode(w: Writing, training: Any, when_training: Any, when_evaluating: Any) -> Any:
    return when_evaluating

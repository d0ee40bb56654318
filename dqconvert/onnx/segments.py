"""Sums, maxima and softmaxes over the rows of each group: the messages to each node, the nodes of each graph.

ONNX adds rows up by ScatterND or ScatterElements. ONNX Runtime runs the first on several threads that do not wait for
one another: where two rows go to one place, as messages do, results are wrong now and then
(https://github.com/microsoft/onnxruntime/issues/18048, seen from some 100,000 numbers on). The second runs on one
thread, slowly. So rows are put into the order of their groups, once per graph, and added up by CumSum: a group's sum is
the difference of two. It is exact: on codes, which are integers, and of floats in double precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dqconvert.onnx.values import Size, Wire
from dqconvert.onnx.writing import Writing

_LOWEST = {"max": -torch.inf, "min": torch.inf}


class _Order(NamedTuple):
    """The rows in the order of their groups.

    Attributes:
        rows: int64 ``[rows]``.
        ends: int64 ``[groups that have rows]``, the position of the last row of each.
        groups: int64, likewise, which these are: ``[groups that have rows, 1]``.
    """

    rows: Wire
    ends: Wire
    groups: Wire


def reduce_rows(w: Writing, x: Wire, index: Wire, size: Size, how: str) -> Wire:
    """Returns the rows of each group reduced to one; 0 for a group without rows.

    Args:
        x: ``[rows, *rest]``, float or integers.
        index: int64 ``[rows]``, the group of each.
        size: The number of groups.
        how: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.

    Returns:
        ``[groups, *rest]``, of the type of ``x``.
    """
    if how in ("sum", "add"):
        return _sum(w, x, index, size, codes=not w.exact)
    if how == "mean":  # of floats: a mean of codes often is half way between two, and training adds up floats
        counted = w.file.unsqueeze(count_rows(w, index, size, x.dtype), *range(1, x.ndim))
        return w.math("Div", _sum(w, x, index, size, codes=False), w.math("Max", counted, 1.0))
    if how in _LOWEST:
        if not x.dtype.is_floating_point:
            raise w.refusal(f"the {how} of rows of {x.dtype}")
        none = w.file.full(_sizes(w, x, size), _LOWEST[how], x.dtype)
        reduced = _scattered(w, x, index, none, how)
        return w.op(
            "Where",
            w.math("Equal", reduced, w.file.constant(_LOWEST[how], x.dtype), dtype=torch.bool),
            w.file.constant(0, x.dtype),
            reduced,
            dtype=x.dtype,
            ndim=x.ndim,
        )
    raise w.refusal(f"rows are reduced by {how!r}")


def count_rows(w: Writing, index: Wire, size: Size, dtype: torch.dtype) -> Wire:
    """Returns the number of rows of each group, ``[groups]``."""
    if w.scatters:
        ones = w.op("Expand", w.file.constant(1, dtype), w.file.shape(index), ndim=1)
        return _sum(w, ones, index, size, codes=False)
    order = _order(w, index)
    return w.file.cast(_placed(w, _differences(w, w.op("Add", order.ends, 1)), order, size), dtype)


def softmax_rows(w: Writing, x: Wire, index: Wire, size: Size) -> Wire:
    """Returns a softmax over the rows of each group, as :func:`torch_geometric.utils.softmax` computes it."""
    top = reduce_rows(w, x, index, size, "max")
    powers = w.op("Exp", w.math("Sub", x, w.file.gather(top, index)))
    total = w.math("Add", reduce_rows(w, powers, index, size, "sum"), 1e-16)
    return w.math("Div", powers, w.file.gather(total, index))


def number_of_groups(w: Writing, index: Wire) -> Wire:
    """Returns one more than the largest group, as a number; 0 where there are no rows."""
    largest = w.op("ReduceMax", w.op("Concat", index, torch.tensor([-1]), axis=0), ndim=0, keepdims=0)
    total = w.op("Add", largest, 1)
    return Wire(total.name, torch.int64, 0, number=True)


def _sizes(w: Writing, x: Wire, size: Size) -> list[Size]:
    """Returns the sizes of a value with another number of rows."""
    return [size, *(w.file.size(x, dim) for dim in range(1, x.ndim))]


def _sum(w: Writing, x: Wire, index: Wire, size: Size, *, codes: bool) -> Wire:
    """Returns the sum of the rows of each group.

    Args:
        codes: Whether to add up the codes of rounded rows.
    """
    if w.scatters:
        return _scattered(w, x, index, w.file.full(_sizes(w, x, size), 0, x.dtype), "add")
    order = _order(w, index)
    if codes and x.rounded is not None and x.rounded.scale.ndim == 0:
        held = w.file.cast(w.file.gather(x.rounded.codes, order.rows), torch.int32)
        steps = w.op("Sub", held, w.file.cast(x.rounded.zero, torch.int32))
        total = w.file.cast(_placed(w, _sums(w, steps, order), order, size), torch.float32)
        return w.math("Mul", total, x.rounded.scale)
    wide = torch.float64 if x.dtype.is_floating_point else x.dtype
    rows = w.file.cast(w.file.gather(x, order.rows), wide)
    return w.file.cast(_placed(w, _sums(w, rows, order), order, size), x.dtype)


def _scattered(w: Writing, x: Wire, index: Wire, start: Wire, how: str) -> Wire:
    places = w.op("Expand", w.file.reshape(index, [-1, *[1] * (x.ndim - 1)]), w.file.shape(x), ndim=x.ndim)
    return w.op("ScatterElements", start, places, x, axis=0, reduction=how)


def _order(w: Writing, index: Wire) -> _Order:
    ordered, rows = w.file.sort(index)
    following = w.op(
        "Concat",
        w.op("Slice", ordered, torch.tensor([1]), torch.tensor([2**62]), torch.tensor([0])),
        torch.tensor([-1]),
        axis=0,
    )
    last = w.op("Not", w.op("Equal", ordered, following, dtype=torch.bool))
    ends = w.op("Compress", w.file.arange(w.file.size(index, 0)), last, axis=0)
    groups = w.op("Compress", ordered, last, axis=0)
    return _Order(rows, ends, w.file.unsqueeze(groups, 1))


def _placed(w: Writing, values: Wire, order: _Order, size: Size) -> Wire:
    """Returns what each group has, 0 for those without rows. No group is written to twice."""
    return w.op("ScatterND", w.file.full(_sizes(w, values, size), 0, values.dtype), order.groups, values)


def _sums(w: Writing, rows: Wire, order: _Order) -> Wire:
    return _differences(w, w.file.gather(w.op("CumSum", rows, 0), order.ends))


def _differences(w: Writing, sums: Wire) -> Wire:
    """Returns what each row adds to the one before."""
    before = w.op("Slice", sums, torch.tensor([0]), torch.tensor([-1]), torch.tensor([0]))
    none = w.file.full(_sizes(w, sums, 1), 0, sums.dtype)
    return w.op("Sub", sums, w.op("Concat", none, before, axis=0))

"""Operations that move entries: views, joins, copies. Picks: :mod:`dqconvert.onnx.writers.picks`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.values import Wire
from dqconvert.onnx.writers.picks import END, sliced
from dqconvert.onnx.writing import Writing, writes


@writes("clone", "detach", "alias", "contiguous", "cpu", "private")
def _same(w: Writing, x: Any, *_: Any, **__: Any) -> Any:
    return x


# -- views -----------------------------------------------------------------------------------------------------------


@writes("view", "reshape")
def _reshape(w: Writing, x: Any, *shape: Any) -> Wire:
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise w.refusal("it is viewed as another type")
    return w.file.reshape(w.wire(x), w.numbers(shape))


@writes("view_as", "reshape_as")
def _reshape_as(w: Writing, x: Any, other: Any) -> Wire:
    model = w.wire(other)
    return w.op("Reshape", x, w.file.shape(model), ndim=model.ndim, allowzero=1)


@writes("flatten")
def _flatten(w: Writing, input: Any, start_dim: int = 0, end_dim: int = -1) -> Wire:
    x = w.wire(input)
    start, end = start_dim % max(x.ndim, 1), end_dim % max(x.ndim, 1)
    sizes = [w.file.size(x, dim) for dim in range(x.ndim)]
    inner = [size for size in sizes[start : end + 1] if isinstance(size, int)]
    joined = math.prod(inner) if len(inner) == end + 1 - start else -1  # which of no entries is unknown
    return w.file.reshape(x, [*sizes[:start], joined, *sizes[end + 1 :]])


@writes("ravel")
def _ravel(w: Writing, x: Any) -> Wire:
    return w.file.reshape(w.wire(x), [-1])


@writes("unflatten")
def _unflatten(w: Writing, input: Any, dim: int, sizes: Any) -> Wire:
    x = w.wire(input)
    kept = [w.file.size(x, each) for each in range(x.ndim)]
    at, parts = dim % x.ndim, w.numbers((sizes,))
    whole = math.prod(part for part in parts if isinstance(part, int))
    if isinstance(size := kept[at], int) and whole < 0 and all(isinstance(part, int) for part in parts):
        parts = [-size // whole if part == -1 else part for part in parts]  # of no entries it could not be told
    return w.file.reshape(x, [*kept[:at], *parts, *kept[at + 1 :]])


@writes("squeeze")
def _squeeze(w: Writing, input: Any, dim: Any = None) -> Wire:
    x = w.wire(input)
    dims = range(x.ndim) if dim is None else {one % x.ndim for one in ([dim] if isinstance(dim, int) else dim)}
    known = [each for each in sorted(dims) if w.file.sizes(x)[each] == 1]
    gone = sorted(dims) if dim is not None and x.ndim - len(dims) == w.note.ndim else known
    if x.ndim - len(gone) != w.note.ndim:
        raise w.refusal("dimensions of size 1 are taken out, and which these are depends on the graph")
    for dim in {*dims} - {*gone}:
        if isinstance(size := w.file.size(x, dim), Wire):
            one = w.math("Equal", size, 1, dtype=torch.bool)
            w.file.require(w.op("Not", one), "a dimension has size 1, and would be taken out")
    return w.op("Squeeze", x, torch.tensor(gone), ndim=x.ndim - len(gone)) if gone else x


@writes("unsqueeze")
def _unsqueeze(w: Writing, input: Any, dim: int) -> Wire:
    x = w.wire(input)
    return w.file.unsqueeze(x, dim % (x.ndim + 1))


@writes("permute")
def _permute(w: Writing, x: Any, *dims: Any) -> Wire:
    value = w.wire(x)
    order = [
        int(dim) % value.ndim for dim in (dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims)
    ]
    return w.op("Transpose", value, perm=order)


@writes("transpose")
def _transpose(w: Writing, x: Any, dim0: int, dim1: int) -> Wire:
    value = w.wire(x)
    order = list(range(value.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return w.op("Transpose", value, perm=order)


@writes("movedim")
def _movedim(w: Writing, x: Any, source: Any, destination: Any) -> Wire:
    value = w.wire(x)
    sources, places = ([one] if isinstance(one, int) else one for one in (source, destination))
    goes = {place % value.ndim: one % value.ndim for one, place in zip(sources, places, strict=True)}
    stay = iter([dim for dim in range(value.ndim) if dim not in goes.values()])
    order = [goes[dim] if dim in goes else next(stay) for dim in range(value.ndim)]
    return value if order == list(range(value.ndim)) else w.op("Transpose", value, perm=order)


@writes("t")
def _t(w: Writing, x: Any, *_: Any) -> Wire:
    value = w.wire(x)
    return (
        value
        if value.ndim < 2
        else w.op("Transpose", value, perm=[*range(value.ndim - 2), value.ndim - 1, value.ndim - 2])
    )


@writes("expand")
def _expand(w: Writing, x: Any, *sizes: Any) -> Wire:
    value, wanted = w.wire(x), w.numbers(sizes)
    added = len(wanted) - value.ndim
    shape = [w.file.size(value, dim - added) if size == -1 else size for dim, size in enumerate(wanted)]
    return w.op("Expand", value, w.file.vector(shape), ndim=len(wanted))


@writes("expand_as")
def _expand_as(w: Writing, x: Any, other: Any) -> Wire:
    model = w.wire(other)
    return w.op("Expand", x, w.file.shape(model), ndim=model.ndim)


@writes("repeat")
def _repeat(w: Writing, x: Any, *times: Any) -> Wire:
    value, wanted = w.wire(x), w.numbers(times)
    value = w.file.unsqueeze(value, *range(len(wanted) - value.ndim))
    return w.op("Tile", value, w.file.vector(wanted))


@writes("repeat_interleave")
def _repeat_interleave(w: Writing, x: Any, repeats: Any, dim: Any = None, *, output_size: Any = None) -> Wire:
    value = w.wire(x)
    number = repeats if isinstance(repeats, int) else w.wire(repeats)
    if isinstance(number, Wire) and not number.number:
        raise w.refusal("rows are repeated by numbers of a tensor")
    if dim is None:
        value, dim = w.file.reshape(value, [-1]), 0
    at = dim % value.ndim
    spread = w.op(
        "Expand",
        w.file.unsqueeze(value, at + 1),
        w.file.vector([*[1] * (at + 1), number, *[1] * (value.ndim - at - 1)]),
    )
    sizes = [w.file.size(value, each) for each in range(value.ndim)]
    wide = sizes[at] * number if isinstance(sizes[at], int) and isinstance(number, int) else -1
    return w.file.reshape(spread, [*sizes[:at], wide, *sizes[at + 1 :]])


# -- joins -----------------------------------------------------------------------------------------------------------


@writes("cat")
def _cat(w: Writing, tensors: Any, dim: int = 0) -> Wire:
    parts = w.promoted(*tensors)
    return w.op("Concat", *parts, axis=dim % parts[0].ndim)


@writes("vstack")
def _vstack(w: Writing, tensors: Any) -> Wire:
    return _cat(w, tensors, 0)


@writes("stack")
def _stack(w: Writing, tensors: Any, dim: int = 0) -> Wire:
    parts = w.promoted(*tensors)
    at = dim % (parts[0].ndim + 1)
    return w.op("Concat", *(w.file.unsqueeze(part, at) for part in parts), axis=at)


@writes("masked_fill")
def _masked_fill(w: Writing, x: Any, mask: Any, value: Any) -> Wire:
    kept = w.wire(x)
    filled = w.file.cast(value if not isinstance(value, Tensor) else w.wire(value), kept.dtype)
    return w.op("Where", mask, filled, kept, dtype=kept.dtype, ndim=max(kept.ndim, w.wire(mask).ndim))


@writes("where")
def _where(w: Writing, condition: Any, x: Any, y: Any) -> Wire:
    chosen, (one, other) = w.wire(condition), w.promoted(x, y)
    if chosen.dtype is not torch.bool:
        raise w.refusal(f"a condition of {chosen.dtype}")
    if one.dtype is torch.bool:  # which ONNX Runtime has no Where of
        no, ndim = w.op("Not", chosen), max(chosen.ndim, one.ndim, other.ndim)
        sides = w.op("And", chosen, one, ndim=ndim), w.op("And", no, other, ndim=ndim)
        return w.op("Or", *sides, ndim=ndim)
    return w.op("Where", chosen, one, other, dtype=one.dtype, ndim=max(chosen.ndim, one.ndim, other.ndim))


@writes("roll")
def _roll(w: Writing, x: Any, shifts: Any, dims: Any = None) -> Wire:
    value = w.wire(x)
    if not isinstance(shifts, int) or not isinstance(dims, int):
        raise w.refusal("it is rolled along no dimension, or several")
    size = w.file.size(value, dims)
    at = w.math("Sub", size, w.math("Mod", shifts, w.math("Max", size, 1)))  # a shift may go around several times
    return w.op("Concat", sliced(w, value, dims, at, END), sliced(w, value, dims, 0, at), axis=dims % value.ndim)

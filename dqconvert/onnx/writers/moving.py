"""Operations that move entries: views, picks, joins, copies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.values import Wire
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import OURS, PYG

_END = 2**62
"""Further than any dimension goes."""


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


# -- picks -----------------------------------------------------------------------------------------------------------


@writes("index_select", "select")
def _select(w: Writing, input: Any, dim: int, index: Any) -> Wire:
    return w.file.gather(w.wire(input), w.wire(index), dim)


@writes("select", package=PYG)
def _pick(w: Writing, src: Any, index_or_mask: Any, dim: int) -> Wire:
    return _taken(w, w.wire(src), w.wire(index_or_mask), dim)


def _taken(w: Writing, x: Wire, rows: Wire, dim: int) -> Wire:
    """Returns slices of a value, by their places or a mask."""
    if rows.dtype is torch.uint8:
        raise w.refusal("uint8 is a mask to torch, and an index to ONNX: make it bool")
    return w.masked(x, rows, dim % x.ndim) if rows.dtype is torch.bool else w.file.gather(x, rows, dim)


@writes("gather")
def _gather(w: Writing, input: Any, dim: int, index: Any) -> Wire:
    x = w.wire(input)
    return w.op("GatherElements", x, index, axis=dim % x.ndim)


@writes("narrow")
def _narrow(w: Writing, input: Any, dim: int, start: Any, length: Any) -> Wire:
    x = w.wire(input)
    if isinstance(start, int) and start < 0:
        if not isinstance(length, int):
            raise w.refusal("it starts from the end, and its length follows the graph")
        return _sliced(w, x, dim, start, start + length or _END)
    end = w.math("Add", start, length)
    fits = w.math("LessOrEqual", end, w.file.size(x, dim), dtype=torch.bool)
    w.file.require(fits, "what is narrowed ends before it does")
    return _sliced(w, x, dim, start, end)


def _sliced(w: Writing, x: Wire, dim: int, start: Any, end: Any, step: int = 1) -> Wire:
    numbers = (one if isinstance(one, int) else w.file.cast(w.wire(one), torch.int64) for one in (start, end))
    ends = [w.file.vector([one]) for one in numbers]
    return w.op("Slice", x, *ends, torch.tensor([dim % x.ndim]), torch.tensor([step]))


@writes("chunk")
def _chunk(w: Writing, input: Any, chunks: int, dim: int = 0) -> tuple[Wire, ...]:
    x = w.wire(input)
    size = w.fixed_size(x, dim)
    return _split(w, x, -(-size // chunks), dim)


@writes("split")
def _split(w: Writing, input: Any, split_size: Any, dim: int = 0) -> tuple[Wire, ...]:
    x = w.wire(input)
    sizes = list(split_size) if isinstance(split_size, tuple | list) else []
    if not sizes:
        size = w.fixed_size(x, dim)
        sizes = [min(split_size, size - start) for start in range(0, size, split_size)]
    parts = [(x.dtype, x.ndim)] * len(sizes)
    return tuple(w.file.ops("Split", [x, w.file.wire(w.file.vector(sizes))], parts, axis=dim % x.ndim))


@writes("tensor_split")
def _tensor_split(w: Writing, input: Any, sections: Any, dim: int = 0) -> tuple[Wire, ...]:
    x = w.wire(input)
    if not isinstance(sections, int):
        raise w.refusal("it is split at places")
    size = w.fixed_size(x, dim)
    return _split(w, x, [size // sections + (place < size % sections) for place in range(sections)], dim)


@writes("unbind")
def _unbind(w: Writing, input: Any, dim: int = 0) -> tuple[Wire, ...]:
    x = w.wire(input)
    return tuple(w.file.gather(x, place, dim) for place in range(w.fixed_size(x, dim)))


@writes("getitem")
def _getitem(w: Writing, x: Any, index: Any) -> Any:
    if isinstance(x, tuple | list | dict):
        return x[index]
    value, dim = w.wire(x), 0
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > 1 and all(isinstance(part, Wire | Tensor) and _is_vector(w, part) for part in parts):
        places = [w.file.unsqueeze(w.file.cast(w.wire(part), torch.int64), 1) for part in parts]
        return w.op("GatherND", value, w.op("Concat", *places, axis=1), ndim=value.ndim - len(parts) + 1)
    used = sum(part is not None and part is not ... for part in parts)
    gathered = False
    for part in parts:
        if part is ...:
            dim = value.ndim - (used - dim)
        elif part is None:
            value, dim, used = w.file.unsqueeze(value, dim), dim + 1, used + 1
        elif isinstance(part, slice):
            if (part.start, part.stop, part.step) != (None, None, None):
                stop = _END if part.stop is None else part.stop
                value = _sliced(w, value, dim, part.start or 0, stop, part.step or 1)
            dim += 1
        elif isinstance(part, int) or (isinstance(part, Wire) and part.number):
            value, used = w.file.gather(value, w.wire(part), dim), used - 1
        else:
            rows = w.wire(torch.tensor(part) if isinstance(part, list) else part)
            many = rows.dtype is torch.bool and rows.ndim != 1
            if gathered or (many and (rows.ndim == 0 or any(one is ... for one in parts))):
                why = "several tensors" if gathered else f"a mask of {rows.ndim} dimensions"
                raise w.refusal(f"it is indexed by {why}")
            if many:  # the dimensions that it is of become one
                sizes = [w.file.size(value, each) for each in range(value.ndim)]
                along = w.whole(w.op("Size", rows, dtype=torch.int64, ndim=0))
                value = w.file.reshape(value, [*sizes[:dim], along, *sizes[dim + rows.ndim :]])
                rows = w.file.reshape(rows, [-1])
            value = _taken(w, value, rows, dim)
            dim, used, gathered = dim + rows.ndim, used + rows.ndim - 1, True
    return value


def _is_vector(w: Writing, index: Any) -> bool:
    rows = w.wire(index)
    return rows.ndim == 1 and rows.dtype in (torch.int64, torch.int32)


@writes("setitem", package=OURS)
def _setitem(w: Writing, target: Any, index: Any, value: Any) -> Wire:
    x, mask = w.wire(target), w.wire(index) if isinstance(index, Wire) else None
    new = w.file.cast(value if isinstance(value, int | float) else w.wire(value), x.dtype)
    if mask is not None and mask.dtype is torch.bool and new.ndim <= x.ndim - mask.ndim:
        wide = w.file.unsqueeze(mask, *range(mask.ndim, x.ndim))
        return w.op("Where", wide, new, x, dtype=x.dtype, ndim=x.ndim)
    sizes = [w.file.size(x, dim) for dim in range(x.ndim)]
    entries = w.file.reshape(w.file.arange(w.whole(w.op("Size", x, dtype=torch.int64, ndim=0))), sizes)
    places = _getitem(w, entries, index)
    spread = w.op("Expand", new, w.file.shape(places), ndim=places.ndim)
    flat = (w.file.reshape(one, shape) for one, shape in ((x, [-1]), (places, [-1, 1]), (spread, [-1])))
    return w.file.reshape(w.op("ScatterND", *flat), sizes)


@writes("scatter")
def _scatter(w: Writing, x: Any, dim: int, index: Any, src: Any) -> Wire:
    value, places = w.wire(x), w.wire(index)
    w.require_places(places, "entries are written to a negative place")
    new = w.file.cast(src if isinstance(src, int | float) else w.wire(src), value.dtype)
    sizes = w.file.shape(places)
    if not new.ndim:
        new = w.op("Expand", new, sizes, ndim=places.ndim)
    elif w.file.sizes(new) != w.file.sizes(places):  # of more entries the first ones count
        new = w.op("Slice", new, torch.zeros(new.ndim, dtype=torch.int64), sizes)
    return w.op("ScatterElements", value, places, new, axis=dim % value.ndim)


@writes("masked_select")
def _masked_select(w: Writing, x: Any, mask: Any) -> Wire:
    value, chosen = w.wire(x), w.wire(mask)
    if w.file.sizes(value) != w.file.sizes(chosen):  # both as large as they are together
        ndim = max(value.ndim, chosen.ndim)
        either = w.op("Or", chosen, w.file.cast(value, torch.bool), ndim=ndim)
        value = w.op("Where", chosen, value, value, dtype=value.dtype, ndim=ndim)
        chosen = w.op("And", chosen, either, ndim=ndim)
    return w.masked(w.file.reshape(value, [-1]), w.file.reshape(chosen, [-1]), 0)


@writes("flip")
def _flip(w: Writing, x: Any, *dims: Any) -> Wire:
    value = w.wire(x)
    for dim in dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims:
        value = _sliced(w, value, dim, -1, -_END, -1)
    return value


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
    return w.op("Concat", _sliced(w, value, dims, at, _END), _sliced(w, value, dims, 0, at), axis=dims % value.ndim)

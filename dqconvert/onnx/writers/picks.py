"""Operations that pick entries: rows by index or mask, slices, and writes to the entries picked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.values import Wire
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import OURS, PYG

END = 2**62
"""Further than any dimension goes."""


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
        return sliced(w, x, dim, start, start + length or END)
    end = w.math("Add", start, length)
    fits = w.math("LessOrEqual", end, w.file.size(x, dim), dtype=torch.bool)
    w.file.require(fits, "what is narrowed ends before it does")
    return sliced(w, x, dim, start, end)


def sliced(w: Writing, x: Wire, dim: int, start: Any, end: Any, step: int = 1) -> Wire:
    """Returns the slice of a value along a dimension; an `end` beyond it is its end."""
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
                stop = END if part.stop is None else part.stop
                value = sliced(w, value, dim, part.start or 0, stop, part.step or 1)
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
        value = sliced(w, value, dim, -1, -END, -1)
    return value

"""The loops of the chain: over a tile of rows, that stays in the cache while everything is done to it.

What is not written in vectors (:mod:`dqconvert.kernels.cpu.llvm.chain_span`) does one thing per loop: only such loops
are turned into vector instructions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.chain_span import chain_span, pass_span
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, room_before, stream

TILE = 2048  # values: long enough for the vector units, short enough for the first cache


@loop
def tile_rows(columns):  # type: ignore[no-untyped-def]
    """Returns how many rows make a tile."""
    return max(1, TILE // max(1, columns))


class ChainArrays(NamedTuple):
    """A chain as the loops take it; what is left out is empty.

    Attributes:
        bias: `[columns]`. other: `[rows, columns]`, times `alpha`. scaled: whether there is such a factor.
        skip: bool `[rows]`, the rows that grids leave alone. group: uint8 `[rows]`, whose grids a row has.
        relu: Whether there is a ReLU.
        grids: `[groups, 3, 4]`, see :meth:`dqconvert.kernels._grid.Grid.table`. kinds: uint8 `[3]`.
        bounds: `[3, 2]`; what lies outside of them on the way into a grid is noted, if its kind says so.
        bits: uint8 `[rows, columns]`, which gradients pass.
    """

    bias: Any
    other: Any
    alpha: Any
    scaled: bool
    skip: Any
    group: Any
    relu: bool
    grids: Any
    kinds: Any
    bounds: Any
    bits: Any


class Caught(NamedTuple):
    """What was noted in one part of the rows.

    Attributes:
        values: `[3, 2, room]`, under and over the bounds of each grid.
        counts: int64 `[3, 4]`, how many under, over and not finite, and whether the room ran out.
    """

    values: Any
    counts: Any


@loop
def scratch(y, step):  # type: ignore[no-untyped-def]
    """Returns memory for a tile's biases, one row of them for each of its rows."""
    return np.empty(step * y.shape[1], y.dtype)


@loop
def chain_tile(y, first, last, chain, caught, spare, room):  # type: ignore[no-untyped-def]
    """Passes rows `first` to `last` of `y`, in place, through grid 0, the sum, grid 1, the ReLU and grid 2.

    `room`: where the rows are, if they are not in `y` yet, see :func:`dqconvert.kernels.cpu.llvm.memory.room_before`.
    """
    if room.size > 0:
        chain_span_rows(room, 0, first, last, chain, caught, spare)
        columns = y.shape[1]
        stream(room, 0, y, first * columns, (last - first) * columns)
    else:
        chain_span_rows(y, first, first, last, chain, caught, spare)


@loop
def chain_span_rows(y, place, first, last, chain, caught, spare):  # type: ignore[no-untyped-def]
    """Passes rows `first` to `last` through a chain; they lie in `y` from row `place` on."""
    bits, bias, other, skip, group = chain.bits, chain.bias, chain.other, chain.skip, chain.group
    columns = y.shape[1]
    if bias.size > 0:
        for r in range(last - first):
            copy_values(pointer(bias, 0), pointer(spare, r * columns), columns)
    flags = np.empty(4, np.uint8)
    flags[0], flags[1], flags[2], flags[3] = bits.size > 0, bias.size > 0, other.size > 0, chain.relu
    none = np.zeros(3, np.uint8)
    most = caught.values.shape[2]
    begin = first
    while begin < last:
        skipped, own = skip.size > 0 and skip[begin], group_of(group, begin, chain.grids.shape[0])
        end = run_of(skip, group, begin, last)
        at = begin * columns
        chain_span(
            pointer(y, at + (place - first) * columns),
            (end - begin) * columns,
            pointer(bits, at if bits.size > 0 else 0),
            pointer(spare, (begin - first) * columns if bias.size > 0 else 0),
            pointer(other, at if other.size > 0 else 0),
            chain.alpha,
            pointer(flags, 0),
            pointer(none if skipped else chain.kinds, 0),
            pointer(chain.grids, 12 * own),
            pointer(chain.bounds, 0),
            pointer(caught.counts, 0),
            pointer(caught.values, 0),
            most,
        )
        begin = end


@loop
def run_of(skip, group, begin, last):  # type: ignore[no-untyped-def]
    """Returns the end of the rows that are alike from a row on: all rounded, or none, and in one group."""
    if skip.size == 0 and group.size == 0:
        return last
    end = begin + 1
    while (
        end < last and (skip.size == 0 or skip[end] == skip[begin]) and (group.size == 0 or group[end] == group[begin])
    ):
        end += 1
    return end


@loop
def chain_rows(x, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """Sends rows that lie in memory through the chain."""
    columns = x.shape[1]
    step = tile_rows(columns)
    spare, room = scratch(y, step), room_before(y, step)
    far = is_far(y)
    from_, to = x.reshape(-1), room.reshape(-1) if far else y.reshape(-1)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        at = 0 if far else first * columns
        copy_values(pointer(from_, first * columns), pointer(to, at), (last - first) * columns)
        chain_tile(y, first, last, chain, caught, spare, room)


@loop
def pass_rows(grad, passes, to_sum, to_x, to_other, sums, alpha, other, start, stop):  # type: ignore[no-untyped-def]
    """Lets the gradient through where the bits say so; returns its product with `other`, added up."""
    columns = grad.shape[1]
    step = tile_rows(columns)
    flat_grad, flat_passes, flat_partner = grad.reshape(-1), passes.reshape(-1), other.reshape(-1)
    flat_sum, flat_x, flat_other = to_sum.reshape(-1), to_x.reshape(-1), to_other.reshape(-1)
    passing, far = np.empty(step * columns, grad.dtype), is_far(grad)
    total = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, b = first * columns, last * columns
        count = b - a
        if to_x.size > 0:
            pass_on(flat_grad, flat_passes, np.uint8(2), passing, far, flat_x, a, count)
        if to_sum.size > 0:
            pass_on(flat_grad, flat_passes, np.uint8(1), passing, far, flat_sum, a, count)
        if to_other.size > 0 or other.size > 0 or sums.size > 0:
            pass_span(pointer(flat_grad, a), pointer(flat_passes, a), np.uint8(1), pointer(passing, 0), count)
        if to_other.size > 0:
            scale_values(pointer(passing, 0), alpha, pointer(flat_other, a), count)
        if other.size > 0:
            total += dot(passing[:count], flat_partner[a:b])
        if sums.size > 0:
            for r in range(last - first):
                add_values(pointer(passing, r * columns), pointer(sums, 0), columns)
    return total


@loop
def pass_on(grad, passes, bit, room, far, out, at, count):  # type: ignore[no-untyped-def]
    """`pass_span` into `out`, from place `at` on; past the cache, if it is far."""
    to = pointer(room, 0) if far else pointer(out, at)
    pass_span(pointer(grad, at), pointer(passes, at), bit, to, count)
    if far:
        stream(room, 0, out, at, count)


# Where rows are gone through one by one, these are given pointers: an array is counted whenever it is passed on.


@loop
def copy_values(x, y, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] = x[c]


@loop
def clear(y, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] = 0


@loop
def group_of(group, row, count):  # type: ignore[no-untyped-def]
    """Returns the group of a row, of `count` that there are; 0 if none are given.

    None stands for none where a look at an empty array costs too much, for every row: loops are compiled for it.
    """
    if group is None:
        return 0
    return min(np.intp(group[row]), count - 1) if group.size > 0 else 0


@loop
def numbers_of(grid):  # type: ignore[no-untyped-def]
    """Returns a grid as it is given to what is called for every row: scale, zero point, lowest and highest code."""
    return grid[0], grid[1], grid[2], grid[3]


@loop
def stop_clipped(x, numbers, grad, count):  # type: ignore[no-untyped-def]
    """Sets the gradient of values that the grid clips to zero."""
    scale, zero_point, low, high = numbers
    zero = scale - scale
    for c in range(count):
        code = np.rint(x[c] / scale + zero_point)
        grad[c] = zero if (code <= low) | (code >= high) else grad[c]


@loop
def round_values(x, grid, codes, count):  # type: ignore[no-untyped-def]
    scale, zero_point = grid[0], grid[1]
    for c in range(count):
        codes[c] = np.rint(x[c] / scale + zero_point)


@loop
def back_values(codes, grid, y, count):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    for c in range(count):
        q = codes[c]
        q = low if q < low else q  # NaN stays NaN
        q = high if q > high else q
        y[c] = (q - zero_point) * scale


@loop
def add_values(x, y, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] += x[c]


@loop
def add_scaled(x, w, y, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] += w * x[c]


@loop
def divide_values(y, by, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] /= by


@loop
def scale_values(x, w, y, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] = w * x[c]


# The one sum whose order is left to the compiler: in order, it could add only one value at a time.
@loop(fastmath={"reassoc", "nsz"})
def dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for c in range(a.size):
        total += a[c] * b[c]
    return total

"""The loops of the chain: over a tile of rows, that stays in the cache while everything is done to it.

In a tile every value is rounded; the rows that are protected are kept aside meanwhile. One thing per loop: only such
loops are turned into vector instructions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from dqconvert.kernels._select_loops import collect
from dqconvert.kernels._threads import loop

GRID, CLIP, CATCH = 1, 2, 4
"""Bits of a place's `kind`: there is a grid; gradients of clipped values do not pass; values outside are noted."""

_TILE = 2048  # values: long enough for the vector units, short enough for the first cache


@loop
def tile_rows(columns):  # type: ignore[no-untyped-def]
    """How many rows make a tile."""
    return max(1, _TILE // max(1, columns))


class Chain(NamedTuple):
    """A chain as the loops take it; what is left out is empty.

    Attributes:
        bias: `[columns]`. other: `[rows, columns]`, times `alpha` if `scaled`.
        skip: bool `[rows]`, the rows that grids leave alone.
        relu: Whether there is a ReLU.
        grids: `[3, 4]`, see :meth:`dqconvert.kernels._grid.Grid.parameters`. kinds: uint8 `[3]`.
        bounds: `[3, 2]`; what lies outside of them on the way into a grid is noted, if its kind says so.
        bits: uint8 `[rows, columns]`, which gradients pass.
    """

    bias: Any
    other: Any
    alpha: Any
    scaled: bool
    skip: Any
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
    """What a tile needs: codes, and the protected rows with their bits."""
    size = step * y.shape[1]
    return np.empty(size, y.dtype), np.empty(size, y.dtype), np.empty(size, np.uint8)


@loop
def chain_tile(y, first, last, chain, caught, spare):  # type: ignore[no-untyped-def]
    """Rows `first` to `last` of `y`, in place, through grid 0, the sum, grid 1, the ReLU and grid 2."""
    kinds, bits, bias, other = chain.kinds, chain.bits, chain.bias, chain.other
    columns = y.shape[1]
    a, b = first * columns, last * columns
    values = y.reshape(-1)[a:b]
    passes = bits.reshape(-1)[a:b] if bits.size > 0 else bits.reshape(-1)[0:0]
    for c in range(passes.size):
        passes[c] = np.uint8(3)
    if kinds[0] != 0:
        grid_tile(y, first, last, 0, chain, caught, np.uint8(1), passes, spare)
    if bias.size > 0:
        for r in range(first, last):
            add_values(bias, y[r])
    if other.size > 0:
        if chain.scaled:
            add_scaled(other.reshape(-1)[a:b], chain.alpha, values)
        else:
            add_values(other.reshape(-1)[a:b], values)
    if kinds[1] != 0:
        grid_tile(y, first, last, 1, chain, caught, np.uint8(0), passes, spare)
    if chain.relu:
        codes = spare[0]
        if passes.size > 0:
            relu_bits(values, passes)
        relu_values(values, codes)  # not in place: that would be a store on condition, which is not done by vectors
        copy_values(codes, values)
    if kinds[2] != 0:
        grid_tile(y, first, last, 2, chain, caught, np.uint8(0), passes, spare)


@loop
def grid_tile(y, first, last, place, chain, caught, left, passes, spare):  # type: ignore[no-untyped-def]
    """One grid: notes the values outside the bounds, and rounds. `left`: the bits that clipping leaves."""
    codes, kept, marks = spare
    skip, grid, kind, bounds = chain.skip, chain.grids[place], chain.kinds[place], chain.bounds[place]
    columns = y.shape[1]
    values = y.reshape(-1)[first * columns : last * columns]
    if kind & np.uint8(4):
        counts = caught.counts[place]
        below, above = caught.values[place, 0, counts[0] :], caught.values[place, 1, counts[1] :]
        once = np.empty(0, np.int64)
        more, over, odd, full = collect(y, skip, once, first, last, bounds[0], bounds[1], below, above, once, once)
        counts[0] += more
        counts[1] += over
        counts[2] += odd
        counts[3] |= full
    clip = passes.size > 0 and (kind & np.uint8(2)) != 0
    if skip.size > 0:
        for r in range(first, last):
            if skip[r]:
                at = (r - first) * columns
                copy_values(y[r], kept[at : at + columns])
                if clip:
                    copy_values(passes[at : at + columns], marks[at : at + columns])
    round_values(values, grid, codes)
    if clip:
        clip_bits(codes, grid, passes, left)
    back_values(codes, grid, values)
    if skip.size > 0:
        for r in range(first, last):
            if skip[r]:
                at = (r - first) * columns
                copy_values(kept[at : at + columns], y[r])
                if clip:
                    copy_values(marks[at : at + columns], passes[at : at + columns])


@loop
def chain_rows(x, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """The chain, of rows that lie in memory."""
    columns = x.shape[1]
    step = tile_rows(columns)
    spare = scratch(y, step)
    from_, to = x.reshape(-1), y.reshape(-1)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        copy_values(from_[first * columns : last * columns], to[first * columns : last * columns])
        chain_tile(y, first, last, chain, caught, spare)


@loop
def pass_rows(grad, passes, to_sum, to_x, to_other, sums, alpha, other, start, stop):  # type: ignore[no-untyped-def]
    """Lets the gradient through where the bits say so; returns its product with `other`, added up."""
    columns = grad.shape[1]
    step = tile_rows(columns)
    flat_grad, flat_passes, flat_partner = grad.reshape(-1), passes.reshape(-1), other.reshape(-1)
    flat_sum, flat_x, flat_other = to_sum.reshape(-1), to_x.reshape(-1), to_other.reshape(-1)
    passing = np.empty(step * columns, grad.dtype)
    total = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, b = first * columns, last * columns
        if to_x.size > 0:
            pass_values(flat_grad[a:b], flat_passes[a:b], np.uint8(2), flat_x[a:b])
        if to_sum.size > 0:
            pass_values(flat_grad[a:b], flat_passes[a:b], np.uint8(1), flat_sum[a:b])
        if to_other.size > 0 or other.size > 0:
            pass_values(flat_grad[a:b], flat_passes[a:b], np.uint8(1), passing)
            if to_other.size > 0:
                scale_values(passing, alpha, flat_other[a:b])
            if other.size > 0:
                total += dot(passing[: b - a], flat_partner[a:b])
        if sums.size > 0:
            for r in range(first, last):
                add_passing(grad[r], passes[r], np.uint8(1), sums)
    return total


@loop
def copy_values(x, y):  # type: ignore[no-untyped-def]
    for c in range(y.size):
        y[c] = x[c]


@loop
def round_values(x, grid, codes):  # type: ignore[no-untyped-def]
    scale, zero_point = grid[0], grid[1]
    for c in range(x.size):
        codes[c] = np.rint(x[c] / scale + zero_point)


@loop
def clip_bits(codes, grid, bits, left):  # type: ignore[no-untyped-def]
    low, high = grid[2], grid[3]
    for c in range(bits.size):
        bits[c] &= left if (codes[c] <= low) | (codes[c] >= high) else np.uint8(3)


@loop
def back_values(codes, grid, y):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    for c in range(y.size):
        q = codes[c]
        q = low if q < low else q  # NaN stays NaN
        q = high if q > high else q
        y[c] = (q - zero_point) * scale


@loop
def relu_bits(y, bits):  # type: ignore[no-untyped-def]
    zero = y.dtype.type(0)
    for c in range(y.size):
        bits[c] &= np.uint8(0) if y[c] <= zero else np.uint8(3)


@loop
def relu_values(y, out):  # type: ignore[no-untyped-def]
    zero = y.dtype.type(0)
    for c in range(y.size):
        out[c] = zero if y[c] <= zero else y[c]


@loop
def add_values(x, y):  # type: ignore[no-untyped-def]
    for c in range(y.size):
        y[c] += x[c]


@loop
def add_scaled(x, w, y):  # type: ignore[no-untyped-def]
    for c in range(y.size):
        y[c] += w * x[c]


@loop
def divide_values(y, by):  # type: ignore[no-untyped-def]
    for c in range(y.size):
        y[c] /= by


@loop
def scale_values(x, w, y):  # type: ignore[no-untyped-def]
    for c in range(y.size):
        y[c] = w * x[c]


# The one sum whose order is left to the compiler: in order, it could add only one value at a time.
@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for c in range(a.size):
        total += a[c] * b[c]
    return total


@loop
def pass_values(grad, passes, bit, out):  # type: ignore[no-untyped-def]
    zero, none = grad.dtype.type(0), np.uint8(0)
    for c in range(grad.size):
        out[c] = grad[c] if (passes[c] & bit) != none else zero


@loop
def add_passing(grad, passes, bit, sums):  # type: ignore[no-untyped-def]
    zero, none = grad.dtype.type(0), np.uint8(0)
    for c in range(grad.size):
        sums[c] += grad[c] if (passes[c] & bit) != none else zero

"""The chain of :mod:`dqconvert.kernels.chain` on the CPU: compiled loops over rows, and what decides about passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._memory import empty
from dqconvert.kernels._select import Rows, Values, percentiles
from dqconvert.kernels._threads import loop, parts, run


def has_loops(dtype: torch.dtype) -> bool:
    """Whether the loops know a type."""
    return dtype in (torch.float32, torch.float64)


def serves(
    x: Tensor, bias: Tensor | None, other: Tensor | None, alpha: Tensor | None, protected: Tensor | None
) -> bool:
    """Whether the loops can do it: everything in one type that they know, and shaped alike."""
    same = all(t is None or t.dtype == x.dtype for t in (bias, other, alpha))
    fits = (bias is None or (x.dim() == 2 and bias.shape == x.shape[1:])) and (other is None or other.shape == x.shape)
    return has_loops(x.dtype) and x.dim() > 0 and same and fits


def quantize_chain(
    x: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    ranges: Tensor,
    places: Sequence[int],
    ints: Sequence[int],
    floats: Sequence[float],
    relu: bool,
    masked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.chain.plain_quantize_chain`."""
    ends = ranges.tolist()
    grids: list[Grid | None] = [None, None, None]
    for i, (place, scheme) in enumerate(zip(places, Scheme.unpacked(ints, floats), strict=True)):
        grids[place] = Grid(scheme, ends[2 * i], ends[2 * i + 1])
    y = empty(x.shape, x.dtype)
    passes = empty(x.shape if masked else (0,), torch.uint8)
    skip = None if protected is None else protected.contiguous().numpy()
    source, target = matrix(x), matrix(y)
    bits = matrix(passes) if masked else np.empty((0, 0), np.uint8)
    summed = bias is not None or other is not None
    if summed or grids[0] is not None:
        observe(grids[0], Rows(source, skip))
        added = (matrix(other) if other is not None else None, None if alpha is None else float(alpha))
        vector = None if bias is None else bias.detach().contiguous().numpy()
        _enter(source, vector, *added, skip, grids[0], target, bits)
        source = target
    _leave(source, skip, grids[1], relu, grids[2], target, bits, fresh=source is not target)
    new = torch.tensor([end for place in places for end in (grids[place].lo, grids[place].hi)])  # type: ignore[union-attr]
    return y, new, passes


def matrix(t: Tensor) -> NDArray[Any]:
    """A tensor as a contiguous numpy matrix of its rows."""
    t = t.detach()
    return t.contiguous().view(t.size(0), t.numel() // max(t.size(0), 1)).numpy()


def observe(grid: Grid | None, values: Values) -> None:
    """Updates a grid's range."""
    if grid is not None and grid.scheme.observe:
        bounds = (grid.lo, grid.hi) if grid.scheme.momentum < 0 else None
        ends = percentiles(values, grid.scheme.p, bounds)
        grid.merge(ends.lo, ends.hi)


def _leave(
    source: NDArray[Any],
    skip: NDArray[Any] | None,
    first: Grid | None,
    relu: bool,
    second: Grid | None,
    target: NDArray[Any],
    bits: NDArray[Any],
    fresh: bool,
) -> None:
    """Grid 1, ReLU and grid 2."""
    if first is None or second is None:
        observe(first, Rows(source, skip))
        if second is not None and relu:
            _round(source, skip, None, True, None, target, bits, fresh)
            source, relu, fresh = target, False, False
        observe(second, Rows(source, skip))
        _round(source, skip, first, relu, second, target, bits, fresh)
    elif _observe_both(first, second, relu, source, skip):
        _round(source, skip, first, relu, second, target, bits, fresh)
    else:
        observe(first, Rows(source, skip))
        _round(source, skip, first, relu, None, target, bits, fresh)
        observe(second, Rows(target, skip))
        _round(target, skip, None, False, second, target, bits, False)


def _observe_both(first: Grid, second: Grid, relu: bool, values: NDArray[Any], skip: NDArray[Any] | None) -> bool:
    """Updates both ranges in one pass, as percentiles pass through monotone maps; False if that cannot be done.

    The second range sees the rounded values: its percentile is the rounded percentile of the first.
    """
    one, two = first.scheme, second.scheme
    if not (one.observe and two.observe) or one.p != two.p or (one.momentum < 0) != (two.momentum < 0):
        return False
    dtype = values.dtype.type

    def onward(value: float) -> float:
        rounded = first.apply(value, dtype)
        return max(rounded, 0.0) if relu else rounded

    bounds = None
    if one.momentum < 0 and not first.empty and not second.empty:
        # Two steps inside of the second range: whatever stays within, rounded, stays within that range.
        step = 2 * float(first.parameters(dtype)[0])
        reaches_low = not relu or second.lo > 0
        bounds = (max(first.lo, second.lo + step) if reaches_low else first.lo, min(first.hi, second.hi - step))
    before = (first.lo, first.hi)
    rows = Rows(values, skip)
    ends = percentiles(rows, one.p, bounds)
    if ends.total < rows.total:
        return False  # what is infinite is not observed at first, but behind the first grid it is finite
    first.merge(ends.lo, ends.hi)
    if bounds is not None:
        unsure_low = ends.lo is None and onward(bounds[0]) < second.lo
        unsure_high = ends.hi is None and onward(bounds[1]) > second.hi
        if unsure_low or unsure_high:
            first.lo, first.hi = before
            ends = percentiles(rows, one.p, None)
            first.merge(ends.lo, ends.hi)
    if ends.total > 0:
        lo = None if ends.lo is None else onward(ends.lo)
        hi = None if ends.hi is None else onward(ends.hi)
        second.merge(lo, hi)
    return True


def _enter(
    x: NDArray[Any],
    bias: NDArray[Any] | None,
    other: NDArray[Any] | None,
    alpha: float | None,
    skip: NDArray[Any] | None,
    grid: Grid | None,
    target: NDArray[Any],
    bits: NDArray[Any],
) -> None:
    """Grid 0 and the sum."""
    nothing = np.empty((0, 0), x.dtype)
    args = (
        x,
        nothing[0:0].reshape(0) if bias is None else bias,
        nothing if other is None else other,
        x.dtype.type(1 if alpha is None else alpha),
        alpha is not None,
        np.empty(0, np.bool_) if skip is None else skip,
        np.empty(0, x.dtype) if grid is None else grid.parameters(x.dtype.type),
        grid is not None and grid.scheme.clip,
        target,
        bits,
    )
    run(lambda _, start, stop: enter_rows(*args, start, stop), parts(x.shape[0], x.size))


def _round(
    x: NDArray[Any],
    skip: NDArray[Any] | None,
    first: Grid | None,
    relu: bool,
    second: Grid | None,
    target: NDArray[Any],
    bits: NDArray[Any],
    fresh: bool,
) -> None:
    nothing = np.empty(0, x.dtype)
    args = (
        x,
        np.empty(0, np.bool_) if skip is None else skip,
        nothing if first is None else first.parameters(x.dtype.type),
        first is not None and first.scheme.clip,
        relu,
        nothing if second is None else second.parameters(x.dtype.type),
        second is not None and second.scheme.clip,
        target,
        bits,
        fresh,
    )
    run(lambda _, start, stop: round_rows(*args, start, stop), parts(x.shape[0], x.size))


def pass_gradient(
    grad: Tensor, passes: Tensor, other: Tensor | None, alpha: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.chain.plain_quantize_chain_grad`."""
    columns = grad.size(-1)
    at_sum, at_x, at_other = (empty(grad.shape if wanted[i] else (0,), grad.dtype) for i in (0, 1, 3))
    cuts = parts(grad.numel() // columns, grad.numel())
    sums = torch.zeros((len(cuts), columns if wanted[2] else 0), dtype=grad.dtype)
    flat = [t.reshape(-1, columns).numpy() for t in (grad.contiguous(), passes, at_sum, at_x, at_other)]
    factor = np.dtype(flat[0].dtype).type(1 if alpha is None else float(alpha))
    partner = flat[0][:0] if other is None or not wanted[4] else matrix(other).reshape(-1, columns)

    def task(part: int, start: int, stop: int) -> float:
        total: float = pass_rows(*flat, sums[part].numpy(), factor, partner, start, stop)
        return total

    dots = run(task, cuts)
    at_alpha = torch.tensor([sum(dots)] if wanted[4] else [], dtype=grad.dtype)
    return at_sum, at_x, sums.sum(0), at_other, at_alpha


# Rows are taken a tile at a time: long enough for the vector units, short enough for the first cache. In a tile every
# value is rounded; the rows that are protected are then done once more, without rounding.
_TILE = 2048


@loop
def tile_rows(columns):  # type: ignore[no-untyped-def]
    """How many rows make a tile."""
    return max(1, _TILE // max(1, columns))


@loop
def enter_rows(x, bias, other, alpha, scaled, skip, grid, clip, y, bits, start, stop):  # type: ignore[no-untyped-def]
    """Grid 0, `+ bias`, `+ alpha * other`; starts the bits."""
    columns = x.shape[1]
    step = tile_rows(columns)
    codes = np.empty(step * columns, x.dtype)
    masked = bits.size > 0
    flat_x, flat_y, flat_bits, flat_other = x.reshape(-1), y.reshape(-1), bits.reshape(-1), other.reshape(-1)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, b = first * columns, last * columns
        if masked:
            flat_bits[a:b] = np.uint8(3)
        if grid.size > 0:
            round_values(flat_x[a:b], grid, codes)
            if masked and clip:
                clip_bits(codes, grid, flat_bits[a:b], np.uint8(1))
            back_values(codes, grid, flat_y[a:b])
            if skip.size > 0:
                for r in range(first, last):
                    if skip[r]:
                        copy_values(x[r], y[r])
                        if masked:
                            bits[r] = np.uint8(3)
        else:
            copy_values(flat_x[a:b], flat_y[a:b])
        if bias.size > 0:
            for r in range(first, last):
                add_values(bias, y[r])
        if other.size > 0:
            if scaled:
                add_scaled(flat_other[a:b], alpha, flat_y[a:b])
            else:
                add_values(flat_other[a:b], flat_y[a:b])


@loop
def round_rows(x, skip, first_grid, clip1, relu, second_grid, clip2, y, bits, fresh, start, stop):  # type: ignore[no-untyped-def]
    """Grid 1, ReLU, grid 2; `y` may be `x`. `fresh`: the bits are not there yet."""
    columns = x.shape[1]
    step = tile_rows(columns)
    codes = np.empty(step * columns, x.dtype)
    value = np.empty((step, columns), x.dtype)
    before = np.empty((step, columns), np.uint8)
    masked = bits.size > 0
    flat_x, flat_y, flat_bits, flat_value, flat_before = (
        x.reshape(-1),
        y.reshape(-1),
        bits.reshape(-1),
        value.reshape(-1),
        before.reshape(-1),
    )
    blocked_to, blocked_from = x.dtype.type(-np.inf), x.dtype.type(np.inf)
    if first_grid.size > 0:
        zero_point, low, high = first_grid[1], first_grid[2], first_grid[3]
        blocked_to = zero_point if relu else low  # a code at the zero point or below is not positive
        blocked_from = high if clip1 or high <= zero_point else blocked_from
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, b = first * columns, last * columns
        size = b - a
        v = flat_value[:size]
        if masked and fresh:
            flat_bits[a:b] = np.uint8(3)
        if masked and not fresh and skip.size > 0:
            copy_values(flat_bits[a:b], flat_before[:size])
        if first_grid.size > 0:
            round_values(flat_x[a:b], first_grid, codes)
            if masked and (clip1 or relu):
                block_bits(codes, blocked_to, blocked_from, flat_bits[a:b])
            if relu:
                back_relu_values(codes, first_grid, v)
            else:
                back_values(codes, first_grid, v)
        elif relu:
            if masked:
                relu_bits(flat_x[a:b], flat_bits[a:b])
            relu_values(flat_x[a:b], v)
        else:
            copy_values(flat_x[a:b], v)
        if second_grid.size > 0:
            round_values(v, second_grid, codes)
            if masked and clip2:
                clip_bits(codes, second_grid, flat_bits[a:b], np.uint8(0))
            back_values(codes, second_grid, v)
        if skip.size > 0:
            for r in range(first, last):
                if skip[r]:
                    row = value[r - first]
                    copy_values(x[r], row)
                    if masked:
                        if fresh:
                            bits[r] = np.uint8(3)
                        else:
                            copy_values(before[r - first], bits[r])
                    if relu:
                        if masked:
                            relu_bits(row, bits[r])
                        relu_values(row, codes)
                        copy_values(codes, row)
        copy_values(v, flat_y[a:b])


# One thing per loop: only such loops are turned into vector instructions.


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
def block_bits(codes, to, from_, bits):  # type: ignore[no-untyped-def]
    for c in range(bits.size):
        bits[c] &= np.uint8(0) if (codes[c] <= to) | (codes[c] >= from_) else np.uint8(3)


@loop
def back_relu_values(codes, grid, y):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    zero = y.dtype.type(0)
    for c in range(y.size):
        q = codes[c]
        q = low if q < low else q
        q = high if q > high else q
        value = (q - zero_point) * scale
        y[c] = zero if value <= zero else value


@loop
def relu_bits(y, bits):  # type: ignore[no-untyped-def]
    zero = y.dtype.type(0)
    for c in range(y.size):
        bits[c] &= np.uint8(0) if y[c] <= zero else np.uint8(3)


@loop
def relu_values(y, out):  # type: ignore[no-untyped-def]
    # Not in place: that would be a store on condition, which is not done by vectors.
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

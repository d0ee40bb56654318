"""Loops of :mod:`dqconvert.kernels.learned`: a tile of rows goes through its chain once more, and its gradient back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid, Steps
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, stream
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import (
    add_scaled,
    add_values,
    copy_values,
    dot,
    numbers_of,
    scale_values,
    tile_rows,
)


def back(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.learned.plain_learned_chain_grad`."""
    steps = Steps.unpacked(ints, floats)
    rows = matrix(x)
    dtype = rows.dtype.type
    ends = iter(ranges.tolist())
    grids, there = np.zeros((3, 4), dtype), np.zeros(3, np.bool_)
    for place, scheme in enumerate(steps.schemes):
        if scheme is not None:
            grids[place], there[place] = Grid(scheme, next(ends), next(ends)).parameters(dtype), True
    cuts = parts(len(rows), rows.size)
    to_x = empty(x.shape, x.dtype)
    to_other = empty(x.shape if other is not None else (0,), x.dtype)
    to_bias = torch.zeros((len(cuts), 0 if bias is None else rows.shape[1]), dtype=x.dtype)
    sums = np.zeros((len(cuts), 3, 3))
    nothing = rows[:0]
    added = (
        nothing.reshape(-1) if bias is None else array(bias),
        nothing if other is None else matrix(other),
        dtype(1 if alpha is None else float(alpha)),
        alpha is not None,
    )
    out = (array(to_x).reshape(rows.shape), matrix(to_other) if other is not None else nothing)

    def task(part: int, start: int, stop: int) -> float:
        args = (matrix(grad), rows, *added, flags(protected), there, grids, steps.relu, *out)
        total: float = chain_back(*args, array(to_bias[part]), sums[part], start, stop)
        return total

    dots = run(task, cuts)
    inside, below, above = sums.sum(0)[there].T
    step = inside / (grids[there, 3] - grids[there, 2])
    return (
        to_x,
        to_bias.sum(0),
        to_other,
        torch.tensor([sum(dots)] if other is not None and alpha is not None else [], dtype=x.dtype),
        torch.from_numpy(np.stack([below - step, above + step], 1).reshape(-1)).float(),
    )


@loop
def chain_back(  # type: ignore[no-untyped-def]
    grad, x, bias, other, alpha, scaled, skip, there, grids, relu, to_x, to_other, to_bias, sums, start, stop
):
    """Computes the gradients of rows `start` to `stop`; returns that of the sum times `other`, added up, if `scaled`.

    What is left out is empty. `there`: which grids are; `sums`: float64 `[3, 3]`, for each what :func:`grid_back` adds
    up.
    """
    columns = x.shape[1]
    step = tile_rows(columns)
    at = np.empty(step * columns, x.dtype)
    total, behind = np.empty_like(at), np.empty_like(at)
    far = is_far(to_x)
    flat_x, flat_grad, flat_other = x.reshape(-1), grad.reshape(-1), other.reshape(-1)
    flat_to, flat_to_other = to_x.reshape(-1), to_other.reshape(-1)
    product = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, size = first * columns, (last - first) * columns
        begin = first
        while begin < last:
            skipped, end = skip.size > 0 and skip[begin], run_of(skip, begin, last)
            b, c, count = begin * columns, (begin - first) * columns, (end - begin) * columns
            one, two, three = there[0] and not skipped, there[1] and not skipped, there[2] and not skipped
            through(pointer(flat_x, b), one, grids[0], pointer(total, c), count)
            if bias.size > 0:
                for r in range(end - begin):
                    add_values(pointer(bias, 0), pointer(total, c + r * columns), columns)
            if other.size > 0:
                add_scaled(pointer(flat_other, b), alpha, pointer(total, c), count)
            copy_values(pointer(flat_grad, b), pointer(at, c), count)
            if two and three:
                floor = x.dtype.type(0 if relu else -np.inf)
                here, back_ = pointer(total, c), pointer(at, c)
                found = both_sums(here, numbers_of(grids[1]), numbers_of(grids[2]), floor, back_, count)
                for place in range(2):
                    for i in range(3):
                        sums[1 + place, i] += found[3 * place + i]
            elif three or relu:
                through(pointer(total, c), two, grids[1], pointer(behind, c), count)
                if relu:
                    cut(pointer(behind, c), count, x.dtype.type(0))
                if three:
                    grid_back(pointer(behind, c), numbers_of(grids[2]), pointer(at, c), count, sums[2])
                if relu:
                    stop_cut(pointer(behind, c), pointer(at, c), count, x.dtype.type(0))
            if two and not three:
                grid_back(pointer(total, c), numbers_of(grids[1]), pointer(at, c), count, sums[1])
            begin = end
        if to_other.size > 0:
            scale_values(pointer(at, 0), alpha, pointer(flat_to_other, a), size)
        if scaled and other.size > 0:
            product += dot(at[:size], flat_other[a : a + size])
        if to_bias.size > 0:
            for r in range(last - first):
                add_values(pointer(at, r * columns), pointer(to_bias, 0), columns)
        begin = first if there[0] else last
        while begin < last:
            end = run_of(skip, begin, last)
            if not (skip.size > 0 and skip[begin]):
                here, count = pointer(at, (begin - first) * columns), (end - begin) * columns
                grid_back(pointer(flat_x, begin * columns), numbers_of(grids[0]), here, count, sums[0])
            begin = end
        if far:
            stream(at, 0, flat_to, a, size)
        else:
            copy_values(pointer(at, 0), pointer(flat_to, a), size)
    return product


@loop
def run_of(skip, begin, last):  # type: ignore[no-untyped-def]
    """Returns the end of the rows that are alike from a row on: all rounded, or none."""
    if skip.size == 0:
        return last
    end = begin + 1
    while end < last and skip[end] == skip[begin]:
        end += 1
    return end


@loop
def through(x, rounded, grid, y, count):  # type: ignore[no-untyped-def]
    """Copies values, rounded to a grid if they are to be."""
    if not rounded:
        copy_values(x, y, count)
        return
    scale, zero_point, low, high = numbers_of(grid)
    for c in range(count):
        q = np.rint(x[c] / scale + zero_point)
        q = low if q < low else q  # NaN stays NaN
        q = high if q > high else q
        y[c] = (q - zero_point) * scale


@loop
def cut(y, count, zero):  # type: ignore[no-untyped-def]
    for c in range(count):
        y[c] = zero if y[c] <= zero else y[c]


@loop
def stop_cut(y, grad, count, zero):  # type: ignore[no-untyped-def]
    for c in range(count):
        grad[c] = zero if y[c] <= zero else grad[c]


@loop
def grid_back(x, numbers, grad, count, sums):  # type: ignore[no-untyped-def]
    """Zeroes, in place, the gradient of values that lie at the ends of a grid or beyond; adds to `sums`, of the
    gradient: that of values inside times how far they were rounded, in steps; that below; that above."""
    inside, below, above = grid_sums(x, numbers, grad, count)
    sums[0] += inside
    sums[1] += below
    sums[2] += above


# The order of the sums is left to the compiler: in order, it could add only one value at a time. One loop for two grids
# takes half the time of a loop for each thing that is done.
@loop(fastmath={"reassoc", "nsz"})
def both_sums(x, first, second, floor, grad, count):  # type: ignore[no-untyped-def]
    """The same of two grids, between which values are cut at `floor`; the sums of the first, and of the second."""
    scale, zero_point, low, high = first
    scale_2, zero_point_2, low_2, high_2 = second
    zero = scale - scale
    inside, below, above, inside_2, below_2, above_2 = zero, zero, zero, zero, zero, zero
    for c in range(count):
        code = x[c] / scale + zero_point
        rounded = np.rint(code)
        under, over = code <= low, code >= high
        clipped = under | over
        q = low if rounded < low else rounded
        q = high if q > high else q
        value = (q - zero_point) * scale
        cut_off = value <= floor
        value = floor if cut_off else value
        code_2 = value / scale_2 + zero_point_2
        under_2, over_2 = code_2 <= low_2, code_2 >= high_2
        clipped_2 = under_2 | over_2
        stopped = clipped_2 | cut_off
        g = grad[c]
        moved_2 = g * (np.rint(code_2) - code_2)
        inside_2 += zero if clipped_2 else moved_2
        below_2 += g if under_2 else zero
        above_2 += g if over_2 else zero
        g = zero if stopped else g
        moved = g * (rounded - code)
        inside += zero if clipped else moved
        below += g if under else zero
        above += g if over else zero
        grad[c] = zero if clipped else g
    return inside, below, above, inside_2, below_2, above_2


@loop(fastmath={"reassoc", "nsz"})
def grid_sums(x, numbers, grad, count):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = numbers
    zero = scale - scale
    inside, below, above = zero, zero, zero
    for c in range(count):
        code = x[c] / scale + zero_point
        g = grad[c]
        under, over = code <= low, code >= high
        clipped = under | over
        inside += zero if clipped else g * (np.rint(code) - code)
        below += g if under else zero
        above += g if over else zero
        grad[c] = zero if clipped else g
    return inside, below, above

"""Loops of :mod:`dqconvert.kernels.learned`: a tile of rows goes through its chain once more, and its gradient back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._steps import Chain
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import arrays_of, grids_of, matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, stream
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import (
    ChainArrays,
    add_scaled,
    add_values,
    copy_values,
    dot,
    group_of,
    numbers_of,
    run_of,
    scale_values,
    tile_rows,
)


def learned_arrays(chain: Chain, rows: NDArray[Any]) -> ChainArrays:
    """Returns the chain that an operator is given, as the loops take it for such rows."""
    return arrays_of(chain, grids_of(chain), chain.steps.relu, rows, None, {})


def room_for_sums(chain: ChainArrays, parts: int) -> NDArray[np.float64]:
    """Returns where parts add up what :func:`grid_back` finds, for each group and grid."""
    return np.zeros((parts, len(chain.grids), 3, 3))


def chain_ends_back(chain: ChainArrays, sums: NDArray[np.float64], ranges: Tensor) -> Tensor:
    """Returns the gradients of the ranges of a chain, by what was added up in each part."""
    there = chain.kinds > 0
    return ends_back(sums.sum(0)[:, there], chain.grids[:, there], ranges)


def ends_back(sums: NDArray[np.float64], grids: NDArray[Any], ranges: Tensor) -> Tensor:
    """Returns the gradients of ranges `[2 * grids]` or `[2 * grids, groups]`.

    Args:
        sums: `[groups, grids, 3]`, of :func:`grid_back`.
        grids: `[groups, grids, 4]`.
    """
    step = sums[..., 0] / (grids[..., 3] - grids[..., 2])
    ends = np.stack([sums[..., 1] - step, sums[..., 2] + step], 2).reshape(len(sums), -1)
    return torch.from_numpy(ends.T.copy()).float().reshape(ranges.shape)


def back(grad: Tensor, x: Tensor, given: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.learned.plain_learned_chain_grad`."""
    rows, (bias, other, alpha) = matrix(x), given.added
    chain = learned_arrays(given, rows)
    cuts = parts(len(rows), rows.size)
    to_x = empty(x.shape, x.dtype)
    to_other = empty(x.shape if other is not None else (0,), x.dtype)
    to_bias = torch.zeros((len(cuts), 0 if bias is None else rows.shape[1]), dtype=x.dtype)
    sums = room_for_sums(chain, len(cuts))
    out = (array(to_x).reshape(rows.shape), rows[:0] if other is None else matrix(to_other))

    def task(part: int, start: int, stop: int) -> float:
        return chain_back(matrix(grad), rows, chain, *out, array(to_bias[part]), sums[part], start, stop)

    dots = run(task, cuts)
    asked = other is not None and alpha is not None
    to_alpha = torch.tensor([sum(dots)] if asked else [], dtype=x.dtype)
    return to_x, to_bias.sum(0), to_other, to_alpha, chain_ends_back(chain, sums, given.ranges)


@loop
def chain_back(grad, x, chain, to_x, to_other, to_bias, sums, start, stop):  # type: ignore[no-untyped-def]
    """Computes the gradients of rows `start` to `stop`; returns that of `alpha`, if it is asked for.

    What is left out is empty. `sums`: float64 `[groups, 3, 3]`, for each grid what :func:`grid_back` adds up.
    """
    columns = x.shape[1]
    step = tile_rows(columns)
    at = np.empty(step * columns, x.dtype)
    total, behind = np.empty_like(at), np.empty_like(at)
    far = is_far(to_x)
    flat_x, flat_to = x.reshape(-1), to_x.reshape(-1)
    product = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, size = first * columns, (last - first) * columns
        product += tile_back(flat_x, a, grad, chain, at, total, behind, to_other, to_bias, sums, first, last)
        if far:
            stream(at, 0, flat_to, a, size)
        else:
            copy_values(pointer(at, 0), pointer(flat_to, a), size)
    return product


@loop
def tile_back(x, place, grad, chain, at, total, behind, to_other, to_bias, sums, first, last):  # type: ignore[no-untyped-def]
    """The same of a few rows, whose gradients become `at`; they lie in `x`, flat, from `place` on."""
    columns = grad.shape[1]
    bias, other, alpha, skip, group, kinds, grids, relu = (
        chain.bias,
        chain.other,
        chain.alpha,
        chain.skip,
        chain.group,
        chain.kinds,
        chain.grids,
        chain.relu,
    )
    flat_grad, flat_other, flat_to_other = grad.reshape(-1), other.reshape(-1), to_other.reshape(-1)
    zero = x.dtype.type(0)
    a, size = first * columns, (last - first) * columns
    begin = first
    while begin < last:
        skipped, end = skip.size > 0 and skip[begin], run_of(skip, group, begin, last)
        own = group_of(group, begin, grids.shape[0])
        b, c, count = begin * columns, (begin - first) * columns, (end - begin) * columns
        rounded = not skipped
        one, two, three = rounded and kinds[0] > 0, rounded and kinds[1] > 0, rounded and kinds[2] > 0
        through(pointer(x, place + c), one, numbers_of(grids[own, 0]), pointer(total, c), count)
        if bias.size > 0:
            for r in range(end - begin):
                add_values(pointer(bias, 0), pointer(total, c + r * columns), columns)
        if other.size > 0:
            add_scaled(pointer(flat_other, b), alpha, pointer(total, c), count)
        copy_values(pointer(flat_grad, b), pointer(at, c), count)
        if two and three:
            floor = x.dtype.type(0 if relu else -np.inf)
            one_, two_ = numbers_of(grids[own, 1]), numbers_of(grids[own, 2])
            found = both_sums(pointer(total, c), one_, two_, floor, pointer(at, c), count)
            for which in range(2):
                for i in range(3):
                    sums[own, 1 + which, i] += found[3 * which + i]
        elif three or relu:
            through(pointer(total, c), two, numbers_of(grids[own, 1]), pointer(behind, c), count)
            if relu:
                cut(pointer(behind, c), count, zero)
            if three:
                place_of = pointer(sums, 9 * own + 6)
                grid_back(pointer(behind, c), numbers_of(grids[own, 2]), pointer(at, c), count, place_of)
            if relu:
                stop_cut(pointer(behind, c), pointer(at, c), count, zero)
        if two and not three:
            grid_back(pointer(total, c), numbers_of(grids[own, 1]), pointer(at, c), count, pointer(sums, 9 * own + 3))
        begin = end
    if to_other.size > 0:
        scale_values(pointer(at, 0), alpha, pointer(flat_to_other, a), size)
    if to_bias.size > 0:
        for r in range(last - first):
            add_values(pointer(at, r * columns), pointer(to_bias, 0), columns)
    product = 0.0
    if chain.scaled and other.size > 0:
        product += dot(at[:size], flat_other[a : a + size])
    begin = first if kinds[0] > 0 else last
    while begin < last:
        end, own = run_of(skip, group, begin, last), group_of(group, begin, grids.shape[0])
        if not (skip.size > 0 and skip[begin]):
            c, count = (begin - first) * columns, (end - begin) * columns
            grid_back(pointer(x, place + c), numbers_of(grids[own, 0]), pointer(at, c), count, pointer(sums, 9 * own))
        begin = end
    return product


@loop
def through(x, rounded, numbers, y, count):  # type: ignore[no-untyped-def]
    """Copies values, rounded to a grid if they are to be."""
    if not rounded:
        copy_values(x, y, count)
        return
    scale, zero_point, low, high = numbers
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

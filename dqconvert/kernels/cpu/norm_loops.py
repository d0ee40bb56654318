"""The loops of :mod:`dqconvert.kernels.batch_norm`. Columns are added up in double precision, as torch does; of the
gradients, the sums of a few rows are."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.chain_span import pass_span
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, room_before
from dqconvert.kernels.cpu.tile import add_values, chain_tile, copy_values, scratch, tile_rows

TOGETHER = 32
"""Rows whose gradients are added up in their own precision."""


@loop
def moments(x, mean, square, start, stop):  # type: ignore[no-untyped-def]
    """Mean and sum of squared distances from it, of each column of some rows; float64 `[columns]`.

    A tile at a time, merged as Chan, Golub and LeVeque do (1983): what squares cancel is small within a tile.
    """
    columns = x.shape[1]
    step = tile_rows(columns)
    here, spread = np.empty(columns, np.float64), np.empty(columns, np.float64)
    mean[:] = 0
    square[:] = 0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        here[:] = 0
        for r in range(first, last):
            add_values(pointer(x, r * columns), pointer(here, 0), columns)
        here /= last - first
        spread[:] = 0
        for r in range(first, last):
            add_squares(pointer(x, r * columns), pointer(here, 0), pointer(spread, 0), columns)
        before, rows = first - start, last - first
        share = rows / (before + rows)
        for c in range(columns):
            distance = here[c] - mean[c]
            mean[c] += distance * share
            square[c] += spread[c] + distance * distance * before * share


@loop
def add_squares(x, mean, sums, columns):  # type: ignore[no-untyped-def]
    for c in range(columns):
        distance = x[c] - mean[c]
        sums[c] += distance * distance


@loop
def add_products(grad, x, mean, sums, columns):  # type: ignore[no-untyped-def]
    for c in range(columns):
        sums[c] += grad[c] * (x[c] - mean[c])


@loop
def chain_normed(x, scale, shift, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """Sends rows, scaled and shifted by column, through the chain."""
    columns = x.shape[1]
    step = tile_rows(columns)
    spare, room = scratch(y, step), room_before(y, step)
    made = room if is_far(y) else y
    for first in range(start, stop, step):
        last = min(first + step, stop)
        base = first if is_far(y) else 0
        for r in range(first, last):
            to = pointer(made, (r - base) * columns)
            scale_row(pointer(x, r * columns), pointer(scale, 0), pointer(shift, 0), to, columns)
        chain_tile(y, first, last, chain, caught, spare, room)


@loop
def scale_row(x, scale, shift, y, columns):  # type: ignore[no-untyped-def]
    for c in range(columns):
        y[c] = x[c] * scale[c] + shift[c]


@loop
def sums_back(grad, passes, bit, x, mean, to_shift, to_spread, start, stop):  # type: ignore[no-untyped-def]
    """Sums of the gradient, and of its products with the distances from the mean; float64 `[columns]`.

    Of the gradient counts what passes: where `passes` (empty: everywhere) has the bit.
    """
    columns = x.shape[1]
    to_shift[:] = 0
    to_spread[:] = 0
    row, shift, spread = np.empty(columns, grad.dtype), np.empty(columns, grad.dtype), np.empty(columns, grad.dtype)
    for first in range(start, stop, TOGETHER):
        shift[:] = 0
        spread[:] = 0
        for r in range(first, min(first + TOGETHER, stop)):
            at = r * columns
            reach(grad, passes, at, bit, row)
            add_values(pointer(row, 0), pointer(shift, 0), columns)
            add_products(pointer(row, 0), pointer(x, at), pointer(mean, 0), pointer(spread, 0), columns)
        add_values(pointer(shift, 0), pointer(to_shift, 0), columns)
        add_values(pointer(spread, 0), pointer(to_spread, 0), columns)


@loop
def reach(grad, passes, at, bit, row):  # type: ignore[no-untyped-def]
    """Copies a row of the gradient, from value `at` on, where it passes."""
    if passes.size > 0:
        pass_span(pointer(grad, at), pointer(passes, at), bit, pointer(row, 0), row.size)
    else:
        copy_values(pointer(grad, at), pointer(row, 0), row.size)


@loop
def normed_back(grad, passes, bit, x, mean, scale, shift, slope, to_x, start, stop):  # type: ignore[no-untyped-def]
    """`scale * (grad - shift - slope * (x - mean))`, of the gradient that passes."""
    columns = x.shape[1]
    row = np.empty(columns, grad.dtype)
    for r in range(start, stop):
        at = r * columns
        reach(grad, passes, at, bit, row)
        numbers = (pointer(mean, 0), pointer(scale, 0), pointer(shift, 0), pointer(slope, 0))
        back_row(pointer(row, 0), pointer(x, at), numbers, pointer(to_x, at), columns)


@loop
def back_row(grad, x, numbers, to_x, columns):  # type: ignore[no-untyped-def]
    mean, scale, shift, slope = numbers
    for c in range(columns):
        to_x[c] = scale[c] * (grad[c] - shift[c] - slope[c] * (x[c] - mean[c]))

"""The loops of :mod:`dqconvert.kernels.batch_norm`. Columns are added up in double precision, as torch does."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels._stream import is_far, room_before
from dqconvert.kernels._threads import loop
from dqconvert.kernels._tile import chain_tile, copy_values, pass_values, scratch, tile_rows


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
            add_wide(x[r], here)
        here /= last - first
        spread[:] = 0
        for r in range(first, last):
            add_squares(x[r], here, spread)
        before, rows = first - start, last - first
        share = rows / (before + rows)
        for c in range(columns):
            distance = here[c] - mean[c]
            mean[c] += distance * share
            square[c] += spread[c] + distance * distance * before * share


@loop
def add_wide(x, sums):  # type: ignore[no-untyped-def]
    for c in range(sums.size):
        sums[c] += x[c]


@loop
def add_squares(x, mean, sums):  # type: ignore[no-untyped-def]
    for c in range(sums.size):
        distance = x[c] - mean[c]
        sums[c] += distance * distance


@loop
def add_products(grad, x, mean, sums):  # type: ignore[no-untyped-def]
    for c in range(sums.size):
        sums[c] += grad[c] * (x[c] - mean[c])


@loop
def chain_normed(x, scale, shift, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """The chain, of rows that are scaled and shifted by column."""
    step = tile_rows(x.shape[1])
    spare, room = scratch(y, step), room_before(y, step)
    made = room if is_far(y) else y
    for first in range(start, stop, step):
        last = min(first + step, stop)
        base = first if is_far(y) else 0
        for r in range(first, last):
            scale_row(x[r], scale, shift, made[r - base])
        chain_tile(y, first, last, chain, caught, spare, room)


@loop
def scale_row(x, scale, shift, y):  # type: ignore[no-untyped-def]
    for c in range(y.size):
        y[c] = x[c] * scale[c] + shift[c]


@loop
def sums_back(grad, passes, bit, x, mean, to_shift, to_spread, start, stop):  # type: ignore[no-untyped-def]
    """Sums of the gradient, and of its products with the distances from the mean; float64 `[columns]`.

    Of the gradient counts what passes: where `passes` (empty: everywhere) has the bit.
    """
    to_shift[:] = 0
    to_spread[:] = 0
    row = np.empty(x.shape[1], grad.dtype)
    for r in range(start, stop):
        reach(grad[r], passes, r, bit, row)
        add_wide(row, to_shift)
        add_products(row, x[r], mean, to_spread)


@loop
def reach(grad, passes, r, bit, row):  # type: ignore[no-untyped-def]
    if passes.size > 0:
        pass_values(grad, passes[r], bit, row)
    else:
        copy_values(grad, row)


@loop
def normed_back(grad, passes, bit, x, mean, scale, shift, slope, to_x, start, stop):  # type: ignore[no-untyped-def]
    """`scale * (grad - shift - slope * (x - mean))`, of the gradient that passes."""
    row = np.empty(x.shape[1], grad.dtype)
    for r in range(start, stop):
        reach(grad[r], passes, r, bit, row)
        back_row(row, x[r], mean, scale, shift, slope, to_x[r])


@loop
def back_row(grad, x, mean, scale, shift, slope, to_x):  # type: ignore[no-untyped-def]
    for c in range(to_x.size):
        to_x[c] = scale[c] * (grad[c] - shift[c] - slope[c] * (x[c] - mean[c]))

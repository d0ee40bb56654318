"""Loops over rows for :mod:`dqconvert.kernels.integer.linear`: from a few rows to their sums, and to codes."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import code_of_value, grid_at, quantize_values
from dqconvert.kernels.cpu.integer.finish import finish_pointed, finish_row, pointed
from dqconvert.kernels.cpu.llvm.listed import list_values, multiply_listed
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.multiply import GROUP, multiply_pairs
from dqconvert.kernels.cpu.tile import group_of

ROWS = 48
"""Rows that are worked on together: a multiple of the strips' height."""

SPAN = 1 << 10
"""Pairs of the depth that are read together: rows one piece after the other, into the second cache."""

BLOCK = 1 << 7
"""Pairs of the depth that are multiplied together: a group of the weight's columns stays in the first cache."""

NARROW = 1 << 5
"""Columns up to which the rows of a few are one long row: less than two vectors cost as much as two."""

WIDE = 1 << 5
"""Values of a row from which it is worth to look for zeros among them."""

EXACT = 1 << 14
"""Pairs of the depth whose sums fit into int32, whatever the codes: 2^15 * 255^2 < 2^31. A multiple of `SPAN`."""


@loop
def linear_rows(x, packed_input, of_grid, grids, weight, pairs, columns, finish, out, start, stop):  # type: ignore[no-untyped-def]
    """Computes rows `start` to `stop`; True if there is NaN among the values. `pairs`: of the whole depth.

    `grids`: float32 `[groups, 4]`, that of the rows of each group; None: all have `of_grid`.
    """
    c_row = (columns + GROUP - 1) // GROUP * GROUP
    a_row, b_group, grid = 2 * min(pairs, SPAN), pairs * 2 * GROUP, CodeGrid(*of_grid)
    tile, sums = np.zeros(ROWS * a_row, np.int16), np.zeros(ROWS * c_row, np.int32)
    totals = np.zeros(ROWS * c_row if pairs > EXACT else 0, np.int64)
    # Where zero has the grid's own code, a value of zero adds nothing: rows that are mostly zeros are listed.
    listing = x.itemsize > 1 and x.shape[1] >= WIDE and code_of_value(np.float32(0), grid) == grid.zero
    if grids is not None:
        for own in range(grids.shape[0]):
            listing &= code_of_value(np.float32(0), grid_at(grids, own)) == grids[own, 1]
    room = ROWS * a_row if listing else 0
    places, factors, counts = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(ROWS, np.int64)
    group, ends = finish.group, pointed(finish, columns)
    codes, one, missing = np.empty(columns, np.uint8), np.float32(1), False
    # Rows of few columns are requantized as one long row: what is left of a vector costs as much as a whole one.
    alike = not (finish.packed or finish.by_column or finish.shares.size > 0) and finish.number == 1
    joined = columns <= NARROW and totals.size == 0 and alike and stop - start >= ROWS
    many = join_rows(finish, ROWS if joined else 0)
    for first in range(start, stop, ROWS):
        rows = min(ROWS, stop - first)
        totals[:] = 0
        for begin in range(0, pairs, SPAN):  # a piece of the depth, whose factors stay in the second cache
            last = min(begin + SPAN, pairs)
            sparse, found = False, False
            if listing:
                span = (2 * begin, 2 * last)
                sparse, found = list_tile(x, grid, grids, group, first, rows, span, places, factors, a_row, counts)
            if sparse:
                at, fresh = begin * 2 * GROUP, begin % EXACT == 0
                multiply_listed(places, factors, counts, a_row, weight, at, b_group, rows, sums, columns, fresh)
            else:
                span = (2 * begin, 2 * last)
                found = read_tile(x, packed_input, grid, grids, group, first, rows, span, tile, a_row)
                for pair in range(begin, last, BLOCK):  # and of it what keeps the weight in the first cache
                    count, fresh = min(BLOCK, last - pair), pair % EXACT == 0
                    at, a_at = pair * 2 * GROUP, 2 * (pair - begin)
                    multiply_pairs(tile, a_at, a_row, rows, weight, at, b_group, sums, columns, count, fresh)
            missing |= found
            # Before int32 could overflow, the sums move on to int64.
            if totals.size > 0 and (last == pairs or last % EXACT == 0):
                for i in range(rows * c_row):
                    totals[i] += sums[i]
        if joined and rows == ROWS:
            finish_joined(sums, c_row, columns, first, many, finish, out)
            continue
        for r in range(rows):
            own, to = group_of(group, first + r, finish.number), pointer(out, (first + r) * out.shape[1])
            if totals.size > 0:
                finish_row(pointer(totals, r * c_row), first + r, own, one, ends, pointer(codes, 0), to)
            else:
                finish_row(pointer(sums, r * c_row), first + r, own, one, ends, pointer(codes, 0), to)
    return missing


@loop
def join_rows(finish, rows):  # type: ignore[no-untyped-def]
    """Repeats factors, biases and ramps for so many rows; returns them, and room for the rows' sums and codes."""
    columns = finish.factor.size
    count = rows * columns
    factor, bias = np.empty(count, np.float32), np.empty(count, np.float32)
    ramp = np.empty((4, count if finish.ramp.size > 0 else 0), np.float32)
    for at in range(count):
        column = at % columns
        factor[at], bias[at] = finish.factor[column], finish.bias[column]
        for part in range(4 if finish.ramp.size > 0 else 0):
            ramp[part, at] = finish.ramp[part * columns + column]
    return factor, bias, ramp, np.empty(count, np.int32), np.empty(count, np.uint8)


@loop
def finish_joined(sums, c_row, columns, first, many, finish, out):  # type: ignore[no-untyped-def]
    """Requantizes the sums of the rows from `first` on as one row, by what :func:`join_rows` made of as many."""
    factor, bias, ramp, line, codes = many
    for r in range(line.size // columns):
        from_, to = pointer(sums, r * c_row), pointer(line, r * columns)
        for c in range(columns):
            to[c] = from_[c]
    finish_pointed(
        pointer(line, 0),
        line.size,
        np.float32(1),
        pointer(factor, 0),
        pointer(bias, 0),
        pointer(finish.grid, 0),
        finish.kind,
        pointer(ramp, 0),
        pointer(finish.plane, 0),
        pointer(finish.table, 0),
        finish.table.size,
        False,
        pointer(finish.other, first * columns if finish.other.size > 0 else 0),
        finish.other.size,
        False,
        pointer(codes, 0),
        pointer(out, first * columns),
    )


@loop
def grid_of(grid, grids, group, row):  # type: ignore[no-untyped-def]
    """Returns the grid of a row: that of all, or of those of groups the one of its group."""
    if grids is None:
        return grid
    return grid_at(grids, group_of(group, row, grids.shape[0]))


@loop
def list_tile(x, of_all, grids, group, first, rows, span, places, factors, apart, counts):  # type: ignore[no-untyped-def]
    """Lists what is not zero in a span of columns of a few rows; returns whether that is little, and any NaN."""
    width, missing, (start, stop) = x.shape[1], False, span
    count = min(stop, width) - start
    for r in range(rows):
        grid, at = grid_of(of_all, grids, group, first + r), (first + r) * width + start
        counts[r], found = list_values(x, at, count, grid, places, factors, r * apart)
        if counts[r] < 0:
            return False, False
        missing |= found
    return True, missing


@loop
def read_tile(x, packed_input, of_all, grids, group, first, rows, span, tile, a_row):  # type: ignore[no-untyped-def]
    """Reads a span of columns of a few rows less their zero point, filled up with zeros; True if there is NaN."""
    width, missing, (start, stop) = x.shape[1], False, span
    count = min(stop, 2 * width if packed_input else width) - start
    whole = count == width and grids is None  # rows that lie one behind the other, on one grid
    line = np.empty((rows * count if whole else count) if x.itemsize > 1 else 0, np.uint8)
    if x.itemsize > 1 and whole:
        missing = quantize_values(pointer(x, first * width), rows * count, of_all, pointer(line, 0))
    for r in range(rows):
        row, to = (first + r) * width, pointer(tile, r * a_row)
        grid = grid_of(of_all, grids, group, first + r)
        zero = np.int16(grid.zero)
        if x.itemsize > 1:
            if not whole:
                missing |= quantize_values(pointer(x, row + start), count, grid, pointer(line, 0))
            centre_codes(pointer(line, r * count if whole else 0), count, zero, to)
        elif packed_input:
            centre_packed(pointer(x, row + start // 2), count // 2, zero, to)
        else:
            centre_codes(pointer(x, row + start), count, zero, to)
        if count < stop - start:
            to[count] = 0
    return missing


@loop
def centre_codes(codes, count, zero, to):  # type: ignore[no-untyped-def]
    for k in range(count):
        to[k] = np.int16(codes[k]) - zero


@loop
def centre_packed(codes, count, zero, to):  # type: ignore[no-untyped-def]
    for k in range(count):
        both = np.int16(codes[k])
        to[2 * k] = (both & 15) - zero
        to[2 * k + 1] = (both >> 4) - zero

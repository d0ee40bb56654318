"""Loops of :mod:`dqconvert.kernels.integer.sums`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import grid_at, quantize_values
from dqconvert.kernels.cpu.integer.finish import CODES, GRID, end_of_group
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import sum_span
from dqconvert.kernels.cpu.tile import group_of

BLOCK = 1 << 12
"""Values that are summed up together: they stay in the first cache."""


@loop
def sum_in_one(places, numbers, columns, grids, group, codes, start, stop):  # type: ignore[no-untyped-def]
    """Sums rows `start` to `stop` of terms that are values or codes on a grid, in one pass, and quantizes the sums.

    `numbers`: `[groups, terms, 2]`. `grids`: `[groups, 4]`. `group`: uint8 `[rows]`, or empty.
    """
    row = start
    while row < stop:
        own, end = group_of(group, row, grids.shape[0]), end_of_group(group, row, stop)
        grid, at, count = grid_at(grids, own), row * columns, (end - row) * columns
        middle, low, top = grid.zero + grid.low, grid.low, grid.top + grid.low
        first, to = pointer(numbers, 2 * places.size * own), pointer(codes, at)
        sum_span(pointer(places, 0), first, places.size, at, count, grid.scale, middle, low, top, to)
        row = end


@loop
def sum_rows(terms, columns, grids, group, codes, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`, a block of one group at a time; `grids` and `group` as above."""
    # Term after term over a block of rows: each loop has one kind of term, and the sums stay in the first cache.
    height = max(BLOCK // max(columns, 1), 1)
    line, first = np.empty(height * columns, np.float32), start
    while first < stop:
        end = end_of_group(group, first, min(first + height, stop))
        rows, at, own = end - first, first * columns, group_of(group, first, grids.shape[0])
        count = rows * columns
        line[:count] = 0
        for k in range(len(terms)):
            given, values, weights = terms[k]
            entries, weight = weights.shape[1], pointer(weights, weights.shape[1] * own)
            if given.size == 0:
                if values.size > columns:
                    add_values(pointer(values, at), count, weight[0], pointer(line, 0))
                else:
                    for r in range(rows):
                        add_values(pointer(values, 0), columns, weight[0], pointer(line, r * columns))
            elif entries == GRID:
                add_on_grid(pointer(given, at), count, weight[0], weight[1], pointer(line, 0))
            elif entries == CODES:
                add_looked_up(pointer(given, at), count, weight, 0, pointer(line, 0))
            else:
                for r in range(rows):
                    begin = pointer(given, at + r * columns)
                    add_looked_up(begin, columns, weight, CODES, pointer(line, r * columns))
        quantize_values(pointer(line, 0), count, grid_at(grids, own), pointer(codes, at))
        first = end


@loop
def add_values(values, count, factor, line):  # type: ignore[no-untyped-def]
    for k in range(count):
        line[k] += values[k] * factor


@loop
def add_on_grid(codes, count, zero, scale, line):  # type: ignore[no-untyped-def]
    for k in range(count):
        line[k] += (np.float32(codes[k]) - zero) * scale


@loop
def add_looked_up(codes, count, table, apart, line):  # type: ignore[no-untyped-def]
    """`apart`: entries from the table of one column to that of the next."""
    for k in range(count):
        line[k] += table[k * apart + np.intp(codes[k])]

"""Loops of :mod:`dqconvert.kernels.integer.sums`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import quantize_values
from dqconvert.kernels.cpu.integer.finish import CODES, GRID
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import sum_span

BLOCK = 1 << 12
"""Values that are summed up together: they stay in the first cache."""


@loop
def sum_in_one(places, numbers, columns, of_grid, codes, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop` of whole terms, values or codes on a grid, in one pass."""
    at, count, grid = start * columns, (stop - start) * columns, CodeGrid(*of_grid)
    middle, low, top = grid.zero + grid.low, grid.low, grid.top + grid.low
    first, to = pointer(numbers, 0), pointer(codes, at)
    sum_span(pointer(places, 0), first, places.size, at, count, grid.scale, middle, low, top, to)


@loop
def sum_rows(terms, columns, of_grid, codes, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`, a block at a time."""
    # Term after term over a block of rows: each loop has one kind of term, and the sums stay in the first cache.
    height = max(BLOCK // max(columns, 1), 1)
    line, grid = np.empty(height * columns, np.float32), CodeGrid(*of_grid)
    for first in range(start, stop, height):
        rows, at = min(height, stop - first), first * columns
        count = rows * columns
        line[:count] = 0
        for k in range(len(terms)):
            given, values, weight = terms[k]
            if given.size == 0:
                if values.size > columns:
                    add_values(pointer(values, at), count, weight[0], pointer(line, 0))
                else:
                    for r in range(rows):
                        add_values(pointer(values, 0), columns, weight[0], pointer(line, r * columns))
            elif weight.size == GRID:
                add_on_grid(pointer(given, at), count, weight[0], weight[1], pointer(line, 0))
            elif weight.size == CODES:
                add_looked_up(pointer(given, at), count, pointer(weight, 0), 0, pointer(line, 0))
            else:
                for r in range(rows):
                    begin = pointer(given, at + r * columns)
                    add_looked_up(begin, columns, pointer(weight, 0), CODES, pointer(line, r * columns))
        quantize_values(pointer(line, 0), count, grid, pointer(codes, at))


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

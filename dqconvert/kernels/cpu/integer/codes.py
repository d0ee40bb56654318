"""Loops between values and codes."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import end_of_group, pack_row, values_on_grid
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import quantize_span
from dqconvert.kernels.cpu.tile import group_of


@loop
def code_of_value(value, grid):  # type: ignore[no-untyped-def]
    """Returns the code of a value, in floating point."""
    code = np.rint(value / grid.scale + (grid.zero + grid.low)) - grid.low
    return min(max(code, grid.zero * 0), grid.top) if value == value else grid.zero


@loop
def quantize_part(x, codes, of_grid, start, stop):  # type: ignore[no-untyped-def]
    return quantize_values(pointer(x, start), stop - start, CodeGrid(*of_grid), pointer(codes, start))


@loop
def grid_at(grids, own):  # type: ignore[no-untyped-def]
    """Returns one of several grids, `[groups, 4]`."""
    return CodeGrid(grids[own, 0], grids[own, 1], grids[own, 2], grids[own, 3])


@loop
def quantize_rows(x, grids, group, codes, columns, start, stop):  # type: ignore[no-untyped-def]
    """Quantizes rows `start` to `stop`, each to the grid of its group; True if one of the values is NaN."""
    missing, row = False, start
    while row < stop:
        own, end = group_of(group, row, grids.shape[0]), end_of_group(group, row, stop)
        at, count = row * columns, (end - row) * columns
        missing |= quantize_values(pointer(x, at), count, grid_at(grids, own), pointer(codes, at))
        row = end
    return missing


@loop
def quantize_packed(x, codes, of_grid, start, stop):  # type: ignore[no-untyped-def]
    columns, grid = x.shape[1], CodeGrid(*of_grid)
    line, missing = np.empty(columns, np.uint8), False
    for row in range(start, stop):
        missing |= quantize_values(pointer(x, row * columns), columns, grid, pointer(line, 0))
        pack_row(pointer(line, 0), columns, pointer(codes, row * codes.shape[1]))
    return missing


@loop
def quantize_values(values, count, grid, codes):  # type: ignore[no-untyped-def]
    """Quantizes `count` values; True if one of them is NaN."""
    low = grid.low
    return quantize_span(values, count, grid.scale, grid.zero + low, low, grid.top + low, codes)


@loop
def dequantize_part(codes, values, scale, zero, start, stop):  # type: ignore[no-untyped-def]
    values_on_grid(pointer(codes, start), stop - start, zero, scale, pointer(values, start))

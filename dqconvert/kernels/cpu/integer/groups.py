"""Loops of :mod:`dqconvert.kernels.integer.groups`."""

from __future__ import annotations

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import quantize_values
from dqconvert.kernels.cpu.integer.finish import (
    CODES,
    group_of,
    look_up_both,
    look_up_columns,
    look_up_values,
)
from dqconvert.kernels.cpu.integer.linear import grid_at
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import ramp_span


@loop
def look_up_rows(codes, table, group, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`; `table`: `[groups, entries]`, for each column one, or for all."""
    for row in range(start, stop):
        own, at = group_of(group, row, table.shape[0]) * table.shape[1], row * columns
        if table.shape[1] > CODES:
            look_up_columns(pointer(codes, at), columns, pointer(table, own), pointer(found, at))
        else:
            look_up_values(pointer(codes, at), columns, pointer(table, own), pointer(found, at))


@loop
def climb_rows(codes, ramps, group, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`; `ramps`: float32 `[groups, 4 * columns]`."""
    for row in range(start, stop):
        own, at = group_of(group, row, ramps.shape[0]) * ramps.shape[1], row * columns
        ramp_span(pointer(codes, at), columns, pointer(ramps, own), columns, pointer(found, at))


@loop
def look_up_pairs_of_rows(a, b, table, group, found, columns, start, stop):  # type: ignore[no-untyped-def]
    for row in range(start, stop):
        own, at = group_of(group, row, table.shape[0]) * CODES * CODES, row * columns
        look_up_both(pointer(a, at), columns, pointer(table, own), pointer(b, at), pointer(found, at))


@loop
def quantize_rows(x, grids, group, codes, columns, start, stop):  # type: ignore[no-untyped-def]
    missing = False
    for row in range(start, stop):
        grid, at = grid_at(grids, group_of(group, row, grids.shape[0])), row * columns
        missing |= quantize_values(pointer(x, at), columns, grid, pointer(codes, at))
    return missing

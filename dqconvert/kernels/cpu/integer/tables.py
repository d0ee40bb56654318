"""Loops of :mod:`dqconvert.kernels.integer.tables`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import (
    CODES,
    end_of_group,
    look_up_both,
    look_up_columns,
    look_up_values,
    pack_row,
)
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import ramp_span
from dqconvert.kernels.cpu.tile import group_of

# In all of these `group` is uint8 `[rows]`, whose table a row has; empty: all have the first.


@loop
def climb_rows(codes, ramps, group, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Applies ramps to the codes of rows `start` to `stop`; `ramps`: float32 `[groups, 4 * columns]`."""
    for row in range(start, stop):
        own, at = group_of(group, row, ramps.shape[0]) * ramps.shape[1], row * columns
        ramp_span(pointer(codes, at), columns, pointer(ramps, own), columns, pointer(found, at))


@loop
def look_up_rows(codes, tables, group, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`; `tables`: `[groups, entries]`, one for each column, or for all."""
    row = start
    while row < stop:
        own, end = group_of(group, row, tables.shape[0]) * tables.shape[1], end_of_group(group, row, stop)
        if tables.shape[1] > CODES:
            for one in range(row, end):
                at = one * columns
                look_up_columns(pointer(codes, at), columns, pointer(tables, own), pointer(found, at))
        else:
            at, count = row * columns, (end - row) * columns
            look_up_values(pointer(codes, at), count, pointer(tables, own), pointer(found, at))
        row = end


@loop
def pack_looked_up(codes, table, ramp, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`, packed; by the ramp, if it is not empty."""
    line, size = np.empty(columns, np.uint8), (columns + 1) // 2
    for row in range(start, stop):
        given, to = pointer(codes, row * columns), pointer(line, 0)
        if ramp.size > 0:
            ramp_span(given, columns, pointer(ramp, 0), columns, to)
        elif table.size > CODES:
            look_up_columns(given, columns, pointer(table, 0), to)
        else:
            look_up_values(given, columns, pointer(table, 0), to)
        pack_row(to, columns, pointer(found, row * size))


@loop
def look_up_pairs_of_rows(a, b, tables, group, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`; `tables`: `[groups, 256 * 256]`."""
    row = start
    while row < stop:
        own, end = group_of(group, row, tables.shape[0]) * tables.shape[1], end_of_group(group, row, stop)
        at, count = row * columns, (end - row) * columns
        look_up_both(pointer(a, at), count, pointer(tables, own), pointer(b, at), pointer(found, at))
        row = end

"""Loops of :mod:`dqconvert.kernels.integer.tables`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import CODES, look_up_both, look_up_columns, look_up_values, pack_row
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import ramp_span


@loop
def climb_rows(codes, ramp, found, start, stop):  # type: ignore[no-untyped-def]
    columns = ramp.shape[1]
    for row in range(start, stop):
        at = row * columns
        ramp_span(pointer(codes, at), columns, pointer(ramp, 0), columns, pointer(found, at))


@loop
def look_up_part(codes, table, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop` of `columns` columns, each with a table of its own."""
    if columns == 1:
        look_up_values(pointer(codes, start), stop - start, pointer(table, 0), pointer(found, start))
        return
    for row in range(start, stop):
        at = row * columns
        look_up_columns(pointer(codes, at), columns, pointer(table, 0), pointer(found, at))


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
def look_up_pairs_part(a, b, table, found, start, stop):  # type: ignore[no-untyped-def]
    look_up_both(pointer(a, start), stop - start, pointer(table, 0), pointer(b, start), pointer(found, start))

"""Requantization of a row of sums, by :mod:`dqconvert.kernels.cpu.llvm.requantize`, and look-up tables behind it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import further, pointer
from dqconvert.kernels.cpu.llvm.requantize import AS_VALUES, finish_span

CODES = 256
"""Entries of a table for each code, also of grids that have fewer."""

GRID = 2
"""How many numbers stand for a table: zero and scale."""


class PointedFinish(NamedTuple):
    """A finish as it is handed on for every row: numba counts references to an array each time, but none to a pointer.

    Attributes: those of :class:`dqconvert.kernels.integer.finish.FinishArrays`, and of each group
        columns, ramps, planes, entries: How many there are: of factors, of what stands for tables, and of tables.
        others, shared: Whether there are other codes, and shares.
    """

    columns: Any
    factor: Any
    bias: Any
    grid: Any
    kind: Any
    ramp: Any
    ramps: Any
    plane: Any
    planes: Any
    table: Any
    entries: Any
    by_column: Any
    other: Any
    others: Any
    packed: Any
    shares: Any
    shared: Any


@loop
def pointed(finish, columns):  # type: ignore[no-untyped-def]
    """Returns pointers into a finish, which whoever uses them keeps alive."""
    number = finish.number
    return PointedFinish(
        columns,
        pointer(finish.factor, 0),
        pointer(finish.bias, 0),
        pointer(finish.grid, 0),
        finish.kind,
        pointer(finish.ramp, 0),
        finish.ramp.size // number,
        pointer(finish.plane, 0),
        finish.plane.size // number,
        pointer(finish.table, 0),
        finish.table.size // number,
        finish.by_column,
        pointer(finish.other, 0),
        finish.other.size,
        finish.packed,
        pointer(finish.shares, 0),
        finish.shares.size > 0,
    )


@loop
def finish_row(line, row, own, share, finish, codes, to):  # type: ignore[no-untyped-def]
    """Requantizes row `row` of sums, which is in group `own`, to `to`; `finish`: from :func:`pointed`.

    `share`: float32, what the row is multiplied by behind the factor, besides its share of the finish. `codes`: uint8
    `[columns]`, to work with.
    """
    columns = finish.columns
    if finish.shared:
        share = share * finish.shares[row]
    finish_pointed(
        line,
        columns,
        share,
        further(finish.factor, own * columns),
        finish.bias,
        further(finish.grid, 4 * own),
        finish.kind,
        further(finish.ramp, own * finish.ramps),
        further(finish.plane, own * finish.planes),
        further(finish.table, own * finish.entries),
        finish.entries,
        finish.by_column,
        further(finish.other, row * columns if finish.others > 0 else 0),
        finish.others,
        finish.packed,
        codes,
        to,
    )


@loop
def end_of_group(group, row, stop):  # type: ignore[no-untyped-def]
    """Returns the end of the rows that are in one group from a row on."""
    end = row + 1 if group.size > 0 else stop
    while end < stop and group[end] == group[row]:
        end += 1
    return end


@loop
def finish_pointed(  # type: ignore[no-untyped-def]
    line,
    columns,
    share,
    factor,
    bias,
    grid,
    kind,
    ramp,
    plane,
    table,
    entries,
    by_column,
    other,
    others,
    packed,
    codes,
    to,
):
    """Does what :func:`finish_row` does, given pointers and how many entries are behind them."""
    if kind == AS_VALUES:
        values_of_sums(line, columns, factor, share, bias, to)
        return
    # Without a table codes go where they belong; with one, they lie in a row of their own before it looks them up.
    if entries == 0 and not packed:
        straight(line, columns, factor, share, bias, grid, kind, ramp, plane, other, to)
        return
    finish_span(line, columns, factor, share, bias, grid, kind, ramp, plane, other, codes)
    if not packed:
        look_up_row(codes, columns, table, entries, by_column, other, others, to)
        return
    if entries > 0:
        look_up_row(codes, columns, table, entries, by_column, other, others, codes)
    pack_row(codes, columns, to)


@loop
def straight(line, columns, factor, share, bias, grid, kind, ramp, plane, other, to):  # type: ignore[no-untyped-def]
    finish_span(line, columns, factor, share, bias, grid, kind, ramp, plane, other, to)


@loop
def values_of_sums(line, count, factor, share, bias, to):  # type: ignore[no-untyped-def]
    """Scales sums to float32 values, where no grid follows."""
    for c in range(count):
        to[c] = np.float32(line[c]) * factor[c] * share + bias[c]


@loop
def pack_row(codes, columns, to):  # type: ignore[no-untyped-def]
    """Packs codes below 16 two to a byte."""
    half = columns // 2
    for c in range(half):
        to[c] = codes[2 * c] | (codes[2 * c + 1] << 4)
    if columns % 2 == 1:
        to[half] = codes[columns - 1]


@loop
def look_up_row(codes, columns, table, entries, by_column, other, others, to):  # type: ignore[no-untyped-def]
    """Looks up the codes of a row."""
    if entries == GRID:
        values_on_grid(codes, columns, table[0], table[1], to)
    elif others > 0:
        look_up_both(codes, columns, table, other, to)
    elif by_column:
        look_up_columns(codes, columns, table, to)
    else:
        look_up_values(codes, columns, table, to)


@loop
def values_on_grid(codes, count, zero, scale, to):  # type: ignore[no-untyped-def]
    for c in range(count):
        to[c] = (np.float32(codes[c]) - zero) * scale


@loop
def look_up_values(codes, count, table, to):  # type: ignore[no-untyped-def]
    for c in range(count):
        to[c] = table[np.intp(codes[c])]


@loop
def look_up_columns(codes, count, table, to):  # type: ignore[no-untyped-def]
    for c in range(count):
        to[c] = table[c * CODES + np.intp(codes[c])]


@loop
def look_up_both(codes, count, table, other, to):  # type: ignore[no-untyped-def]
    for c in range(count):
        to[c] = table[np.intp(codes[c]) * CODES + np.intp(other[c])]

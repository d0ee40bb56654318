"""Requantization of a row of sums, by :mod:`dqconvert.kernels.cpu.llvm.requantize`, and look-up tables behind it."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.requantize import finish_span

CODES = 256
"""Entries of a table for each code, also of grids that have fewer."""

GRID = 2
"""How many numbers stand for a table: zero and scale."""


@loop
def finish_row(sums, at, columns, row, share, steps, codes, out):  # type: ignore[no-untyped-def]
    """One row: `sums[at : at + columns]` to row `row` of `out`, as its group ends.

    `share`: float32, what the row is multiplied by behind the factor, with its share of the steps. `codes`: uint8
    `[columns]`, to work with.
    """
    if steps.shares.size > 0:
        share = share * steps.shares[row]
    own, several = group_of(steps.group, row, steps.number), steps.number > 1
    entries = steps.table.size // steps.number if several else steps.table.size  # a division costs as much as the row
    finish_pointed(
        pointer(sums, at),
        columns,
        share,
        pointer(steps.factor, own * columns),
        pointer(steps.bias, 0),
        pointer(steps.grid, 4 * own),
        steps.kind,
        pointer(steps.ramp, own * (steps.ramp.size // steps.number) if several else 0),
        pointer(steps.plane, own * (steps.plane.size // steps.number) if several else 0),
        pointer(steps.table, own * entries),
        entries,
        steps.by_column,
        pointer(steps.other, row * columns if steps.other.size > 0 else 0),
        steps.other.size,
        steps.packed,
        pointer(codes, 0),
        pointer(out, row * out.shape[1]),
    )


@loop
def group_of(group, row, count):  # type: ignore[no-untyped-def]
    """Returns the group of a row, of `count` that there are; 0 if none are given."""
    return min(np.intp(group[row]), count - 1) if group.size > 0 else 0


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
    """:func:`finish_row`, by pointers and how many entries are behind them."""
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
def pack_row(codes, columns, to):  # type: ignore[no-untyped-def]
    """Codes below 16, two to a byte."""
    half = columns // 2
    for c in range(half):
        to[c] = codes[2 * c] | (codes[2 * c + 1] << 4)
    if columns % 2 == 1:
        to[half] = codes[columns - 1]


@loop
def look_up_row(codes, columns, table, entries, by_column, other, others, to):  # type: ignore[no-untyped-def]
    """Looks the codes of a row up."""
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

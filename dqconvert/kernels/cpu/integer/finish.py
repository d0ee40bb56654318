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


class PointedSteps(NamedTuple):
    """Steps as they are handed on for every row: an array that is passed on is counted each time, a pointer is not.

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
def pointed(steps, columns):  # type: ignore[no-untyped-def]
    """Returns steps by pointers into them: whoever uses these keeps `steps`."""
    number = steps.number
    return PointedSteps(
        columns,
        pointer(steps.factor, 0),
        pointer(steps.bias, 0),
        pointer(steps.grid, 0),
        steps.kind,
        pointer(steps.ramp, 0),
        steps.ramp.size // number,
        pointer(steps.plane, 0),
        steps.plane.size // number,
        pointer(steps.table, 0),
        steps.table.size // number,
        steps.by_column,
        pointer(steps.other, 0),
        steps.other.size,
        steps.packed,
        pointer(steps.shares, 0),
        steps.shares.size > 0,
    )


@loop
def finish_row(line, row, own, share, steps, codes, to):  # type: ignore[no-untyped-def]
    """One row, `row`, of sums, to `to`, as its group, `own`, ends, by :func:`pointed` steps; all by pointers.

    `share`: float32, what the row is multiplied by behind the factor, with its share of the steps. `codes`: uint8
    `[columns]`, to work with.
    """
    columns = steps.columns
    if steps.shared:
        share = share * steps.shares[row]
    finish_pointed(
        line,
        columns,
        share,
        further(steps.factor, own * columns),
        steps.bias,
        further(steps.grid, 4 * own),
        steps.kind,
        further(steps.ramp, own * steps.ramps),
        further(steps.plane, own * steps.planes),
        further(steps.table, own * steps.entries),
        steps.entries,
        steps.by_column,
        further(steps.other, row * columns if steps.others > 0 else 0),
        steps.others,
        steps.packed,
        codes,
        to,
    )


@loop
def group_of(group, row, count):  # type: ignore[no-untyped-def]
    """Returns the group of a row, of `count` that there are; 0 if none are given.

    None stands for none where a look at an empty array costs too much, for every row: loops are compiled for it.
    """
    if group is None:
        return 0
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
    """Values instead of codes: float32, as training has them but for the rounding of its sums."""
    for c in range(count):
        to[c] = np.float32(line[c]) * factor[c] * share + bias[c]


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

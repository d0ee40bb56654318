"""Loops of :mod:`dqconvert.kernels.propagate` over the rows that are sent: each is looked at and rounded once."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.select_loops import collect
from dqconvert.kernels.cpu.tile import back_values, copy_values, round_values, tile_rows


@loop
def find_extremes(x, least, most, start, stop):  # type: ignore[no-untyped-def]
    """Finds the smallest and the largest value of each row and head; NaN where there is one."""
    heads = least.shape[1]
    channels = x.shape[1] // heads
    for r in range(start, stop):
        for h in range(heads):
            row = x[r, h * channels : (h + 1) * channels]
            odd = 0
            for c in range(channels):
                odd += row[c] != row[c]
            least[r, h] = np.nan if odd > 0 or channels == 0 else smallest(row)
            most[r, h] = np.nan if odd > 0 or channels == 0 else largest(row)


# Without NaN, which was looked for before, the order of comparisons may be left to the compiler.
@loop(fastmath={"nnan", "nsz", "reassoc"})
def smallest(row):  # type: ignore[no-untyped-def]
    found = row[0]
    for c in range(row.size):
        found = min(found, row[c])
    return found


@loop(fastmath={"nnan", "nsz", "reassoc"})
def largest(row):  # type: ignore[no-untyped-def]
    found = row[0]
    for c in range(row.size):
        found = max(found, row[c])
    return found


@loop
def round_nodes(x, skip, often, grid, catch, lo, hi, caught, y, start, stop):  # type: ignore[no-untyped-def]
    """Rounds the rows of the nodes that are not skipped.

    `y`: of `x`'s type, for their values; or uint8, for their codes above the smallest. If `catch`, notes what lies
    outside of `lo` and `hi`, and how often it is sent: `caught` is `(under, over, how often, how often)`. Returns how
    many were noted on either side, how many are not finite, whether the room ran out, and whether NaN stands in the
    way of codes.
    """
    columns = x.shape[1]
    step = tile_rows(columns)
    codes = np.empty(step * columns, x.dtype)
    from_, to = x.reshape(-1), y.reshape(-1)
    below, above, below_often, above_often = caught
    n, m, odd, full, nan = 0, 0, 0, False, False
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, b = first * columns, last * columns
        if catch and not full:
            found = collect(x, skip, often, first, last, lo, hi, below[n:], above[m:], below_often[n:], above_often[m:])
            n, m, odd, full = n + found[0], m + found[1], odd + found[2], found[3]
        round_values(pointer(from_, a), grid, pointer(codes, 0), b - a)
        if y.itemsize == 1:
            nan |= put_codes(codes, grid, to, skip, columns, first, last)
        else:
            back_values(pointer(codes, 0), grid, pointer(to, a), b - a)
            if skip.size > 0:
                for r in range(first, last):
                    if skip[r]:
                        copy_values(pointer(x, r * columns), pointer(y, r * columns), columns)
    return n, m, odd, full, nan


@loop
def put_codes(codes, grid, y, skip, columns, first, last):  # type: ignore[no-untyped-def]
    """Stores codes above the smallest, of all rows; whether one of a row that is not skipped is NaN."""
    low, high = grid[2], grid[3]
    count, one = (last - first) * columns, codes.dtype.type(1)
    bytes_of(pointer(codes, 0), low, high, pointer(y, first * columns), count)
    if not any_nan(pointer(codes, 0), one, count):
        return False
    for r in range(last - first):
        if not (skip.size > 0 and skip[first + r]) and any_nan(pointer(codes, r * columns), one, columns):
            return True
    return False


@loop
def bytes_of(codes, low, high, y, count):  # type: ignore[no-untyped-def]
    """Stores codes, which NaN may be among, above the smallest: what lies beyond the grid becomes its end."""
    for c in range(count):
        q = codes[c]
        q = low if q < low else q
        q = high if q > high else q
        y[c] = np.uint8(np.int32(q - low))


@loop(fastmath={"reassoc", "nsz"})
def any_nan(x, one, count):  # type: ignore[no-untyped-def]
    """True if there is NaN. All are looked at, as a sum: a loop that stops at the first is not turned into vectors."""
    zero = one - one
    found = zero
    for c in range(count):
        found += one if x[c] != x[c] else zero
    return found != zero

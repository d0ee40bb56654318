"""One grid over rows of a few columns, each row on that of its group, as attention's coefficients are.

Neighbouring rows are in other groups, and to begin and end a loop takes longer than a few columns do. So every value is
given the numbers of its grid, and one loop goes over the values of many rows.
"""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.tile import ChainArrays, group_of, tile_rows

COLUMNS = 16
"""From which on rows are gone through one by one."""


def is_narrow(chain: ChainArrays, columns: int) -> bool:
    """True if a chain is the grid behind the sum alone, of groups of such rows, all of which it rounds."""
    if not 0 < columns < COLUMNS or chain.group.size == 0 or chain.skip.size > 0:
        return False
    one = chain.kinds.astype(bool).tolist() == [False, True, False]
    return bool(one and not chain.relu and chain.bias.size + chain.other.size == 0)


@loop
def spread(group, grids, columns, first, last, scale, zero):  # type: ignore[no-untyped-def]
    """Gives each value of rows `first` to `last` scale and zero point."""
    for r in range(last - first):
        own = group_of(group, first + r, grids.shape[0])
        of_scale, of_zero = grids[own, 1, 0], grids[own, 1, 1]
        for c in range(r * columns, (r + 1) * columns):
            scale[c] = of_scale
            zero[c] = of_zero


@loop
def round_narrow(x, group, grids, clip, y, bits, start, stop):  # type: ignore[no-untyped-def]
    """Rounds rows `start` to `stop`; says which gradients pass, if there are `bits`: with `clip`, not all do."""
    columns, low, high = x.shape[1], grids[0, 1, 2], grids[0, 1, 3]
    step = tile_rows(columns)
    scale, zero = np.empty(step * columns, x.dtype), np.empty(step * columns, x.dtype)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, count = first * columns, (last - first) * columns
        spread(group, grids, columns, first, last, pointer(scale, 0), pointer(zero, 0))
        of_grid = pointer(scale, 0), pointer(zero, 0), low, high
        round_each(pointer(x, a), of_grid, pointer(y, a), count)
        if bits.size > 0:
            if clip:
                pass_each(pointer(x, a), of_grid, pointer(bits, a), count)
            else:
                bits.reshape(-1)[a : a + count] = 3


@loop
def round_each(x, of_grid, y, count):  # type: ignore[no-untyped-def]
    scale, zero, low, high = of_grid
    for c in range(count):
        q = np.rint(x[c] / scale[c] + zero[c])
        q = low if q < low else q  # NaN stays NaN
        q = high if q > high else q
        y[c] = (q - zero[c]) * scale[c]


@loop
def pass_each(x, of_grid, bits, count):  # type: ignore[no-untyped-def]
    scale, zero, low, high = of_grid
    for c in range(count):
        q = np.rint(x[c] / scale[c] + zero[c])
        bits[c] = np.uint8(0) if (q <= low) | (q >= high) else np.uint8(3)


@loop
def narrow_back(grad, x, group, grids, to_x, sums, start, stop):  # type: ignore[no-untyped-def]
    """The way back where ranges are learned; `sums`: see :func:`dqconvert.kernels.cpu.learned.chain_back`."""
    columns, low, high = x.shape[1], grids[0, 1, 2], grids[0, 1, 3]
    step = tile_rows(columns)
    scale, zero = np.empty(step * columns, x.dtype), np.empty(step * columns, x.dtype)
    inside, below, above = np.empty_like(scale), np.empty_like(scale), np.empty_like(scale)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, count = first * columns, (last - first) * columns
        spread(group, grids, columns, first, last, pointer(scale, 0), pointer(zero, 0))
        of_grid, parts = (pointer(scale, 0), pointer(zero, 0), low, high), (pointer(inside, 0), pointer(below, 0))
        back_each(pointer(x, a), of_grid, pointer(grad, a), pointer(to_x, a), parts, pointer(above, 0), count)
        for r in range(last - first):
            own = group_of(group, first + r, grids.shape[0])
            one, two, three = 0.0, 0.0, 0.0
            for c in range(r * columns, (r + 1) * columns):
                one += inside[c]
                two += below[c]
                three += above[c]
            sums[own, 1, 0, 0] += one
            sums[own, 1, 1, 0] += two
            sums[own, 1, 2, 0] += three


@loop
def back_each(x, of_grid, grad, to_x, parts, above, count):  # type: ignore[no-untyped-def]
    scale, zero, low, high = of_grid
    inside, below = parts
    nothing = low - low
    for c in range(count):
        code, g = x[c] / scale[c] + zero[c], grad[c]
        under, over = code <= low, code >= high
        clipped = under | over
        inside[c] = nothing if clipped else g * (np.rint(code) - code)
        below[c] = g if under else nothing
        above[c] = g if over else nothing
        to_x[c] = nothing if clipped else g

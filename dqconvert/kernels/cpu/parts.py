"""Loops of :mod:`dqconvert.kernels.parts`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.chain_span import pass_span
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.tile import back_values, round_values

_LARGEST = float(np.finfo(np.float32).max)  # ranges are float32


@loop
def count_beyond(x, cuts, ranges, counts):  # type: ignore[no-untyped-def]
    """Computes how many values of each part lie below its range, how many above, and how many are not finite."""
    for part in range(cuts.size - 1):
        lo, hi = ranges[part, 0], ranges[part, 1]
        below = above = odd = 0
        for i in range(cuts[part], cuts[part + 1]):
            v = x[i]
            finite = -_LARGEST <= v <= _LARGEST
            odd += not finite
            below += finite and v < lo
            above += finite and v > hi
        counts[part, 0], counts[part, 1], counts[part, 2] = below, above, odd


@loop
def round_parts(x, cuts, grids, clip, y, passes):  # type: ignore[no-untyped-def]
    """Rounds each part to its grid; notes which gradients pass."""
    for part in range(cuts.size - 1):
        a, b = cuts[part], cuts[part + 1]
        grid = grids[part]
        round_values(x[a:b], grid, y[a:b], b - a)
        if passes.size > 0:
            mark_values(y[a:b], grid, clip[part], passes[a:b])
        back_values(y[a:b], grid, y[a:b], b - a)


@loop
def mark_values(codes, grid, clip, passes):  # type: ignore[no-untyped-def]
    low, high = grid[2], grid[3]
    for i in range(codes.size):
        passes[i] = not (clip and (codes[i] <= low or codes[i] >= high))


@loop
def pass_all(grad, passes, to):  # type: ignore[no-untyped-def]
    pass_span(pointer(grad, 0), pointer(passes, 0), np.uint8(1), pointer(to, 0), to.size)

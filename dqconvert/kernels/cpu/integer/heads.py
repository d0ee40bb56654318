"""Loops of :mod:`dqconvert.kernels.integer.heads`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import finish_row, pointed
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.tile import group_of


@loop
def add_rows(x, zeros, columns, finish, out, start, stop):  # type: ignore[no-untyped-def]
    """Adds up the heads of rows `start` to `stop`, and requantizes the sums; `zeros`: int32, of each group, or one."""
    sums, codes, one = np.empty(columns, np.int32), np.empty(columns, np.uint8), np.float32(1)
    heads, ends = x.shape[1] // columns, pointed(finish, columns)
    for row in range(start, stop):
        own = group_of(finish.group, row, finish.number)
        sums[:] = -np.int32(heads * zeros[min(own, zeros.size - 1)])
        for h in range(heads):
            add_head(pointer(x, row * x.shape[1] + h * columns), columns, sums)
        finish_row(pointer(sums, 0), row, own, one, ends, pointer(codes, 0), pointer(out, row * out.shape[1]))


@loop
def add_head(codes, columns, sums):  # type: ignore[no-untyped-def]
    for c in range(columns):
        sums[c] += np.int32(codes[c])

"""Loops of :mod:`dqconvert.kernels.integer.heads`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import finish_row, group_of, pointed
from dqconvert.kernels.cpu.llvm.memory import pointer


@loop
def add_rows(x, zero, columns, steps, out, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`."""
    sums, codes, one = np.empty(columns, np.int32), np.empty(columns, np.uint8), np.float32(1)
    heads, ends = x.shape[1] // columns, pointed(steps, columns)
    nothing = np.int32(heads * zero)
    for row in range(start, stop):
        sums[:] = -nothing
        for h in range(heads):
            add_head(pointer(x, row * x.shape[1] + h * columns), columns, sums)
        own = group_of(steps.group, row, steps.number)
        finish_row(pointer(sums, 0), row, own, one, ends, pointer(codes, 0), pointer(out, row * out.shape[1]))


@loop
def add_head(codes, columns, sums):  # type: ignore[no-untyped-def]
    for c in range(columns):
        sums[c] += np.int32(codes[c])

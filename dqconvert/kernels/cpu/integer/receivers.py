"""Loops of :mod:`dqconvert.kernels.integer.receivers`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import code_of_value
from dqconvert.kernels.cpu.llvm.memory import pointer


@loop
def code_weights(ptr, senders, roots, of_grid, codes, start, stop):  # type: ignore[no-untyped-def]
    root, grid = pointer(roots, 0), CodeGrid(*of_grid)
    for r in range(start, stop):
        first, own = ptr[r], roots[r]
        sender, code = pointer(senders, first), pointer(codes, first)
        for e in range(ptr[r + 1] - first):
            code[e] = np.uint8(np.int32(code_of_value(root[sender[e]] * own, grid)))

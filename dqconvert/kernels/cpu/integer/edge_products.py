"""Loops of :mod:`dqconvert.kernels.integer.edge_products`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import AHEAD, LINE, pointer, prefetch


@loop
def multiply_rows(a, a_rows, b, b_rows, a_zero, b_zero, factor, found, start, stop):  # type: ignore[no-untyped-def]
    """Computes the products of edges `start` to `stop`; False if one ends at no node."""
    width, heads, last = a.shape[1], found.shape[1], a_rows.size - 1
    columns = width // heads
    for e in range(start, stop):
        i, j = a_rows[e], b_rows[e]
        if i < 0 or i >= a.shape[0] or j < 0 or j >= b.shape[0]:
            return False
        later = min(e + AHEAD, last)
        # Both rows of a later edge are on their way while this edge is multiplied.
        for at in range(0, width, LINE):
            prefetch(a, a_rows[later] * width + at)
            prefetch(b, b_rows[later] * width + at)
        for h in range(heads):
            one, other = pointer(a, i * width + h * columns), pointer(b, j * width + h * columns)
            found[e, h] = np.float32(multiplied(one, a_zero, other, b_zero, columns)) * factor
    return True


@loop
def multiplied(a, a_zero, b, b_zero, count):  # type: ignore[no-untyped-def]
    total = np.int32(0)
    for k in range(count):
        total += np.int32(np.int16(a[k]) - a_zero) * np.int32(np.int16(b[k]) - b_zero)
    return total

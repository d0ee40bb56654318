"""The loops of :mod:`dqconvert.kernels.cpu.select`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import AHEAD, prefetch

_LARGEST = np.finfo(np.float32).max
_BLOCK = 64  # values that are tested together before one is looked at alone


# Counted in floating point, in any order: only so are the comparisons turned into vector instructions.
@loop(fastmath={"reassoc", "nsz"})
def inside(x, lo, hi):  # type: ignore[no-untyped-def]
    """True if all values of a vector lie from `lo` to `hi`; NaN does not."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    outside = zero
    for c in range(x.size):
        outside += zero if (x[c] >= lo) & (x[c] <= hi) else one
    return outside == zero


@loop
def collect(x, skip, weight, start, stop, lo, hi, below, above, below_weight, above_weight):  # type: ignore[no-untyped-def]
    """Copies the values under `lo` and over `hi`: `(how many under, over, not finite, whether room ran out)`."""
    columns = x.shape[1]
    flat = x.reshape(-1)
    step = max(1, _BLOCK // max(1, columns))
    n, m, odd = 0, 0, 0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        if step > 1 and inside(flat[first * columns : last * columns], lo, hi):
            continue
        for r in range(first, last):
            if skip.size > 0 and skip[r]:
                continue
            end = (r + 1) * columns
            for at in range(r * columns, end, _BLOCK):
                values = flat[at : min(at + _BLOCK, end)]
                if inside(values, lo, hi):
                    continue
                if n + values.size > below.size or m + values.size > above.size:
                    return n, m, odd, True
                often = weight[r] if weight.size > 0 else 1
                for c in range(values.size):
                    v = values[c]
                    if v < lo:
                        if v >= -_LARGEST:
                            below[n] = v
                            if weight.size > 0:
                                below_weight[n] = often
                            n += 1
                        else:
                            odd += often
                    elif not (v <= hi):
                        if v <= _LARGEST:
                            above[m] = v
                            if weight.size > 0:
                                above_weight[m] = often
                            m += 1
                        else:
                            odd += often
    return n, m, odd, False


@loop
def count_at(x, skip, weight, start, stop, lo, hi):  # type: ignore[no-untyped-def]
    """Returns how many finite values are at most `lo`, and how many at least `hi`."""
    at_most, at_least = 0, 0
    for r in range(start, stop):
        if skip.size > 0 and skip[r]:
            continue
        often = weight[r] if weight.size > 0 else 1
        for c in range(x.shape[1]):
            v = x[r, c]
            if abs(v) <= _LARGEST:
                at_most += often * (v <= lo)
                at_least += often * (v >= hi)
    return at_most, at_least


@loop
def collect_messages(x, weight, edges, sender, skip, least, most, start, stop, lo, hi, below, above):  # type: ignore[no-untyped-def]
    """Like `collect`, of the products; an edge whose extreme products are within the bounds is passed over."""
    heads = weight.shape[1]
    channels = x.shape[1] // heads
    n, m, odd = 0, 0, 0
    for e in range(start, stop):
        if e + AHEAD < stop:
            prefetch(weight, edges[e + AHEAD] * heads)
        s = sender[e]
        if skip.size > 0 and skip[s]:
            continue
        for h in range(heads):
            w = weight[edges[e], h]
            one, two = w * least[s, h], w * most[s, h]
            if one >= lo and one <= hi and two >= lo and two <= hi:
                continue
            if n + channels > below.size or m + channels > above.size:
                return n, m, odd, True
            for c in range(h * channels, (h + 1) * channels):
                v = w * x[s, c]
                if not (abs(v) <= _LARGEST):
                    odd += 1
                elif v < lo:
                    below[n] = v
                    n += 1
                elif v > hi:
                    above[m] = v
                    m += 1
    return n, m, odd, False


@loop
def count_at_messages(x, weight, edges, sender, skip, start, stop, lo, hi):  # type: ignore[no-untyped-def]
    """Like `count_at`, of the products."""
    heads = weight.shape[1]
    channels = x.shape[1] // heads
    at_most, at_least = 0, 0
    for e in range(start, stop):
        s = sender[e]
        if skip.size > 0 and skip[s]:
            continue
        for h in range(heads):
            for c in range(h * channels, (h + 1) * channels):
                v = weight[edges[e], h] * x[s, c]
                if abs(v) <= _LARGEST:
                    at_most += v <= lo
                    at_least += v >= hi
    return at_most, at_least

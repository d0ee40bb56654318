"""Loops of :mod:`dqconvert.kernels.integer.attention`: a softmax over the edges of each node."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import quantize_values
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.llvm.memory import pointer, prefetch

AHEAD = 32
"""How many edges ahead what they look up is asked for."""

ROOM = 1 << 11
"""Weights that are rounded together, of as many nodes as have them."""


@loop
def softmax_nodes(rows, codes, target, table, grown, ptr, of_grid, found, start, stop):  # type: ignore[no-untyped-def]
    """Computes the softmax over the edges of nodes `start` to `stop`.

    `rows`: which row of `codes` each edge takes. The rank of its logit is its code; or, unless `target` and `table` are
    None (which numba compiles apart), the table's entry for the code of the node and that of the edge.
    """
    heads, last, grid = codes.shape[1], rows.size - 1, CodeGrid(*of_grid)
    ranks, shares = np.empty(ROOM, np.uint8), np.empty(ROOM, np.float32)
    peaks, totals = np.empty(heads, np.uint8), np.empty(heads, np.float32)
    begun = ptr[start]
    for node in range(start, stop):
        first, count = ptr[node], ptr[node + 1] - ptr[node]
        # The shares of several nodes are rounded together: a span of a few values costs as much as one of many.
        if (first + count - begun) * heads > shares.size:
            round_shares(shares, (first - begun) * heads, grid, found, begun * heads)
            begun = first
            if count * heads > shares.size:
                ranks, shares = np.empty(2 * count * heads, np.uint8), np.empty(2 * count * heads, np.float32)
        peaks[:] = 0
        for k in range(count):
            prefetch(codes, np.intp(rows[min(first + k + AHEAD, last)]) * heads)
            from_, to = pointer(codes, np.intp(rows[first + k]) * heads), pointer(ranks, k * heads)
            for h in range(heads):
                rank = from_[h]
                if table is not None:
                    rank = table[target[node, h], rank]
                to[h] = rank
                peaks[h] = max(peaks[h], rank)
        share(ranks, count, heads, peaks, grown, totals, pointer(shares, (first - begun) * heads))
    round_shares(shares, (ptr[stop] - begun) * heads, grid, found, begun * heads)


@loop
def round_shares(shares, count, grid, found, at):  # type: ignore[no-untyped-def]
    """Quantizes `count` shares, to `found` from `at` on; given arrays, as a pointer would not keep its own."""
    quantize_values(pointer(shares, 0), count, grid, pointer(found, at))


@loop
def share(ranks, count, heads, peaks, grown, totals, shares):  # type: ignore[no-untyped-def]
    """Computes the softmax over the `count` edges of a node, `[count, heads]`, by codes of logits and the highest."""
    from_, by_peak = pointer(ranks, 0), pointer(grown, 0)
    totals[:] = 0
    # In float32 and in this order, as the definition: halves should come out as halves, or not, in both.
    for k in range(count):
        for h in range(heads):
            value = by_peak[np.intp(peaks[h]) * CODES + np.intp(from_[k * heads + h])]
            shares[k * heads + h] = value
            totals[h] += value
    for k in range(count):
        for h in range(heads):
            shares[k * heads + h] /= totals[h]

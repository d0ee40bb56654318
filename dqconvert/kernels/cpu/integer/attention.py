"""Loops of :mod:`dqconvert.kernels.integer.attention`: a softmax over the edges of each node."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import grid_at, quantize_values
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.llvm.memory import pointer, prefetch
from dqconvert.kernels.cpu.tile import group_of

AHEAD = 32
"""How many edges ahead what they look up is asked for."""

ROOM = 1 << 11
"""Weights that are rounded together, of as many nodes as have them."""


@loop
def softmax_nodes(  # type: ignore[no-untyped-def]
    rows, given, target, table, steps, group, grown, ptr, grids, found, start, stop
):
    """Computes the softmax over the edges of nodes `start` to `stop`.

    `rows`: which row of `given` each edge takes. The rank of its logit is the code that is given; or the entry of
    `table` for the code of the node, in `target`, and that one; or the code of the sum of both, which are values then,
    on the grid, of `steps`, of the node's group. What is None is not there (numba compiles it apart); `grown` and
    `grids` are those of each group.
    """
    heads, last, count = given.shape[1], rows.size - 1, min(grown.shape[0], grids.shape[0])
    ranks, shares = np.empty(ROOM, np.uint8), np.empty(ROOM, np.float32)
    sums = np.empty(ROOM if steps is not None else 0, np.float32)
    peaks, totals = np.empty(heads, np.uint8), np.empty(heads, np.float32)
    begun, before = ptr[start], 0
    for node in range(start, stop):
        first, edges, own = ptr[node], ptr[node + 1] - ptr[node], group_of(group, node, count)
        # The shares of several nodes are rounded together: a span of a few values costs as much as one of many.
        if own != before or (first + edges - begun) * heads > shares.size:
            round_shares(shares, (first - begun) * heads, grid_at(grids, before), found, begun * heads)
            begun, before = first, own
            if edges * heads > shares.size:
                ranks, shares = np.empty(2 * edges * heads, np.uint8), np.empty(2 * edges * heads, np.float32)
                sums = np.empty(shares.size if steps is not None else 0, np.float32)
        peaks[:] = 0
        if steps is not None:
            for k in range(edges):
                prefetch(given, np.intp(rows[min(first + k + AHEAD, last)]) * heads)
                from_, to = pointer(given, np.intp(rows[first + k]) * heads), pointer(sums, k * heads)
                add_both(from_, pointer(target, node * heads), to, heads)
            quantize_values(pointer(sums, 0), edges * heads, grid_at(steps, own), pointer(ranks, 0))
        for k in range(edges):
            to = pointer(ranks, k * heads)
            if steps is None:
                prefetch(given, np.intp(rows[min(first + k + AHEAD, last)]) * heads)
                from_ = pointer(given, np.intp(rows[first + k]) * heads)
                for h in range(heads):
                    rank = from_[h]
                    if table is not None:
                        rank = table[target[node, h], rank]
                    to[h] = rank
                    peaks[h] = max(peaks[h], rank)
            else:
                for h in range(heads):
                    peaks[h] = max(peaks[h], to[h])
        by_peak = pointer(grown, own * CODES * CODES)
        share(ranks, edges, heads, peaks, by_peak, totals, pointer(shares, (first - begun) * heads))
    round_shares(shares, (ptr[stop] - begun) * heads, grid_at(grids, before), found, begun * heads)


@loop
def add_both(a, b, to, count):  # type: ignore[no-untyped-def]
    for h in range(count):
        to[h] = a[h] + b[h]


@loop
def round_shares(shares, count, grid, found, at):  # type: ignore[no-untyped-def]
    """Quantizes `count` shares, to `found` from `at` on; given arrays, as a pointer would not keep its own."""
    quantize_values(pointer(shares, 0), count, grid, pointer(found, at))


@loop
def share(ranks, count, heads, peaks, by_peak, totals, shares):  # type: ignore[no-untyped-def]
    """Computes the softmax over the `count` edges of a node, `[count, heads]`, by codes of logits and the highest."""
    from_ = pointer(ranks, 0)
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

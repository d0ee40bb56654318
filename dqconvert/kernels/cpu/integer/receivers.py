"""Loops of :mod:`dqconvert.kernels.integer.receivers`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import code_of_value
from dqconvert.kernels.cpu.llvm.memory import pointer


@loop
def count_edges(sender, receiver, loops, num_source, counts, start, stop):  # type: ignore[no-untyped-def]
    """Counts the edges to each receiver; False if one begins or ends at a node that is not there."""
    num_target, count = counts.size, pointer(counts, 0)
    for e in range(start, stop):
        s, r = sender[e], receiver[e]
        if s < 0 or s >= num_source or r < 0 or r >= num_target:
            return False
        if not loops or s != r:
            count[r] += 1
    return True


@loop
def begin_rows(counts, loops, ptr):  # type: ignore[no-untyped-def]
    """Fills `ptr`; of each part's counts makes where its first edge to each receiver goes."""
    parts, nodes = counts.shape
    place = 0
    for i in range(nodes):
        ptr[i] = place
        for part in range(parts):
            count = counts[part, i]
            counts[part, i] = place
            place += count
        place += loops
    ptr[nodes] = place


@loop
def place_edges(sender, receiver, loops, places, senders, edges, start, stop):  # type: ignore[no-untyped-def]
    place, to = pointer(places, 0), pointer(senders, 0)
    for e in range(start, stop):
        s, r = sender[e], receiver[e]
        if not loops or s != r:
            at = place[r]
            place[r] = at + 1
            to[at] = s
            if edges.size > 0:
                edges[at] = e


@loop
def code_weights(ptr, senders, roots, grid, codes, start, stop):  # type: ignore[no-untyped-def]
    root = pointer(roots, 0)
    for r in range(start, stop):
        first, own = ptr[r], roots[r]
        sender, code = pointer(senders, first), pointer(codes, first)
        for e in range(ptr[r + 1] - first):
            code[e] = np.uint8(np.int32(code_of_value(root[sender[e]] * own, grid)))

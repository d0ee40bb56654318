"""A counting sort of edges by their receivers, on all threads; edges of a receiver keep the order of the list.

Every thread counts the edges of its own part of the list, by receiver. Sums over receivers and parts then say where
the first edge of each part to each receiver goes, so that all threads can put their edges in place at once.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.threads import GRAIN, run

INT32 = 1 << 31
"""Nodes and edges below which numbers fit into int32."""


def sort_edges(
    sender: Tensor,
    receiver: Tensor,
    num_source: int,
    num_target: int,
    kind: torch.dtype,
    *,
    loops: bool = False,
    positions: bool = True,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Puts edges in the order of their receivers.

    Args:
        sender, receiver: The ends of each edge, int64 or int32 `[num_edges]`.
        num_source: How many nodes edges begin at; negative: that is not looked at.
        num_target: How many nodes they end at.
        kind: The dtype of the senders that are returned.
        loops: True to leave edges from a node to itself out, and to put one behind the other edges of each node.
        positions: True to say where in the list each edge was.

    Returns:
        Where the edges of each receiver begin, int64 `[num_target + 1]`; their senders; and their positions, int64,
        empty unless they are wanted. None if an edge begins or ends at a node that is not there.
    """
    ends, edges = (array(sender), array(receiver)), sender.numel()
    ptr = torch.empty(num_target + 1, dtype=torch.int64)
    starts = array(ptr)
    workers = max(1, min(torch.get_num_threads(), edges // GRAIN, edges // max(num_target, 1)))
    if workers == 1 and not loops:
        senders, places = torch.empty(edges, dtype=kind), torch.empty(edges if positions else 0, dtype=torch.int64)
        sound = sort_at_once(*ends, num_source, starts, array(senders), array(places))
        return (ptr, senders, places) if sound else None
    cuts = list(itertools.pairwise(edges * part // workers for part in range(workers + 1)))
    counts = np.zeros((workers, num_target), np.int32 if edges + num_target < INT32 else np.int64)
    if not all(run(lambda part, start, stop: count_edges(*ends, loops, num_source, counts[part], start, stop), cuts)):
        return None
    begin_rows(counts, loops, starts)
    senders = torch.empty(int(starts[-1]), dtype=kind)
    places = torch.empty(senders.numel() if positions else 0, dtype=torch.int64)
    to = array(senders)
    args = to, array(places)
    run(lambda part, start, stop: place_edges(*ends, loops, counts[part], *args, start, stop), cuts)
    if loops:
        to[starts[1:] - 1] = np.arange(num_target, dtype=to.dtype)
    return ptr, senders, places


@loop
def sort_at_once(sender, receiver, num_source, ptr, senders, edges):  # type: ignore[no-untyped-def]
    """Sorts in one call; False if an edge begins or ends at a node that is not there."""
    counts = np.zeros((1, ptr.size - 1), np.int64)
    if not count_edges(sender, receiver, False, num_source, counts[0], 0, sender.size):
        return False
    begin_rows(counts, False, ptr)
    place_edges(sender, receiver, False, counts[0], senders, edges, 0, sender.size)
    return True


@loop
def count_edges(sender, receiver, loops, num_source, counts, start, stop):  # type: ignore[no-untyped-def]
    """Counts the edges to each receiver; False if one begins or ends at a node that is not there.

    `num_source`: how many nodes edges begin at; negative: any number stands for one.
    """
    num_target, count = counts.size, pointer(counts, 0)
    for e in range(start, stop):
        s, r = sender[e], receiver[e]
        if r < 0 or r >= num_target or (num_source >= 0 and (s < 0 or s >= num_source)):
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
    """Puts the edges of a part in order; `places`: where its next edge to each receiver goes."""
    place, to = pointer(places, 0), pointer(senders, 0)
    for e in range(start, stop):
        s, r = sender[e], receiver[e]
        if not loops or s != r:
            at = place[r]
            place[r] = at + 1
            to[at] = s
            if edges.size > 0:
                edges[at] = e

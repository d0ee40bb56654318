"""The edges of a graph by their receivers, in files: sorted once, a range of receivers at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dqconvert.errors import ConfigError
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.lower.runtime import check_edges
from dqconvert.lower.staged.kinds import Listing, Order
from dqconvert.lower.staged.whole import WholeGraph
from dqconvert.store import Array, Store, release

_PER_EDGE = 128
"""Bytes that an edge takes while it is sorted: its ends as they are listed and collected, its place, its sender."""

_BLOCK = 1 << 21
"""Edges that are looked at, at a time, if there is room for ten times as many to be sorted."""


_LEAST = 256
"""Edges that there has to be room for."""


class Files(NamedTuple):
    """An order in files.

    Attributes:
        ptr: int64 ``[num_receivers + 1]``, where the edges to each begin.
        senders: int32 or int64 ``[num_edges]``; None: nobody asks, only where edges begin.
        places: int64 ``[num_edges]``, where in the list each edge is; None: nobody asks.
    """

    ptr: Array
    senders: Array | None
    places: Array | None


class Orders:
    """The orders of a graph's edges.

    Args:
        whole: The graph.
        store: Holds the files.
        orders: All that will be asked for.
        listed: The lists whose places are asked for.
    """

    def __init__(self, whole: WholeGraph, store: Store, orders: Iterable[Order], listed: frozenset[Listing]) -> None:
        self._whole, self._store, self._listed = whole, store, listed
        self._block = _BLOCK
        self._names = {order: f"order_{number}" for number, order in enumerate(dict.fromkeys(orders))}

    def done(self, order: Order) -> bool:
        """True if an order is there."""
        return self._store.done(self._names[order]) > 0

    def sort(self, order: Order, room: int) -> None:
        """Writes an order.

        Args:
            room: Bytes of memory that may be used.

        Raises:
            IndexError: If an edge ends at a node that is not there.
            ConfigError: If there is too little room.
        """
        name = self._names[order]
        targets = self._whole.count(self._whole.rows.at[order.listing, order.receive])
        room -= 16 * targets
        self._block = max(_LEAST, min(_BLOCK, room // _PER_EDGE // 10))
        ptr = self._counted(order, targets)
        widest = int(ptr.diff().max()) if targets > 0 else 0
        if room < _PER_EDGE * max(widest, _LEAST):
            lacking = _PER_EDGE * max(widest, _LEAST) - room
            raise ConfigError(
                f"memory is too small: to sort the edges of {targets:,} nodes, of which one has {widest:,}, takes "
                f"{lacking:,} bytes more."
            )
        self._store.array(f"{name}_ptr", (targets + 1,), torch.int64).write(0, ptr)
        start = 0
        while start < targets or (start == targets == 0):
            last = int(torch.searchsorted(ptr, ptr[start] + room // _PER_EDGE, right=True)) - 1
            stop = min(max(start + 1, last), targets)
            self._sort_range(order, name, ptr, start, stop)
            start = max(stop, 1)
        self._store.finish(name, 1)

    def _counted(self, order: Order, targets: int) -> Tensor:
        """Returns where the edges of each receiver begin."""
        ptr = torch.zeros(targets + 1, dtype=torch.int64)
        for _, receiver, _ in self._blocks(order):
            ptr[1:].scatter_add_(0, receiver, torch.ones_like(receiver))
        ptr[1:] += order.listing.loops is not None
        return torch.cumsum(ptr, 0, out=ptr)

    def files(self, order: Order) -> Files:
        """Returns an order that is sorted."""
        name = self._names[order]
        places = self._store.array(f"{name}_places") if order.listing in self._listed else None
        senders = self._store.array(f"{name}_senders") if self._source(order) is not None else None
        return Files(self._store.array(f"{name}_ptr"), senders, places)

    def _source(self, order: Order) -> int | None:
        """Returns how many nodes there are that may send; None: no row of theirs is read."""
        space = self._whole.rows.at.get((order.listing, order.send))
        return None if space is None else self._whole.count(space)

    def drop(self) -> None:
        """Deletes the files."""
        for name in self._names.values():
            for part in ("ptr", "senders", "places"):
                self._store.drop(f"{name}_{part}")

    def _sort_range(self, order: Order, name: str, ptr: Tensor, start: int, stop: int) -> None:
        """Writes the edges to some of the receivers."""
        listing, source, asked = order.listing, self._source(order), order.listing in self._listed
        if source is None and not asked:
            return
        found = [(_NONE, _NONE, _NONE)]
        for sender, receiver, places in self._blocks(order):
            if start == 0 and stop == ptr.numel() - 1:
                found.append((sender, receiver, places))
            else:
                inside = (receiver >= start) & (receiver < stop)
                found.append((sender[inside], receiver[inside] - start, places[inside] if asked else places))
        if listing.loops is not None:  # behind all others
            own = torch.arange(start, stop)
            found.append((own, own - start, _NONE))
        sender, receiver, places = (torch.cat(parts) for parts in zip(*found, strict=True))
        del found
        rows = _ANY if source is None else source
        _, senders, edges = receiver_order(sender, receiver, rows, stop - start, positions=asked)
        edges_of_all, begin = int(ptr[-1]), int(ptr[start])
        if source is not None:
            self._store.array(f"{name}_senders", (edges_of_all,), senders.dtype).write(begin, senders)
        if asked:
            self._store.array(f"{name}_places", (edges_of_all,), torch.int64).write(begin, places[edges])

    def _blocks(self, order: Order) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields senders, receivers and places of edges, as they are listed; without the loops of a node's own."""
        listing, whole = order.listing, self._whole
        ends, mapped = whole.of(listing.base), whole.lies_in_file(listing.base)
        asked = listing in self._listed
        known = ((end, whole.rows.at.get((listing, end))) for end in (order.send, order.receive))
        counts = {end: whole.count(space) for end, space in known if space is not None}
        for start in range(0, ends.size(1), self._block):
            block = ends[:, start : start + self._block]
            taken = block.long().clone() if mapped or block.dtype != torch.int64 else block
            if mapped:
                release(block[0])
                release(block[1])
            for end, count in counts.items():
                check_edges(taken[end].expand(2, -1), count)
            if listing.drop:
                taken = taken[:, taken[0] != taken[1]]
            places = torch.arange(start, start + taken.size(1)) if asked else _NONE  # of a list with none left out
            yield taken[order.send], taken[order.receive], places


_NONE = torch.empty(0, dtype=torch.int64)
_ANY = (1 << 31) - 1
"""As many senders as int32 can count."""

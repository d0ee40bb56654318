"""A stage of a graph on a chunk of rows: the same operations, on the edges to these nodes and the rows of who sends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch_geometric.utils import scatter, softmax

from dqconvert.kernels.integer.receivers import gcn_order, inverse_roots, receiver_order
from dqconvert.lower.runtime import group_order
from dqconvert.lower.staged.csr import Orders
from dqconvert.lower.staged.kinds import OF_ROWS, Count, End, Listed, Listing, Nodes, Order, Part, Sent, Sorted, Space
from dqconvert.lower.staged.rows import sent
from dqconvert.lower.staged.stages import Stage
from dqconvert.lower.staged.whole import WholeGraph, call
from dqconvert.ops import Moves, op_of, op_of_layer
from dqconvert.quant import groups_of_nodes
from dqconvert.rewrite.norms import node_norm
from dqconvert.store import Array, release, take


class Edges:
    """The edges to the nodes of a chunk.

    Args:
        ptr: int64 ``[rows + 1]``, where the edges to each begin.
        senders: Of each edge.
        places: In the list of edges; None: nobody asks.
        ids: The nodes that send, rising: ``senders`` are positions in it. None: ``senders`` are the nodes.
    """

    def __init__(self, ptr: Tensor, senders: Tensor, places: Tensor | None, ids: Tensor | None) -> None:
        self.ptr, self.senders, self.places, self.ids = ptr, senders, places, ids

    @property
    def receivers(self) -> Tensor:
        """The row of the chunk that each edge goes to."""
        return torch.repeat_interleave(self.ptr.diff())


class Chunk:
    """A chunk of rows.

    Args:
        stage: What is computed.
        start, stop: Which nodes.
        whole: The graph.
        root: The module that it is of.
        orders: Its edges by their receivers.
        array: Returns the rows of a result of a stage before.
        window: Bytes of a file that are in memory at once. None: whatever is read of it, so that the rows of who sends
            need not be copied.

    Attributes:
        row_bytes: Of each value that was read or computed, the bytes of a row.
    """

    def __init__(
        self,
        stage: Stage,
        start: int,
        stop: int,
        *,
        whole: WholeGraph,
        root: nn.Module,
        orders: Orders,
        array: Callable[[Node], Array],
        window: int | None,
    ) -> None:
        self._stage, self._start, self._stop = stage, start, stop
        self._whole, self._rows, self._root = whole, whole.rows, root
        self._orders, self._array, self._window = orders, array, window
        self._known: dict[Node, Any] = {}
        self._edges: dict[Order, Edges] = {}
        self.row_bytes: dict[Node, int] = {}

    def run(self) -> dict[Node, Tensor]:
        """Returns the rows of the results of the stage."""
        with torch.no_grad():
            for node in self._stage.reads:
                self._keep(node, self._read(node))
            for node in self._stage.nodes:
                self._keep(node, self._compute(node))
                for value in self._stage.last.get(node, ()):
                    self._known.pop(value, None)
        found = {node: self._known[node] for node in self._stage.results}
        for node in self._stage.reads:
            if node in self._rows.given and self._whole.lies_in_file(node):
                release(self._whole.of(node))
        return found

    def _keep(self, node: Node, value: Any) -> None:
        self._known[node] = value
        if isinstance(value, Tensor) and isinstance(self._rows.kinds[node], OF_ROWS):
            self.row_bytes[node] = math.prod(value.shape[1:]) * value.element_size()

    # -- rows that are there -------------------------------------------------------------------------------------------

    def _read(self, node: Node) -> Any:
        kind = self._rows.kinds[node]
        if node not in self._rows.given:
            return self._array(node).read(self._start, self._stop)
        whole: Tensor = self._whole.of(node)
        if isinstance(kind, Nodes):
            return whole[self._start : self._stop]
        assert isinstance(kind, Listed)
        places = self.edges(self._order_of(kind.listing)).places
        assert places is not None
        rising, order = places.sort()
        rows = take(whole, rising, self._window or whole.nbytes, mapped=self._whole.lies_in_file(node))
        return torch.empty_like(rows).index_copy_(0, order, rows)

    def edges(self, order: Order) -> Edges:
        """Returns the edges to the nodes of the chunk."""
        if order not in self._edges:
            files = self._orders.files(order)
            ptr = files.ptr.read(self._start, self._stop + 1)
            first, last = int(ptr[0]), int(ptr[-1])
            senders, ids = torch.zeros(last - first, dtype=torch.int32), None
            if files.senders is not None:
                senders = files.senders.read(first, last)
            if self._window is not None and files.senders is not None:
                ids, positions = senders.long().unique(return_inverse=True)
                senders = positions.to(senders.dtype)
            places = None if files.places is None else files.places.read(first, last)
            self._edges[order] = Edges(ptr - first, senders, places, ids)
        return self._edges[order]

    def _order_of(self, listing: Listing) -> Order:
        receive = self._rows.receives(listing)
        return Order(listing, 1 - receive, receive)

    def _sent(self, node: Node, order: Order) -> Tensor:
        """Returns the rows of the nodes that send."""
        ids, given = self.edges(order).ids, node in self._rows.given
        source: Tensor = self._whole.of(node) if given else self._array(node).mapped()
        if ids is None or self._window is None:
            return source
        return take(source, ids, self._window, mapped=self._whole.lies_in_file(node) if given else True)

    # -- rows that are computed ----------------------------------------------------------------------------------------

    def _compute(self, node: Node) -> Any:
        kind, target = self._rows.kinds[node], node.target
        if target is sent:
            assert isinstance(kind, Sent)
            return self._sent(node.args[0], kind.order)  # type: ignore[arg-type]
        if target in (receiver_order, gcn_order):
            assert isinstance(kind, tuple)
            assert isinstance(kind[0], Part)
            edges = self.edges(kind[0].order)
            third = inverse_roots(edges.ptr) if target is gcn_order else torch.arange(edges.senders.numel())
            return edges.ptr, edges.senders, third
        if target is group_order:
            assert isinstance(kind, tuple)
            assert isinstance(kind[0], Part)
            edges = self.edges(kind[0].order)
            return edges.ptr, torch.arange(edges.senders.numel(), dtype=torch.int32)
        if target in (groups_of_nodes, node_norm):
            return self._of_degrees(node)
        args, kwargs = map_arg((node.args, node.kwargs), lambda one: self._argument(one, node))
        return call(node, self._root, args, kwargs)

    def _of_degrees(self, node: Node) -> Any:
        """Returns what follows from how many edges each node receives."""
        receivers = [self.edges(order).receivers for order in self._rows.degrees[node]]
        rows = self._stop - self._start
        if node.target is groups_of_nodes:
            return groups_of_nodes(rows, node.args[1], *receivers)
        return node_norm(torch.stack(receivers * 2), rows, *node.args[2:])  # type: ignore[arg-type]

    def _argument(self, value: Node, reader: Node) -> Any:
        if value in self._known:
            return self._known[value]
        kind = self._rows.kinds[value]
        if isinstance(kind, End) and value not in self._rows.given:
            edges = self.edges(self._order_of(kind.listing))
            return edges.receivers if kind.end == self._rows.receives(kind.listing) else edges.senders.long()
        if isinstance(kind, Count) and self._counts_rows(reader):
            return self._count(kind.of)
        return self._whole.of(value)

    def _counts_rows(self, reader: Node) -> bool:
        """True if an operation is told how many rows a result has, and not a number of the graph."""
        layer = self._root.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        adds_up = reader.target in (softmax, scatter) or (layer is not None and bool(op_of_layer(layer).reduces))
        return adds_up or op_of(reader).moves in (Moves.RESHAPE, Moves.EXPAND, Moves.ITEM)

    def _count(self, of: Space | Listing) -> int:
        if isinstance(of, Listing):
            return self.edges(self._order_of(of)).senders.numel()
        return self._stop - self._start


class Costs:
    """What a chunk of a stage takes in memory.

    Args:
        chunk: An empty one, which has run.
        copies: Whether rows of who sends are copied.

    Attributes:
        row: Bytes for each node.
        edge: Bytes for each edge, by their order; of who sends, too, as if each edge had a sender of its own.
    """

    def __init__(self, chunk: Chunk, stage: Stage, whole: WholeGraph, *, copies: bool) -> None:
        rows = whole.rows
        self.row, self.edge = 64, dict.fromkeys(stage.orders, 64)
        for node, size in chunk.row_bytes.items():
            kind = rows.kinds[node]
            if isinstance(kind, Nodes):
                self.row += size
            elif isinstance(kind, Listed):
                receive = rows.receives(kind.listing)
                self.edge[Order(kind.listing, 1 - receive, receive)] += size
            elif isinstance(kind, Sorted) or (isinstance(kind, Sent) and copies):
                self.edge[kind.order] += size

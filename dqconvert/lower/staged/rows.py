"""What the rows of each value in an integer graph are: nodes, edges as they are listed, or edges by their receivers.

Each operation that is known to compute a row from the rows of the same node or edge has rows of that kind. What reads
the rows of other nodes says so by :func:`sent`, which :class:`Rows` writes in front of it. All else is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.errors import LoweringError
from dqconvert.kernels.integer.receivers import gcn_codes
from dqconvert.lower.staged.kinds import (
    OF_ROWS,
    Count,
    End,
    Ends,
    Kind,
    Listed,
    Listing,
    Made,
    Nodes,
    Order,
    Part,
    Sent,
    Sorted,
    Space,
    Stacked,
    Whole,
    is_argument,
)
from dqconvert.ops import qualified_name
from dqconvert.rewrite.connectivity import input_name, is_connectivity
from dqconvert.rewrite.derive import Size, dimensions, grows
from dqconvert.trace.note import annotate, note_of


def sent(x: Tensor, senders: Tensor) -> Tensor:
    """Marks where rows of other nodes are read: those that send along the edges of an order.

    Args:
        x: A row for each node.
        senders: Of an order, or an end of edges.
    """
    return x


def codes_between(ptr: Tensor, senders: Tensor, own: Tensor, others: Tensor, grid: Tensor) -> Tensor:
    """Computes :func:`dqconvert.kernels.integer.receivers.gcn_codes` where senders are other nodes than receivers.

    Args:
        own: The numbers of the receivers.
        others: The numbers of the senders.
    """
    rest = ptr[-1:].expand(others.numel())
    return gcn_codes(torch.cat([ptr, rest]), senders + own.numel(), torch.cat([own, others]), grid)


def from_front(value: Any, dim: Any) -> int | None:
    """Returns a dimension of a value counted from the front; None: it is not known."""
    ndim = note_of(value).ndim if isinstance(value, Node) else 0
    known = isinstance(dim, int) and (dim >= 0 or ndim > 0)
    return (dim if dim >= 0 else dim + ndim) if known else None


class Rows:
    """The rows of each value of a graph.

    Args:
        graph: From :func:`dqconvert.lower.staged.unfold.unfolded`; reads of other nodes' rows are marked in it.
        root: The module that it is of.

    Attributes:
        kinds: Of each node.
        given: Nodes whose values are there for the whole graph: arguments, and what follows from the edges alone.
        at: The kind of nodes at an end of a list of edges.
        degrees: Of nodes that read in-degrees, the orders of the edges that are counted.
        picks: Nodes that take rows by an end of edges: the position of the rows, the end, the node that holds it.
    """

    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.kinds: dict[Node, Kind] = {}
        self.given: set[Node] = set()
        self.at: dict[tuple[Listing, int], Space] = {}
        self.degrees: dict[Node, list[Order]] = {}
        self._edges: dict[Size, Listing | None] = {}
        self.picks: list[tuple[Node, int, End, Node]] = []
        for node in filter(is_argument, graph.nodes):
            if is_connectivity(node) and not note_of(node).sparse:
                self._listed(node)
        self._receives: dict[Listing, int] = {}

    def kind(self, value: Any) -> Kind:
        """Returns the kind of an argument."""
        return self.kinds[value] if isinstance(value, Node) else Whole()

    def receives(self, listing: Listing) -> int:
        """Returns the end of edges at which rows for them are added up."""
        return self._receives.get(listing, 1)

    def space(self, kind: Kind) -> Space | None:
        """Returns the nodes whose rows a value belongs to: of edges, those that receive."""
        if isinstance(kind, Stacked):
            return self.space(kind.of)
        if isinstance(kind, Nodes):
            return kind.space
        if isinstance(kind, Listed):
            return self.at.get((kind.listing, self.receives(kind.listing)))
        return self.at.get((kind.order.listing, kind.order.receive)) if isinstance(kind, Sorted | Sent) else None

    def refuse(self, node: Node, why: str) -> LoweringError:
        """Returns the error that an operation cannot be computed in parts."""
        note = note_of(node)
        where = ", ".join(filter(None, (note.module and f"module {note.module!r}", note.source))) or node.name
        return LoweringError(
            f"infer cannot cut {qualified_name(node)} ({where}): {why}. Run the module on the whole graph instead."
        )

    def rows(self, value: Any) -> Nodes | Listed | Sorted | Sent | Stacked | None:
        """Returns the kind of an argument that has rows; None: it has none."""
        kind = self.kind(value)
        return kind if isinstance(kind, OF_ROWS) else None

    def of_whole(self, node: Node) -> Kind:
        """Returns the kind of an argument, or of what is computed of the graph as a whole."""
        note = note_of(node)
        self.given.add(node)
        if not note.is_tensor:
            return Whole() if is_argument(node) else Made()
        if note.sparse:
            raise self.refuse(node, "it is a sparse matrix; prepare the model with an edge_index")
        sizes = dimensions(note)
        if is_connectivity(node):
            return Ends(self._listed(node))
        if not sizes or not grows(sizes[0]):
            return Whole()
        if sizes[0] not in self._edges or (len(sizes[0]) == 1 and not input_name(node).startswith("edge")):
            return Nodes(sizes[0])
        together = node.args[0].users if node.target is operator.getitem else ()  # type: ignore[union-attr]
        sources = [one for one in together if one.target is operator.getitem and is_connectivity(one)]
        listing = Listing(sources[0]) if len(sources) == 1 and not is_argument(node) else self._edges[sizes[0]]
        if listing is None:
            raise self.refuse(node, "of which edges its rows are is not known: there are two lists of as many")
        return Listed(listing)

    def _listed(self, node: Node) -> Listing:
        """Returns a list of edges, and notes how many there are."""
        listing, size = Listing(node), dimensions(note_of(node))[1]
        if self._edges.setdefault(size, listing) != listing:
            self._edges[size] = None
        return listing

    def layer(self, node: Node) -> nn.Module | None:
        """Returns the layer that a node calls, if it calls one."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def stands_at(self, node: Node, listing: Listing, end: int, space: Any) -> None:
        """Notes which nodes are at an end of edges."""
        space = space.of if isinstance(space, Count) else space
        fits = isinstance(space, tuple) and listing.loops in (None, space)
        if not fits or self.at.setdefault((listing, end), space) != space:
            raise self.refuse(node, "which nodes its edges are between is not known")

    def received(self, node: Node, order: Order) -> None:
        """Notes at which end of edges rows for them are added up."""
        if self._receives.setdefault(order.listing, order.receive) != order.receive:
            raise self.refuse(node, "messages pass along the same edges both ways")

    def mark(self, node: Node, x: Any, order: Order, senders: Any) -> Node:
        """Returns the mark, in front of a node, that it reads the rows of senders."""
        kind = self.kind(x)
        if not isinstance(kind, Nodes):
            raise self.refuse(node, "what is sent is no row of a node")
        self.stands_at(node, order.listing, order.send, kind.space)
        with self.graph.inserting_before(node):
            mark = annotate(self.graph.call_function(sent, (x, senders)), note_of(x))
        self.kinds[mark] = Sent(order)
        return mark

    def check_own(self, node: Node, values: Iterable[Any], kind: Kind) -> None:
        """Checks that values have a row for each row of the result."""
        for value in values:
            if value is not None and self.kind(value) != kind:
                raise self.refuse(node, "its rows are of several kinds")

    def of_order(self, node: Node, ptr: Any, other: Any) -> Order:
        """Returns the order that two arguments are parts of."""
        parts = self.kind(ptr), self.kind(other)
        if not all(isinstance(part, Part) for part in parts) or parts[0].order != parts[1].order:  # type: ignore[union-attr]
            raise self.refuse(node, "its rows are in an order that is not of edges")
        return parts[0].order  # type: ignore[union-attr]

    def mark_pick(self, node: Node, position: int, by: End, index: Node) -> None:
        """Marks a pick of the rows of senders, now that it is known which end sends."""
        kind = self.kind(node.args[position])
        if not isinstance(kind, Nodes):
            raise self.refuse(node, "what is sent is no row of a node")
        self.stands_at(node, by.listing, by.end, kind.space)
        receive = self.receives(by.listing)
        if by.end != receive:
            mark = self.mark(node, node.args[position], Order(by.listing, by.end, receive), index)
            node.args = (*node.args[:position], mark, *node.args[position + 1 :])

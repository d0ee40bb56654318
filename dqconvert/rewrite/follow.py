"""Nodes that hold something of each row of a row space: made once, and followed through pooling and joins."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from dqconvert.quant import gather_protected
from dqconvert.rewrite.connectivity import ancestors, input_connectivities, is_connectivity, is_input
from dqconvert.rewrite.derive import (
    Derivation,
    How,
    Size,
    cut_protected,
    dimensions,
    join_protected,
    repeat_protected,
)
from dqconvert.rewrite.spaces import Level, RowSpaces, Sender
from dqconvert.trace.adjacency import targets_of
from dqconvert.trace.globals import read_global
from dqconvert.trace.guards import ARGUMENT_CHECKS
from dqconvert.trace.note import Note, annotate, note_of

_DERIVE: dict[How, Callable[..., Tensor | None]] = {
    How.PICK: gather_protected,
    How.CUT: cut_protected,
    How.JOIN: join_protected,
    How.REPEAT: repeat_protected,
}


class RowFollower:
    """Writes, as it is asked for them, nodes that hold something of each row; a subclass says what, and for edges how.

    Args:
        graph: The graph to write into.
        rows: Its row spaces.
    """

    def __init__(self, graph: Graph, rows: RowSpaces) -> None:
        self.graph = graph
        self.rows = rows
        self._nodes: dict[tuple[Size, Node | None], Node | None] = {}
        self._edges: dict[tuple[Node, int], Node] = {}

    def of(self, value: Node) -> Node | None:
        """Returns the node that holds it for the rows of ``value``; ``None`` if nothing is known about them."""
        if self.rows.level(value) is Level.NODE:
            space = self.rows.space(value)
            return None if space is None else self._of_nodes(space, value)
        sender = self.rows.sender(value)
        return None if sender is None else self._of_edges(sender, value)

    def _of_edges(self, sender: Sender, value: Node) -> Node | None:
        """Returns the node that holds it for the edges of a value."""
        raise NotImplementedError

    def _made(self, space: Size, holder: Node, dim: int) -> Node | None:
        """Writes what holds it for nodes whose rows are those of ``holder``, along a dimension."""
        raise NotImplementedError

    def _of_nodes(self, space: Size, value: Node) -> Node | None:
        """Returns the node that holds it for the nodes that ``value`` has a row for."""
        derived = self.rows.derivation(value, space)
        key = (space, None if derived is None else derived.node)
        if key not in self._nodes:
            self._nodes[key] = None  # rows that would come from themselves have none
            holder = self._first_value(space)
            if derived is not None:
                self._nodes[key] = self._derive(derived)
            elif holder is not None:
                self._nodes[key] = self._made(space, *holder)
        return self._nodes[key]

    def _derive(self, derived: Derivation) -> Node | None:
        """Returns what holds it for rows that were made from others: what was done to the rows is done to that."""
        found = [self._of_nodes(size, source) for size, source in zip(derived.parts, derived.sources, strict=True)]
        parts = [node for node in found if node is not None]
        if len(parts) < len(found):
            return None
        with self._after([*parts, *(part for part in derived.arguments if isinstance(part, Node))]) as place:
            source = parts if derived.how is How.JOIN else parts[0]
            return place.call("call_function", _DERIVE[derived.how], (source, *derived.arguments))

    # -- the graph -------------------------------------------------------------------------------------------------

    def _received(self, space: Size, holder: Node) -> list[tuple[Node, int]]:
        """Returns the connectivities that reach these nodes, and the row of each that holds the receivers.

        Those given to the model, before any self-loops are added, and of several node types all that end at this one;
        for rows that the model makes (clusters), the first connectivity that it makes among them.
        """
        found: dict[tuple[Node, int], None] = {}
        for sender in self.rows.targets.get(space, []):
            if not is_input(holder):
                return [(self._first_connectivity(sender.edge_index, holder), 1 - sender.row)]
            for edge_index in input_connectivities(sender.edge_index):
                found[edge_index, 1 - sender.row] = None
        known = {edge_index for edge_index, _ in found}
        kind = type_of(holder) if is_input(holder) else None
        for node in self.graph.nodes if kind is not None else ():
            if is_input(node) and is_connectivity(node) and node not in known and _target_type_of(node) == kind:
                found[node, 1] = None
        return [(node, row) for node, row in found if not any((user, row) in found for user in node.users)]

    def _first_connectivity(self, edge_index: Node, holder: Node) -> Node:
        """Returns the first node of a connectivity among rows that the model makes, before any self-loops."""
        before = set(ancestors(holder))  # the connectivities of the rows that these were made from
        made = [n for n in ancestors(edge_index) if is_connectivity(n) and n not in before and not is_input(n)]
        return min(made, default=edge_index)

    def _first_value(self, space: Size) -> tuple[Node, int] | None:
        for node in self.graph.nodes:
            sizes = dimensions(note_of(node))
            if space in sizes and node.op != "get_attr":
                return node, sizes.index(space)
        return None

    # -- writing nodes ---------------------------------------------------------------------------------------------

    def _receiver(self, place: _Cursor, edge_index: Node, row: int) -> Node:
        """Writes the receiving node of every edge."""
        if note_of(edge_index).sparse:
            return place.call("call_function", targets_of, (edge_index,))
        return place.call("call_function", operator.getitem, (edge_index, row))

    def _after(self, nodes: Iterable[Node | None]) -> _Cursor:
        return _Cursor(self.graph, last_of(self.graph, [node for node in nodes if node is not None]))


def last_of(graph: Graph, nodes: list[Node]) -> Node:
    """Returns the last of some nodes; the last check of the inputs instead of anything before it.

    Placeholders stay together, and nothing is computed from inputs that do not fit.
    """
    checks = [graph.find_nodes(op="call_function", target=check, sort=False) for check in ARGUMENT_CHECKS]
    inputs = graph.find_nodes(op="placeholder", sort=False)
    return max(itertools.chain(nodes, inputs, *checks))


class _Cursor:
    """A point in the graph that moves on behind each node created at it."""

    def __init__(self, graph: Graph, after: Node) -> None:
        self.graph = graph
        self.last = after

    def __enter__(self) -> _Cursor:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def call(self, op: str, target: Any, args: tuple[Any, ...], source: str = "") -> Node:
        with self.graph.inserting_after(self.last):
            self.last = annotate(self.graph.create_node(op, target, args), Note(source=source))
        return self.last


def type_of(holder: Node) -> str | None:
    """Returns the node type of ``x_dict["paper"]`` and ``data["paper"].x``; ``None`` in a homogeneous graph."""
    return next((key for key in _keys(holder) if isinstance(key, str)), None)


def _target_type_of(connectivity: Node) -> str | None:
    """Returns the node type at which the edges end of ``edge_index_dict["author", "writes", "paper"]`` end."""
    return next((key[-1] for key in _keys(connectivity) if isinstance(key, tuple)), None)


def _keys(node: Node) -> Iterator[Any]:
    """Yields the dict keys that lead to a part of an input, the last one first."""
    while is_input(node) and node.op != "placeholder":
        if node.target is operator.getitem:
            yield node.args[1]
        elif node.target is read_global:  # of data["paper"].x, the type
            path: Any = node.args[2]
            yield from (key for (item, key), _ in reversed([*itertools.pairwise(path)]) if item)
        owner = node.args[0]
        if not isinstance(owner, Node):
            return
        node = owner

"""An integer graph, cut into stages where an operation reads other nodes' rows: each runs over chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node

from dqconvert.lower.staged.kinds import OF_ROWS, Form, Listed, Listing, Nodes, Order, Part, Sent, Sorted, Space
from dqconvert.lower.staged.rows import sent
from dqconvert.lower.staged.rules import rows_of
from dqconvert.lower.staged.unfold import unfolded
from dqconvert.trace.nested import nodes_in

_OF_CHUNKS = (*OF_ROWS, Form, Part, tuple)
"""Kinds of values that are computed for each chunk."""


@dataclass(frozen=True)
class Stage:
    """What is computed for a chunk of nodes of one kind, from rows that are there.

    Attributes:
        space: The kind of nodes.
        reads: Values whose own rows are read: given, or results of stages before.
        nodes: What is computed, in order.
        results: Of those, what other stages read, or the forward returns.
        sent: Values whose rows at the other ends of edges are read, and along which.
        orders: Orders of edges that it uses.
        last: By node, the values that nothing reads behind it.
    """

    space: Space
    reads: tuple[Node, ...]
    nodes: tuple[Node, ...]
    results: tuple[Node, ...]
    sent: tuple[tuple[Node, Order], ...]
    orders: tuple[Order, ...]
    last: Mapping[Node, tuple[Node, ...]]


class Stages:
    """A graph in stages.

    Args:
        graph: An integer graph; it is not changed.
        root: The module that it is of.

    Attributes:
        rows: What the rows of each value are.
        graph: Its graph.
        stages: In order.
        listed: Lists of edges that values are given for, as they are listed.

    Raises:
        LoweringError: For an operation that cannot be computed for a chunk of rows; it names it.
    """

    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self.graph = unfolded(graph, root)
        self.rows = rows_of(self.graph, root)
        self._place = {node: place for place, node in enumerate(self.graph.nodes)}
        self._levels = self._level_of_each()
        self.stages = tuple(self._cut())
        reads = {node for stage in self.stages for node in stage.reads}
        kinds = (self.rows.kinds[node] for node in reads)
        self.listed: frozenset[Listing] = frozenset(kind.listing for kind in kinds if isinstance(kind, Listed))

    def _level_of_each(self) -> dict[Node, int]:
        """Returns how many times rows of others were read, one behind the other, for each value."""
        levels: dict[Node, int] = {}
        for node in self.graph.nodes:
            inputs = [levels[source] for source in node.all_input_nodes if source in levels]
            if isinstance(self.rows.kinds.get(node), _OF_CHUNKS) and node not in self.rows.given:
                passed = node.target is sent and node.args[0] in levels
                levels[node] = max(inputs, default=0) + passed
        return levels

    def _cut(self) -> list[Stage]:
        output = next(iter(self.graph.find_nodes(op="output")))
        wanted: dict[tuple[int, Space], set[Node]] = {}
        for node in nodes_in(output.args):
            kind = self.rows.kinds[node]
            if isinstance(kind, Nodes):
                self._want(node, wanted)
            elif isinstance(kind, _OF_CHUNKS):
                raise self.rows.refuse(node, "the forward returns a row for each edge")
        found: list[Stage] = []
        while wanted:
            key = max(wanted)
            found.append(self._stage(key, wanted.pop(key), wanted))
        return found[::-1]

    def _want(self, node: Node, wanted: dict[tuple[int, Space], set[Node]]) -> None:
        kind = self.rows.kinds[node]
        if isinstance(kind, Nodes) and node not in self.rows.given:
            wanted.setdefault((self._levels[node], kind.space), set()).add(node)

    def _stage(self, key: tuple[int, Space], results: set[Node], wanted: dict[tuple[int, Space], set[Node]]) -> Stage:
        level, space = key
        reads: dict[Node, None] = {}
        nodes: set[Node] = set()
        orders: dict[Order, None] = {}
        pending = list(results)
        while pending:
            node = pending.pop()
            kind = self.rows.kinds[node]
            if node in nodes or node in reads or not isinstance(kind, _OF_CHUNKS):
                continue
            if self.rows.space(kind) not in (None, space):
                raise self.rows.refuse(node, "it reads rows of another kind of nodes than it makes")
            if node in self.rows.given or (isinstance(kind, Nodes) and self._levels[node] < level):
                reads[node] = None
                self._want(node, wanted)
                continue
            nodes.add(node)
            orders.update(dict.fromkeys(self._orders_of(node)))
            if node.target is sent:
                self._want(node.args[0], wanted)  # type: ignore[arg-type]
                pending.append(node.args[1])  # type: ignore[arg-type]
            else:
                pending += node.all_input_nodes
        ordered = sorted(nodes, key=self._place.__getitem__)
        return Stage(
            space=space,
            reads=tuple(sorted(reads, key=self._place.__getitem__)),
            nodes=tuple(ordered),
            results=tuple(sorted(results, key=self._place.__getitem__)),
            sent=tuple((node.args[0], self.rows.kinds[node].order) for node in ordered if node.target is sent),  # type: ignore[union-attr, misc]
            orders=tuple(orders),
            last=self._last_readers(ordered, results),
        )

    def _orders_of(self, node: Node) -> Iterator[Order]:
        """Yields the orders of edges that a node is computed with."""
        kind = self.rows.kinds[node]
        yield from self.rows.degrees.get(node, ())
        for one in kind if isinstance(kind, tuple) else (kind,):
            if isinstance(one, Sorted | Sent | Part):
                yield one.order
            elif isinstance(one, Listed):
                receive = self.rows.receives(one.listing)
                yield Order(one.listing, 1 - receive, receive)

    @staticmethod
    def _last_readers(nodes: list[Node], results: set[Node]) -> dict[Node, tuple[Node, ...]]:
        last: dict[Node, Node] = {}
        for node in nodes:
            last.update(dict.fromkeys(node.all_input_nodes, node))
        found: dict[Node, tuple[Node, ...]] = {}
        for value, node in last.items():
            if value not in results:
                found[node] = (*found.get(node, ()), value)
        return found

"""Row spaces: whether the rows of each value are nodes, edges or graphs, and which.

A row space is recognised by its size on *two* inputs: a dimension of 13 on the example and 17 on the second input is
the nodes if the tensor that messages are gathered from has 13 and 17 rows. The second input is made such that no two
spaces grow alike, so neither N == E nor a hidden width that equals N can be mistaken.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node
from torch.nn.utils.parametrize import is_parametrized

from dqconvert.ops import op_name
from dqconvert.rewrite.connectivity import (
    ancestors,
    edges_of,
    gather,
    gathers_over,
    is_connectivity,
    is_index,
    is_input,
    reads_size,
)
from dqconvert.rewrite.derive import Derivation, How, Size, derivations, dimensions, grows
from dqconvert.trace.note import Stage, note_of
from dqconvert.trace.runtime import stage_output


class Level(enum.StrEnum):
    """The kind of thing that one row of a value belongs to."""

    NODE = "node"
    EDGE = "edge"
    GRAPH = "graph"
    PARAMETER = "parameter"


@dataclass(frozen=True)
class Sender:
    """The nodes that send the messages of a row space of edges.

    Attributes:
        edge_index: The node that holds the connectivity.
        row: Which row of it holds the nodes that send.
        space: Size of the row space of the sending nodes.
        edges: Size of the row space of the edges.
        index: A node that holds the sending nodes already; ``None`` if it can be read off ``edge_index``.
        source: A value of the sending nodes; ``None`` if none was gathered.
    """

    edge_index: Node
    row: int
    space: Size
    edges: Size
    index: Node | None
    source: Node | None


class RowSpaces:
    """The row spaces of one graph.

    Args:
        graph: A traced graph.
        parameters: Paths of the model's parameters.
    """

    def __init__(self, graph: Graph, parameters: frozenset[str]) -> None:
        self.graph = graph
        self.parameters = parameters
        self.nodes: set[Size] = set()
        self.edges: set[Size] = set()
        self.targets: dict[Size, list[Sender]] = {}
        """Row spaces of nodes that receive messages, and over which edges."""
        self.derived: dict[Size, Derivation] = {}
        """Row spaces of nodes that were made from others, and how first."""
        self._picked: set[Size] = set()
        self._origins: dict[Node, dict[Size, Derivation]] = {}
        self._senders: dict[int, Sender] = {}
        self._parameter_only: dict[Node, bool] = {}
        self._from_features: dict[Node, bool] = {}
        self._find_spaces()
        self._find_derived()
        for node in graph.nodes:
            self._parameter_only[node] = self._is_parameter_only(node)
            self._from_features[node] = self._is_from_features(node)

    # -- finding the spaces ----------------------------------------------------------------------------------------

    def _find_spaces(self) -> None:
        received: dict[int, Size] = {}
        node_dims: dict[int, int] = {}
        for node in self.graph.nodes:
            note = note_of(node)
            gathered = gather(node)
            if gathered is not None:
                self.nodes.add(gathered.space)
                self.edges.add(gathered.edges)
                if isinstance(node.args[1], int):  # as the layer writes it: from the front, or from the back
                    node_dims.setdefault(note.propagation, node.args[1])
            if node.target is stage_output and note.stage is Stage.AGGREGATE:
                sizes = dimensions(note)
                dim = node_dims.get(note.propagation, -2)
                if -len(sizes) <= dim < len(sizes):
                    received[note.propagation] = sizes[dim]
        self.nodes.update(received.values())
        for node in self.graph.nodes:
            if node.target is stage_output and len(node.args) == 4:
                edge_index, row = node.args[2], node.args[3]
                if isinstance(edge_index, Node) and is_connectivity(edge_index):
                    self._add_sender(node, edge_index, int(row), received)

    def _add_sender(self, marker: Node, edge_index: Node, row: int, received: dict[int, Size]) -> None:
        propagation = note_of(marker).propagation
        target = received.get(propagation)
        gathers = [g for g in gathers_over(edge_index) if g.row == row]
        edges = gathers[0].edges if gathers else None if note_of(edge_index).sparse else edges_of(edge_index)
        space = gathers[0].space if gathers else target
        if space is None or edges is None:
            return
        index = gathers[0].index if note_of(edge_index).sparse else None
        sender = Sender(edge_index, row, space, edges, index, gathers[0].source if gathers else None)
        self._senders[propagation] = sender
        self.edges.add(edges)
        if target is not None:
            self.targets.setdefault(target, []).append(sender)

    def _find_derived(self) -> None:
        """Adds row spaces of nodes: rows made from nodes are nodes, and so are rows that were joined to nodes."""
        given = {size for node in self.graph.nodes if is_input(node) for size in dimensions(note_of(node))}
        made: list[tuple[Size, Derivation]] = []
        kept: list[tuple[Size, Derivation]] = []
        for node in self.graph.nodes:
            if node.op not in ("call_function", "call_method") or is_input(node):
                continue
            for dim, found in derivations(node).items():
                size = dimensions(note_of(node))[dim]
                # Without a second input any width may pass for rows: only what is surely about rows counts.
                if found.parts == (size,):
                    # Each row stays, on these inputs: no space of a size of its own. Along edges, by chance.
                    if gather(node) is None and len(size) > 1:
                        kept.append((size, found))
                elif grows(size) and size not in given and (len(size) > 1 or found.how in (How.PICK, How.CUT)):
                    made.append((size, found))
        before = -1
        while before != len(self.nodes) + len(self.derived):
            before = len(self.nodes) + len(self.derived)
            for size, found in made:
                if size in self.derived or size in self.edges:
                    continue
                if all(part in self.nodes for part in found.parts):
                    if size not in self.nodes and found.how is How.PICK:
                        self._picked.add(size)
                    self.nodes.add(size)
                    self.derived[size] = found
                elif size in self.nodes and found.how in (How.JOIN, How.REPEAT):
                    self.nodes.update(part for part in found.parts if grows(part) and part not in self.edges)
        self._find_origins([*((size, found) for size, found in made if size in self.derived), *kept])

    def _find_origins(self, made: list[tuple[Size, Derivation]]) -> None:
        """Notes for each node how the rows were made that it was computed from: several picks may be of one size."""
        own: dict[Node, dict[Size, Derivation]] = {}
        for size, found in made:
            if all(part in self.nodes for part in found.parts):
                own.setdefault(found.node, {})[size] = found
        for node in self.graph.nodes if own else ():
            origins: dict[Size, Derivation] = {}
            for source in reversed(node.all_input_nodes):
                origins |= self._origins[source]
            self._origins[node] = origins | own.get(node, {})

    def derivation(self, node: Node, space: Size) -> Derivation | None:
        """Returns how the rows of a node-level value were made from others; ``None`` if they were not."""
        return self._origins.get(node, {}).get(space) or self.derived.get(space)

    def _is_nodes(self, node: Node, size: Size) -> bool:
        return size in self.nodes and (size not in self._picked or size in self._origins[node])

    # -- asking ----------------------------------------------------------------------------------------------------

    def level(self, node: Node) -> Level:
        """Returns the kind of thing that one row of the node's value belongs to."""
        if self.parameter_only(node):
            return Level.PARAMETER
        note = note_of(node)
        sizes = dimensions(note)
        sender = self._senders.get(note.propagation)
        if note.stage in (Stage.MESSAGE, Stage.EDGE_UPDATE) and sender is not None and sender.edges in sizes:
            return Level.EDGE  # also where a relation happens to have as many edges as there are nodes
        if any(self._is_nodes(node, size) for size in sizes):
            return Level.NODE
        return Level.EDGE if any(size in self.edges for size in sizes) else Level.GRAPH

    def row_dim(self, node: Node) -> int:
        """Returns the dimension that holds the rows; 0 where there are none."""
        sizes = dimensions(note_of(node))
        if self.level(node) is Level.NODE:
            return next(dim for dim, size in enumerate(sizes) if self._is_nodes(node, size))
        return next((dim for dim, size in enumerate(sizes) if size in self.edges), 0)

    def space(self, node: Node) -> Size | None:
        """Returns the row space of a node-level value; ``None`` if it has none."""
        return next((size for size in dimensions(note_of(node)) if self._is_nodes(node, size)), None)

    def sender(self, node: Node) -> Sender | None:
        """Returns the nodes that send along the rows of an edge-level value; ``None`` if they are unknown."""
        propagation = note_of(node).propagation
        size = dimensions(note_of(node))[self.row_dim(node)]
        own = self._senders.get(propagation)
        if own is not None and own.edges == size:
            return own
        # Outside of a layer: the edges that came about with the value (of `gcn_norm`, both) or that it was gathered
        # over, whichever is nearer; else the first ones of that size.
        senders = [s for s in self._senders.values() if s.edges == size]
        for ancestor in ancestors(node):
            for sender in senders:
                origin = sender.edge_index
                if ancestor is origin or (op_name(origin) == "getitem" and ancestor is origin.args[0]):
                    return sender
            gathered = gather(ancestor)
            if gathered is not None and gathered.edges == size and not note_of(gathered.edge_index).sparse:
                edge_index = gathered.edge_index
                row = next((s.row for s in self._senders.values() if s.edge_index is edge_index), 0)
                return Sender(edge_index, row, gathered.space, size, None, gathered.source)
        return senders[0] if senders else None

    def parameter_only(self, node: Node) -> bool:
        """True if the value is a parameter or computed from parameters alone."""
        return self._parameter_only[node]

    def from_features(self, node: Node) -> bool:
        """True if the value was computed from node features, not from the graph and edge features alone."""
        return self._from_features[node]

    def _is_parameter_only(self, node: Node) -> bool:
        if node.op == "get_attr":
            return node.target in self.parameters
        if node.op not in ("call_function", "call_method") or not note_of(node).is_tensor:
            return False
        inputs = [n for n in node.all_input_nodes if note_of(n).is_tensor]
        return bool(inputs) and all(self._parameter_only[n] for n in inputs)

    def _is_from_features(self, node: Node) -> bool:
        note = note_of(node)
        if is_input(node):
            return note.is_tensor and not is_index(node) and any(size in self.nodes for size in dimensions(note))
        return not reads_size(node) and any(self._from_features[n] for n in node.all_input_nodes)


def parameter_paths(module: nn.Module) -> frozenset[str]:
    """Returns the paths of all parameters, under each of their names, and of parametrized ones (weight norm)."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for path, owner in module.named_modules():
        if is_parametrized(owner):
            names |= {f"{path}.{name}" if path else name for name in owner.parametrizations}
    return frozenset(names)

"""Writes protection into a graph: one draw per row space and forward, handed to every quantizer there."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.data.data import BaseData

from dqconvert.errors import ConfigError
from dqconvert.ops import op_of
from dqconvert.qconfig import Protect
from dqconvert.quant import Protection, gather_protected
from dqconvert.rewrite.connectivity import ancestors, input_connectivities, input_name, is_connectivity, is_input
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

ARGUMENT = "protect_prob"
"""The optional forward argument that takes probabilities computed elsewhere."""


def given_probability(
    argument: Any, data: Any, key: str | None, spaces: int, types: tuple[str, ...] | None = None
) -> Tensor | None:
    """Returns the protection probabilities that the caller gave for one row space, if any.

    Args:
        argument: ``protect_prob`` as passed: ``None``, a tensor, or a dict by node type.
        data: The PyG data object that forward takes, or ``None``.
        key: The node type of the row space; ``None`` in a homogeneous graph.
        spaces: How many kinds of nodes the model's inputs have.
        types: The node types of all of them.

    Raises:
        ConfigError: If one tensor is given for several row spaces, or a dict for one, or one with unknown node types.

    Example:
        >>> import torch
        >>> given_probability({"paper": torch.ones(2)}, None, "paper", 2)
        tensor([1., 1.])
    """
    if argument is None and isinstance(data, BaseData):
        store: Any = data if key is None else data[key]
        return getattr(store, ARGUMENT, None)
    if isinstance(argument, dict):
        unknown = [name for name in argument if name not in types] if types is not None else []
        if key is None or unknown:
            which = f"node types {', '.join(map(repr, unknown))}" if types else "a dict of node types"
            kinds = (
                f"its node types are {', '.join(map(repr, types))}" if types else "its graph has none: pass a tensor"
            )
            raise ConfigError(f"{ARGUMENT} has {which}, and the model knows none such: {kinds}.")
        return argument.get(key)
    if argument is not None and spaces > 1:
        raise ConfigError(
            f"{ARGUMENT} is one tensor, and the model has {spaces} kinds of nodes: pass a dict of node type to tensor."
        )
    return argument


_DERIVE: dict[How, Callable[..., Tensor | None]] = {
    How.PICK: gather_protected,
    How.CUT: cut_protected,
    How.JOIN: join_protected,
    How.REPEAT: repeat_protected,
}


class Masks:
    """Writes protection nodes into a graph as quantizers ask for them.

    Args:
        graph: The graph to write into.
        rows: Its row spaces.
        protect: The probabilities.
        modules: Takes the :class:`Protection` modules by name (shared by the graphs of a model).
        prefix: Path of the container that those are registered in.
    """

    def __init__(
        self, graph: Graph, rows: RowSpaces, protect: Protect, modules: dict[str, nn.Module], prefix: str
    ) -> None:
        self.graph = graph
        self.rows = rows
        self.protect = protect
        self.modules = modules
        self.prefix = prefix
        self._nodes: dict[tuple[Size, Node | None], Node | None] = {}
        self._edges: dict[tuple[Node, int], Node] = {}
        self._spaces = sorted(rows.nodes - set(rows.derived))

    def of(self, value: Node) -> Node | None:
        """Returns the node that holds the mask of the rows of ``value``; ``None`` if nothing is known about them."""
        if self.rows.level(value) is Level.NODE:
            space = self.rows.space(value)
            return None if space is None else self._of_nodes(space, value)
        sender = self.rows.sender(value)
        return None if sender is None else self._of_edges(sender, value)

    def _of_edges(self, sender: Sender, value: Node) -> Node | None:
        key = (sender.edge_index, sender.row)
        if key not in self._edges:
            mask = self._of_nodes(sender.space, sender.source or value)
            if mask is None:
                return None
            with self._after([mask, sender.edge_index, sender.index]) as place:
                index = sender.index
                if index is None:
                    index = place.call("call_function", operator.getitem, (sender.edge_index, sender.row))
                self._edges[key] = place.call("call_function", gather_protected, (mask, index))
        return self._edges[key]

    def _of_nodes(self, space: Size, value: Node) -> Node | None:
        """Returns the mask of the nodes that ``value`` has a row for."""
        derived = self.rows.derivation(value, space)
        key = (space, None if derived is None else derived.node)
        if key not in self._nodes:
            self._nodes[key] = None  # rows that would come from themselves have no protection
            holder = self._first_value(space)
            if derived is not None:
                mask = self._derive(derived)
            else:
                mask = None if holder is None else self._draw(space, *holder)
            self._nodes[key] = mask
        return self._nodes[key]

    def _derive(self, derived: Derivation) -> Node | None:
        """Returns the mask of rows that were made from others: what was done to the rows is done to it."""
        found = [self._of_nodes(size, source) for size, source in zip(derived.parts, derived.sources, strict=True)]
        masks = [mask for mask in found if mask is not None]
        if len(masks) < len(found):
            return None
        with self._after([*masks, *(part for part in derived.arguments if isinstance(part, Node))]) as place:
            source = masks if derived.how is How.JOIN else masks[0]
            return place.call("call_function", _DERIVE[derived.how], (source, *derived.arguments))

    def _draw(self, space: Size, holder: Node, dim: int) -> Node | None:
        connectivity = self._received(space, holder)
        batch = self._batch(space)
        argument = next((n for n in self.graph.nodes if n.op == "placeholder" and n.target == ARGUMENT), None)
        data = next((n for n in self.graph.nodes if n.op == "placeholder" and _takes_data(n)), None)
        with self._after([holder, batch, argument, data, *(edge_index for edge_index, _ in connectivity)]) as place:
            targets = [
                place.call("call_function", targets_of, (edge_index,))
                if note_of(edge_index).sparse
                else place.call("call_function", operator.getitem, (edge_index, row))
                for edge_index, row in connectivity
            ]
            rows = place.call("call_method", "size", (holder, dim))
            device = place.call("call_function", getattr, (holder, "device"))
            given = None
            if is_input(holder):  # rows that the model makes have no probabilities that a caller could know
                key = _type_of(holder)
                given = place.call(
                    "call_function", given_probability, (argument, data, key, self._kinds(), self._types())
                )
            name = "protect" if len(self._spaces) == 1 else f"protect_{self._spaces.index(space)}"
            self.modules.setdefault(name, Protection(self.protect))
            arguments = (targets, rows, batch, given, device)
            return place.call("call_module", f"{self.prefix}.{name}", arguments, note_of(holder).source)

    # -- what a draw needs -----------------------------------------------------------------------------------------

    def _kinds(self) -> int:
        """Returns the number of kinds of nodes that the caller knows of."""
        holders = [self._first_value(space) for space in self._spaces]
        return sum(holder is not None and is_input(holder[0]) for holder in holders)

    def _types(self) -> tuple[str, ...]:
        """Returns the node types that the caller knows of."""
        holders = [holder[0] for space in self._spaces if (holder := self._first_value(space)) is not None]
        return tuple(dict.fromkeys(kind for h in holders if is_input(h) and (kind := _type_of(h)) is not None))

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
        kind = _type_of(holder) if is_input(holder) else None
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

    def _batch(self, space: Size) -> Node | None:
        for node in self.graph.nodes:
            named = input_name(node) == "batch" or input_name(node).endswith("_batch") or _pools_by(node)
            if is_input(node) and named and dimensions(note_of(node)) == [space] and not note_of(node).is_float:
                return node
        return None

    # -- writing nodes ---------------------------------------------------------------------------------------------

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


def _takes_data(node: Node) -> bool:
    """True if a forward argument may be a data object: parts are taken out of it."""
    return any(is_input(user) for user in node.users)


def _type_of(holder: Node) -> str | None:
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


def _pools_by(node: Node) -> bool:
    return any(op_of(user).pools and node in user.args[1:] for user in node.users)

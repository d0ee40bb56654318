"""Writes protection into a graph: one draw per row space and forward, handed to every quantizer there."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.data.data import BaseData

from dqconvert.errors import ConfigError
from dqconvert.ops import op_of
from dqconvert.qconfig import Protect
from dqconvert.quant import Protection, gather_protected
from dqconvert.rewrite.connectivity import input_name, is_input
from dqconvert.rewrite.derive import Size, dimensions
from dqconvert.rewrite.follow import RowFollower, type_of
from dqconvert.rewrite.spaces import RowSpaces, Sender
from dqconvert.trace.note import note_of

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


class Masks(RowFollower):
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
        super().__init__(graph, rows)
        self.protect = protect
        self.modules = modules
        self.prefix = prefix
        self._spaces = sorted(rows.nodes - set(rows.derived))

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

    def _made(self, space: Size, holder: Node, dim: int) -> Node | None:
        connectivity = self._received(space, holder)
        batch = self._batch(space)
        argument = next((n for n in self.graph.nodes if n.op == "placeholder" and n.target == ARGUMENT), None)
        data = next((n for n in self.graph.nodes if n.op == "placeholder" and _takes_data(n)), None)
        with self._after([holder, batch, argument, data, *(edge_index for edge_index, _ in connectivity)]) as place:
            targets = [self._receiver(place, *received) for received in connectivity]
            rows = place.call("call_method", "size", (holder, dim))
            device = place.call("call_function", getattr, (holder, "device"))
            given = None
            if is_input(holder):  # rows that the model makes have no probabilities that a caller could know
                key = type_of(holder)
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
        return tuple(dict.fromkeys(kind for h in holders if is_input(h) and (kind := type_of(h)) is not None))

    def _batch(self, space: Size) -> Node | None:
        for node in self.graph.nodes:
            named = input_name(node) == "batch" or input_name(node).endswith("_batch") or _pools_by(node)
            if is_input(node) and named and dimensions(note_of(node)) == [space] and not note_of(node).is_float:
                return node
        return None


def _takes_data(node: Node) -> bool:
    """True if a forward argument may be a data object: parts are taken out of it."""
    return any(is_input(user) for user in node.users)


def _pools_by(node: Node) -> bool:
    return any(op_of(user).pools and node in user.args[1:] for user in node.users)

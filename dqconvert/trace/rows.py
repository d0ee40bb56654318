"""Finds the rows of inputs that are nodes or edges, and the edges among the first nodes.

It follows from the connectivities among them, from names, from dict keys (node types and edge types) and from sizes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data.data import BaseData

from dqconvert.trace.adjacency import edge_index_of, is_sparse, size_of
from dqconvert.trace.inputs import Inputs, attributes_of_batch

Type: TypeAlias = Any
"""A node type (``None`` in a homogeneous graph, ``0`` and ``1`` for a pair) or an edge type (a tuple of three)."""

Slot: TypeAlias = tuple[Type, str]
"""Slot of a tensor among inputs: the type whose rows it holds, and its name."""

_HYPEREDGE = "hyperedge"
_NODE_NAMES = ("x", "z", "pos", "batch", "h", "node_attr", "node_type", "features", "feat", "normal", "x_0")


@dataclass(frozen=True)
class InputGraph:
    """The graph among some inputs, and which part of it a second copy keeps.

    Attributes:
        nodes: Number of nodes of each type.
        parts: How many nodes of each type, from the first on, the copy keeps.
        ends: For each connectivity, the types that its two rows point to.
        edges: For each connectivity, how many edges it has.
        kept: For each connectivity, which of its edges the copy keeps: those among the kept nodes.
        graphs: Number of graphs in the batch.
        batch: The batch vector; ``None`` without one.
        node_dim: The dimension of node features that holds the nodes.
        hops: Lists of numbers of nodes or of edges per hop, and by how much the first hop's grows.
    """

    nodes: dict[Type, int]
    parts: dict[Type, int]
    ends: dict[Slot, tuple[Type, Type]]
    edges: dict[Slot, int]
    kept: dict[Slot, Tensor]
    graphs: int
    batch: Tensor | None
    node_dim: int
    hops: dict[Slot, int] = field(default_factory=dict)

    @staticmethod
    def among(inputs: Inputs, node_dim: int, fixed: bool = False) -> InputGraph | None:
        """Looks for it.

        Args:
            fixed: Take the numbers of nodes for the model's own, so that there may be more edges, not more nodes.

        Returns:
            ``None`` if there is none, or it is not clear which rows are which.
        """
        found: dict[Slot, Tensor] = {}
        lists: dict[Slot, list[int]] = {}

        def look(slot: Slot, value: Any) -> Any:
            if isinstance(value, Tensor):
                found[slot] = value
            if _are_counts(value):
                lists[slot] = value
            return value

        map_slots(inputs, look)
        if node_dim == -2 and not any(name == "x" and value.dim() > 2 for (_, name), value in found.items()):
            return None
        pair = any(kind in (0, 1) and kind is not None for kind, _ in found)
        indices = {slot: edge_index_of(v).cpu() for slot, v in found.items() if _is_connectivity(slot, v)}
        ends = {slot: _ends(slot, pair) for slot in indices}
        edges = {slot: index.size(1) for slot, index in indices.items()}
        if fixed:
            if any(is_sparse(value) for value in found.values()):  # a matrix holds each edge once
                return None
            twice = {slot: torch.arange((number + 1) // 2) for slot, number in edges.items()}
            none: dict[Type, int] = dict.fromkeys((end for pair_of in ends.values() for end in pair_of), 0)
            return InputGraph(none, none, ends, edges, twice, 1, None, 0) if edges else None
        # Pairs of nodes whose types nothing tells: more of the same pairs are as valid.
        typed = any(kind is not None and not isinstance(kind, tuple) for kind, _ in found)
        loose = {p for p in indices if typed and ends[p] == (None, None)}
        firm = {slot: index for slot, index in indices.items() if slot not in loose}
        sizes = {slot: size_of(found[slot]) for slot in firm}
        nodes = _count_nodes({p: v for p, v in found.items() if p not in loose}, firm, ends, sizes, node_dim)
        if nodes is None:
            return None
        batch = next((value for (_, name), value in found.items() if name == "batch"), None)
        graphs = int(batch.max()) + 1 if batch is not None and batch.numel() else 1
        matrices = {slot for slot in firm if is_sparse(found[slot]) or isinstance(found[slot], EdgeIndex)}
        parts, kept = _part(firm, ends, nodes, matrices)
        kept |= {slot: torch.arange((edges[slot] + 1) // 2) for slot in loose}
        hops = _hops(lists, nodes, parts, edges, kept)
        return InputGraph(nodes, parts, ends, edges, kept, graphs, batch, node_dim, hops)

    def rows(self, slot: Slot, value: Tensor) -> tuple[str, Slot | None]:
        """Returns what the rows of a tensor are, and for edges, of which connectivity: by type, by name, by size."""
        kind, name = slot
        over = [index for index, edges in self.edges.items() if edges == value.size(0)]
        over = [index for index in over if index[0] == kind] or (over if kind is None else [])
        if over and (isinstance(kind, tuple) or "edge" in name):
            return "edge", over[0]
        if value.size(node_dim_of(name, value, self.node_dim)) == self.nodes.get(kind, -1):
            return "node", None
        if over and name not in _NODE_NAMES:
            return "edge", over[0]
        return ("graph" if self.batch is not None and value.size(0) == self.graphs else ""), None


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _hops(
    lists: dict[Slot, list[int]],
    nodes: dict[Type, int],
    parts: dict[Type, int],
    edges: dict[Slot, int],
    kept: dict[Slot, Tensor],
) -> dict[Slot, int]:
    """Returns the lists that hold the numbers of nodes or of edges per hop: those that add up to all of them."""
    found: dict[Slot, int] = {}
    for (kind, name), counts in lists.items():
        over = [p for p, number in edges.items() if p[0] == kind and number == sum(counts)]
        is_nodes = kind in nodes and nodes[kind] == sum(counts)
        if is_nodes and not (over and "edge" in name):
            found[kind, name] = parts[kind]
        elif over:
            found[kind, name] = len(kept[over[0]])
    return found


def _is_connectivity(slot: Slot, value: Tensor) -> bool:
    kind, name = slot
    return is_sparse(value) or (
        value.layout == torch.strided
        and value.dim() == 2
        and value.size(0) == 2
        and not value.is_floating_point()
        and value.dtype != torch.bool
        and (isinstance(kind, tuple) or "edge" in name or "adj" in name or name.endswith("index"))
    )


def _ends(slot: Slot, pair: bool) -> tuple[Type, Type]:
    kind = slot[0]
    if isinstance(kind, tuple):
        return kind[0], kind[-1]
    if kind == _HYPEREDGE:
        return None, _HYPEREDGE
    return (0, 1) if pair else (kind, kind)


def _count_nodes(
    found: dict[Slot, Tensor],
    indices: dict[Slot, Tensor],
    ends: dict[Slot, tuple[Type, Type]],
    sizes: dict[Slot, tuple[int | None, int | None]],
    node_dim: int,
) -> dict[Type, int] | None:
    """Counts the nodes per type; ``None`` if tensors disagree, or a connectivity points past the end."""
    nodes: dict[Type, int] = {}
    likely = {p: v for p, v in found.items() if v.dim() and p not in indices and not isinstance(p[0], tuple)}
    named = {p: v for p, v in likely.items() if p[1] in _NODE_NAMES}
    for (kind, name), value in (named or likely).items():
        rows = value.size(node_dim_of(name, value, node_dim))
        if "edge" not in name and nodes.setdefault(kind, rows) != rows:
            return None
    for kind, name in likely:  # further node types that only unusual names tell of
        if kind is not None:
            nodes.setdefault(kind, likely[kind, name].size(0))
    for slot, index in indices.items():
        if index.numel() and slot[0] == _HYPEREDGE:
            nodes.setdefault(_HYPEREDGE, int(index[1].max()) + 1)
        for row, end, size in zip(index, ends[slot], sizes[slot], strict=True):
            if size is not None:
                nodes.setdefault(end, size)
            if end not in nodes or (row.numel() and int(row.max()) >= nodes[end]):
                return None
    return nodes or None


def _part(
    indices: dict[Slot, Tensor], ends: dict[Slot, tuple[Type, Type]], nodes: dict[Type, int], matrices: set[Slot]
) -> tuple[dict[Type, int], dict[Slot, Tensor]]:
    """Returns how many nodes of each type the second copy has, and which edges lie among them.

    A matrix (``matrices`` names them) holds each edge once, an ``EdgeIndex`` has them in order: of these no edge is
    taken twice.

    All counts must grow, and no two end up equal: dimensions are told apart by how they grow. Where that can be had, no
    two grow by the same number, either: a model may take a few rows off (10 of 12 nodes, 10 of 14 edges).
    """
    best: tuple[dict[Type, int], dict[Slot, Tensor]] = dict(nodes), {}
    enough: tuple[dict[Type, int], dict[Slot, Tensor]] | None = None
    for extra in [*range(16), max(nodes.values())]:
        parts: dict[Type, int] = {}
        taken: set[int] = set()
        for kind, number in nodes.items():
            part = min(number, max(1, (number + 1) // 2) + extra)
            while number + part in taken and part > 1:
                part -= 1
            parts[kind] = part
            taken.add(number + part)
        kept = {}
        for slot, index in indices.items():
            inside = (index[0] < parts[ends[slot][0]]) & (index[1] < parts[ends[slot][1]])
            kept[slot] = inside.nonzero().view(-1)
        best = parts, kept
        grown = [index.size(1) + len(kept[slot]) for slot, index in indices.items() if index.size(1)]
        grew = all(len(kept[slot]) or not index.size(1) for slot, index in indices.items())
        if grew and len({*taken, *grown}) == len(nodes) + len(grown):
            by = [*parts.values(), *(len(kept[slot]) for slot, index in indices.items() if index.size(1))]
            if len(set(by)) == len(by):
                return best
            enough = enough or best
    if enough is not None:
        return enough
    parts, kept = best
    counts = {number + parts[kind] for kind, number in nodes.items()}
    for slot, index in indices.items():  # a copy of the whole: an edge more where counts collide, or one less
        while len(kept[slot]) > (slot in matrices) and index.size(1) + len(kept[slot]) in counts:
            kept[slot] = kept[slot][1:] if slot in matrices else torch.cat([kept[slot], kept[slot][:1]])
        counts.add(index.size(1) + len(kept[slot]))
    return parts, kept


def node_dim_of(name: str, value: Tensor, node_dim: int) -> int:
    return value.dim() - 2 if node_dim == -2 and name == "x" and value.dim() > 2 else 0


# -- every tensor with its type and name ---------------------------------------------------------------------------


def map_slots(inputs: Inputs, function: Callable[[Slot, Any], Any]) -> Inputs:
    """Returns the inputs with ``function(slot, value)`` in place of every tensor and number given."""
    arguments = dict(inputs.arguments)
    for name in inputs.given:
        value = arguments[name]
        if inputs.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            parts = (_map_value(None, _name_of(item, f"{name}{i}"), item, function) for i, item in enumerate(value))
            arguments[name] = tuple(parts)
        else:
            arguments[name] = _map_value(None, name, value, function)
    return replace(inputs, arguments=arguments)


def _name_of(value: Any, name: str) -> str:
    """Guesses the name of one of ``*args``, which has none, by what it looks like."""
    pairs = isinstance(value, Tensor) and value.dim() == 2 and value.size(0) == 2 and value.dtype == torch.int64
    return f"edge_index {name}" if pairs else name


def _map_value(kind: Type, name: str, value: Any, function: Callable[[Slot, Any], Any]) -> Any:
    if isinstance(value, BaseData):
        return _map_data(value, function)
    if isinstance(value, dict):
        typed = all(isinstance(item, Tensor | None) or _are_counts(item) for item in value.values())
        return {
            key: _map_value(key if typed else kind, name if typed else str(key), item, function)
            for key, item in value.items()
        }
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(item, Tensor | None) for item in value):
        return tuple(_map_value(row, name, item, function) for row, item in enumerate(value))
    if isinstance(value, tuple | list) and any(isinstance(item, dict) for item in value):
        return type(value)(_map_value(kind, name, item, function) for item in value)
    return function((_HYPEREDGE if kind is None and name.startswith("hyperedge_") else kind, name), value)


def _map_data(data: BaseData, function: Callable[[Slot, Any], Any]) -> BaseData:
    copied = copy.copy(data)
    for store in copied.stores:
        for key, item in list(store.items()):
            store[key] = function((store._key, str(key)), item)
    attributes = attributes_of_batch(copied)
    if "_num_graphs" in attributes:
        attributes["_num_graphs"] = function((None, "_num_graphs"), attributes["_num_graphs"])
    return copied

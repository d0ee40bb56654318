"""The inputs that a model is traced on: bound to forward's signature, and a second set of other sizes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData

from dqconvert.errors import TraceError


@dataclass(frozen=True)
class Inputs:
    """Arguments bound to a forward's signature.

    Attributes:
        signature: The forward's signature, without ``self``.
        arguments: Parameter name to value, in the signature's order, defaults filled in. ``*args`` is a tuple and
            ``**kwargs`` a dict, under their own names.
        given: The names that were passed.
    """

    signature: inspect.Signature
    arguments: dict[str, Any]
    given: frozenset[str]

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as a call passes them. Containers are copied, tensors are not."""
        bound = inspect.BoundArguments(self.signature, {})
        for name, value in self.arguments.items():
            if name in self.given:
                bound.arguments[name] = shallow(value)
        return bound.args, bound.kwargs

    def bound_call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Like :meth:`call`, with the very objects in ``arguments``."""
        bound = inspect.BoundArguments(self.signature, dict(self.arguments))
        return bound.args, bound.kwargs

    def map(self, function: Callable[[Any], Any]) -> Inputs:
        """The same inputs with ``function`` applied to every tensor."""
        arguments = {name: map_tensors(value, function) for name, value in self.arguments.items()}
        return Inputs(self.signature, arguments, self.given)

    def map_named(self, function: Callable[[str, Any], Any]) -> Inputs:
        """The same inputs with ``function(name, value)`` in place of each one given, and of each part of a ``Data``."""
        arguments = dict(self.arguments)
        for name in self.given:
            arguments[name] = _map_named(name, arguments[name], function)
        return Inputs(self.signature, arguments, self.given)

    def named_tensors(self) -> list[tuple[str, Tensor]] | None:
        """The tensors given, also those in a ``Data``, by name; ``None`` if there are containers of other kinds."""
        found: list[tuple[str, Tensor]] = []
        for name in self.arguments:
            value = self.arguments[name]
            if name not in self.given:
                continue
            parts = value.to_dict() if isinstance(value, Data) else {name: value}
            if any(isinstance(part, BaseData | dict | tuple) for part in parts.values() if not isinstance(value, Data)):
                return None
            found += [(str(key), part) for key, part in parts.items() if isinstance(part, Tensor)]
        return found

    def tensors(self) -> list[Tensor]:
        """All tensors in the inputs."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found


def signature_of(model: nn.Module, method: str) -> inspect.Signature:
    """The signature of the method to trace."""
    function = getattr(model, method, None)
    if not callable(function):
        raise TraceError(f"{type(model).__name__} has no method {method!r} to trace.")
    return inspect.signature(function)


def bind(model: nn.Module, method: str, example: Any) -> Inputs:
    """Binds ``example_inputs`` as users pass them: a tuple, a dict, a single tensor, or a PyG data object."""
    signature = signature_of(model, method)
    if isinstance(example, dict) and not set(example) <= set(signature.parameters):
        example = (example,)
    try:
        if isinstance(example, dict):
            bound = signature.bind(**example)
        elif isinstance(example, list) or (isinstance(example, tuple) and not hasattr(example, "_fields")):
            bound = signature.bind(*example)
        else:
            bound = signature.bind(example)
    except TypeError as error:
        raise TraceError(
            f"example_inputs do not fit {type(model).__name__}.{method}{signature}: {error}. "
            f"Pass a tuple or a dict of its arguments."
        ) from None
    return from_bound(signature, bound)


def from_bound(signature: inspect.Signature, bound: inspect.BoundArguments) -> Inputs:
    """Fills in defaults."""
    given = frozenset(bound.arguments)
    bound.apply_defaults()
    return Inputs(signature, dict(bound.arguments), given)


def _map_named(name: str, value: Any, function: Callable[[str, Any], Any]) -> Any:
    if not isinstance(value, Data):
        return function(name, value)
    copied = copy.copy(value)
    for key, item in list(value.to_dict().items()):
        copied[key] = function(str(key), item)
    if "_num_graphs" in copied.__dict__:
        copied.__dict__["_num_graphs"] = function("_num_graphs", copied.__dict__["_num_graphs"])
    return copied


def shallow(value: Any) -> Any:
    """A copy of containers and data objects that shares their tensors."""
    return map_tensors(value, lambda tensor: tensor)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Applies a function to every tensor in tuples, lists, dicts and PyG data objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, BaseData):
        copied = copy.copy(value)
        for store in copied.stores:
            for key, item in list(store.items()):
                store[key] = map_tensors(item, function)
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if type(value) in (tuple, list):
        return type(value)(map_tensors(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value


# -- other sizes: more nodes and edges, or no edges -----------------------------------------------------------------


def enlarge(inputs: Inputs) -> Inputs | None:
    """The disjoint union of the inputs with a part of themselves: other sizes, every value in its domain.

    Which arguments are node features and which are edge features follows from the connectivity among them (integer
    tensors of shape ``[2, E]``), from their names and from their sizes. What is neither stays as it is, so the model
    may reject the result; ``None`` where even the number of nodes is unclear.
    """
    graph = _Graph.among(inputs)
    return None if graph is None else inputs.map_named(graph.grow)


def drop_edges(inputs: Inputs) -> Inputs | None:
    """The inputs with all edges taken out; ``None`` if there are none, or it is not clear which rows are edges."""
    graph = _Graph.among(inputs)
    return None if graph is None or not any(graph.edges.values()) else inputs.map_named(graph.drop)


_NODE_NAMES = (
    "x",
    "z",
    "pos",
    "batch",
    "h",
    "node_attr",
    "node_type",
    "features",
    "feat",
    "train_mask",
    "ptr",
)


def _is_edge_index(name: str, value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dim() == 2
        and value.size(0) == 2
        and not value.is_floating_point()
        and value.dtype != torch.bool
        and ("edge" in name or "adj" in name or name.endswith("index"))
    )


@dataclass(frozen=True)
class _Graph:
    """The homogeneous graph among some inputs, and which part of it a second copy keeps.

    Attributes:
        nodes: Number of nodes.
        part: How many nodes, from the first on, the copy keeps.
        kept_edges: For each connectivity, which of its edges the copy keeps: those among the kept nodes.
        edges: For each connectivity, how many edges it has.
        graphs: Number of graphs in the batch.
        part_batch: The kept part of ``batch``; ``None`` without one.
    """

    nodes: int
    part: int
    kept_edges: dict[str, Tensor]
    edges: dict[str, int]
    graphs: int
    part_batch: Tensor | None

    @staticmethod
    def among(inputs: Inputs) -> _Graph | None:
        """Finds the graph; ``None`` for heterogeneous inputs, or where the number of nodes is unclear."""
        named = inputs.named_tensors()
        if named is None:
            return None
        indices = {name: value.cpu() for name, value in named if _is_edge_index(name, value)}
        edges = {name: index.size(1) for name, index in indices.items()}
        rows = [v.size(0) for n, v in named if n in _NODE_NAMES and n != "ptr" and v.dim() and n not in indices]
        if not rows:
            rows = [v.size(0) for n, v in named if v.dim() and n not in indices and "edge" not in n]
        if not rows or any(size != rows[0] for size in rows):
            return None
        nodes = rows[0]
        if any(index.numel() and int(index.max()) >= nodes for index in indices.values()):
            return None
        part, kept = _part(indices, nodes)
        batch = next((value for name, value in named if name == "batch"), None)
        graphs = int(batch.max()) + 1 if batch is not None and batch.numel() else 1
        return _Graph(nodes, part, kept, edges, graphs, None if batch is None else batch[:part])

    @property
    def part_graphs(self) -> int:
        """Number of graphs in the kept part."""
        return 1 if self.part_batch is None or not self.part_batch.numel() else int(self.part_batch.max()) + 1

    def grow(self, name: str, value: Any) -> Any:
        """One of the inputs, with its second copy behind it."""
        if not isinstance(value, Tensor):
            sizes = {"num_nodes": self.nodes + self.part}
            sizes |= dict.fromkeys(("batch_size", "num_graphs", "_num_graphs"), self.graphs + self.part_graphs)
            return sizes.get(name, value) if isinstance(value, int) and not isinstance(value, bool) else value
        if value.dim() == 0:
            return value
        if name in self.edges:
            return torch.cat([value, value[:, self.kept_edges[name].to(value.device)] + self.nodes], dim=1)
        if name == "batch":
            return torch.cat([value, value[: self.part] + self.graphs])
        if name == "ptr":
            if self.part_batch is None:
                return torch.cat([value, value[-1:] + self.part])
            return torch.cat([value, value[-1] + torch.bincount(self.part_batch).cumsum(0)])
        rows, over = self._rows(name, value)
        if rows == "node":
            return torch.cat([value, value[: self.part]])
        if rows == "edge":
            return torch.cat([value, value[self.kept_edges[over].to(value.device)]])
        return torch.cat([value, value[: self.part_graphs]]) if rows == "graph" else value

    def drop(self, name: str, value: Any) -> Any:
        """One of the inputs, without its edges."""
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if name in self.edges:
            return value[:, :0]
        return value[:0] if self._rows(name, value)[0] == "edge" else value

    def _rows(self, name: str, value: Tensor) -> tuple[str, str]:
        """What the rows of a tensor are, and for edges, of which connectivity: by name first, by size second."""
        over = [index for index, edges in self.edges.items() if edges == value.size(0)]
        if over and "edge" in name:
            return "edge", over[0]
        if value.size(0) == self.nodes:
            return "node", ""
        if over and name not in _NODE_NAMES:
            return "edge", over[0]
        return ("graph", "") if self.part_batch is not None and value.size(0) == self.graphs else ("", "")


def _part(indices: dict[str, Tensor], nodes: int) -> tuple[int, dict[str, Tensor]]:
    """How many nodes the second copy has, and which edges lie among them.

    All counts must grow, and no two end up equal: dimensions are told apart by how they grow.
    """
    best: tuple[int, dict[str, Tensor]] = nodes, {}
    for part in sorted({*range(max(1, (nodes + 1) // 2), min(nodes, (nodes + 1) // 2 + 16)), nodes}):
        kept = {name: ((i[0] < part) & (i[1] < part)).nonzero().view(-1) for name, i in indices.items()}
        grown = [nodes + part] + [index.size(1) + len(kept[name]) for name, index in indices.items() if index.size(1)]
        best = part, kept
        if all(len(kept[name]) or not index.size(1) for name, index in indices.items()) and len(set(grown)) == len(
            grown
        ):
            return best
    part, kept = best
    counts = {nodes + part}
    for name, index in indices.items():  # a copy of the whole: double an edge where counts collide
        while index.size(1) and index.size(1) + len(kept[name]) in counts:
            kept[name] = torch.cat([kept[name], kept[name][:1]])
        counts.add(index.size(1) + len(kept[name]))
    return part, kept

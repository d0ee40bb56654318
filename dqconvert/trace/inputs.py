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
        bound = inspect.BoundArguments(self.signature, {})  # type: ignore[arg-type]
        for name, value in self.arguments.items():
            if name in self.given:
                bound.arguments[name] = shallow(value)
        return bound.args, bound.kwargs

    def bound_call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Like :meth:`call`, with the very objects in ``arguments``."""
        bound = inspect.BoundArguments(self.signature, dict(self.arguments))  # type: ignore[arg-type]
        return bound.args, bound.kwargs

    def map(self, function: Callable[[Any], Any]) -> Inputs:
        """The same inputs with ``function`` applied to every tensor."""
        arguments = {name: map_tensors(value, function) for name, value in self.arguments.items()}
        return Inputs(self.signature, arguments, self.given)

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


def drop_edges(inputs: Inputs) -> Inputs | None:
    """The inputs with all edges taken out; ``None`` if there are none, or it is not clear which rows are edges."""
    plan = _plans(inputs)
    if plan is None or plan.edges == 0:
        return None

    def drop(name: str, value: Any) -> Any:
        if isinstance(value, Data):
            copied = copy.copy(value)
            for key, item in list(value.to_dict().items()):
                copied[key] = drop(str(key), item)
            return copied
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        rows = _rows(name, value, plan.edges)
        return value[:, :0] if rows == "index" else value[:0] if rows == "edge" else value

    arguments = {name: drop(name, value) if name in inputs.given else value for name, value in inputs.arguments.items()}
    return Inputs(inputs.signature, arguments, inputs.given)


# -- a second input of other sizes -------------------------------------------------------------------------------


def enlarge(inputs: Inputs) -> Inputs | None:
    """The disjoint union of the inputs with a part of themselves: other sizes, every value in its domain.

    Which arguments are node features and which are edge features follows from the connectivity among them (an
    integer tensor of shape ``[2, E]``) and from their names; ``None`` where that does not settle it.
    """
    plans = _plans(inputs)
    if plans is None:
        return None
    arguments = {}
    for name, value in inputs.arguments.items():
        grown = _grow(name, value, plans) if name in inputs.given else value
        if grown is _UNKNOWN:
            return None
        arguments[name] = grown
    return Inputs(inputs.signature, arguments, inputs.given)


_UNKNOWN = object()


@dataclass(frozen=True)
class _Plan:
    """One homogeneous graph among the inputs: which nodes and edges its second copy keeps."""

    nodes: int
    edges: int
    kept_nodes: Tensor
    kept_edges: Tensor
    graphs: int


def _is_edge_index(name: str, value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dim() == 2
        and value.size(0) == 2
        and not value.is_floating_point()
        and value.dtype != torch.bool
        and ("edge" in name or "adj" in name or name == "index")
    )


def _named_tensors(inputs: Inputs) -> list[tuple[str, Any]] | None:
    found: list[tuple[str, Any]] = []
    for name in inputs.arguments:
        value = inputs.arguments[name]
        if name not in inputs.given or value is None:
            continue
        if isinstance(value, Data):
            found += [(str(key), item) for key, item in value.to_dict().items()]
        elif isinstance(value, BaseData | dict):
            return None
        else:
            found.append((name, value))
    return found


def _plans(inputs: Inputs) -> _Plan | None:
    named = _named_tensors(inputs)
    if named is None:
        return None
    edge_indices = [value for name, value in named if _is_edge_index(name, value)]
    if len(edge_indices) > 1:
        return None
    edge_index = edge_indices[0] if edge_indices else torch.empty(2, 0, dtype=torch.long)
    edges = edge_index.size(1)
    rows = [v.size(0) for n, v in named if isinstance(v, Tensor) and v.dim() and _rows(n, v, edges) == "node"]
    if not rows or (edge_indices and any(size != rows[0] for size in rows)):
        return None
    nodes = rows[0]
    if edges and int(edge_index.max()) >= nodes:
        return None
    part, inside = _part(edge_index, nodes)
    batch = next((v for n, v in named if n == "batch" and isinstance(v, Tensor)), None)
    graphs = int(batch.max()) + 1 if batch is not None and batch.numel() else 1
    return _Plan(nodes, edges, torch.arange(part), inside.cpu(), graphs)


def _part(edge_index: Tensor, nodes: int) -> tuple[int, Tensor]:
    """How many nodes, from the first on, the second copy has, and which edges lie among them.

    Both counts must grow, and not end up equal: dimensions are told apart by how they grow.
    """
    edges = edge_index.size(1)
    inside = torch.empty(0, dtype=torch.long)
    for part in [*range(max(1, (nodes + 1) // 2), nodes + 1), nodes]:
        inside = ((edge_index[0] < part) & (edge_index[1] < part)).nonzero().view(-1)
        if (inside.numel() or not edges) and nodes + part != edges + inside.numel():
            return part, inside
    return nodes, inside[:-1] if inside.numel() > 1 else torch.cat([inside, inside])


def _rows(name: str, value: Tensor, edges: int) -> str:
    """Whether a tensor argument has one row per node, per edge, or neither, by name first and size second."""
    if _is_edge_index(name, value):
        return "index"
    if name in ("x", "z", "pos", "batch", "h", "y", "node_attr", "node_type", "features", "feat", "train_mask"):
        return "node"
    if "edge" in name or name == "norm":
        return "edge"
    return "edge" if edges and value.size(0) == edges else "node"


def _grow(name: str, value: Any, plan: _Plan) -> Any:
    if isinstance(value, Data):
        grown = copy.copy(value)
        for key, item in list(value.to_dict().items()):
            part = _grow(str(key), item, plan)
            if part is _UNKNOWN:
                return _UNKNOWN
            grown[key] = part
        if "_num_graphs" in vars(grown):
            grown._num_graphs = plan.graphs * 2
        return grown
    if not isinstance(value, Tensor):
        size = {"num_nodes": plan.nodes + len(plan.kept_nodes), "batch_size": plan.graphs * 2}
        if name in size and isinstance(value, int):
            return size[name]
        return value if not isinstance(value, tuple | list) else _UNKNOWN
    if value.dim() == 0:
        return value
    rows = _rows(name, value, plan.edges)
    kept_nodes, kept_edges = plan.kept_nodes.to(value.device), plan.kept_edges.to(value.device)
    if rows == "index":
        return torch.cat([value, value[:, kept_edges] + plan.nodes], dim=1)
    if name == "batch":
        return torch.cat([value, value[kept_nodes] + plan.graphs])
    if name == "ptr":
        return _UNKNOWN
    if rows == "node" and value.size(0) == plan.nodes:
        return torch.cat([value, value[kept_nodes]])
    if rows == "edge" and value.size(0) == plan.edges:
        return torch.cat([value, value[kept_edges]])
    return value if rows == "node" and value.size(0) == 1 else _UNKNOWN

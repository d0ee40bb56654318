"""Makes the weights of leaf modules visible: ``lin(x)`` becomes ``linear(x, lin.weight, lin.bias)``.

One function per kind of layer; a layer without one is called through :func:`call_with_weights`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.parameter import is_lazy

from dqconvert.ops import op_of_layer
from dqconvert.trace.leaves import WEIGHTED_MODULES, has_hooks
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.parts import AS_IT_IS, Part


def call_with_weights(module: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Calls a module with some of its parameters replaced (a GRU with quantized weight matrices).

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> call_with_weights(linear, {"weight": torch.zeros(1, 2), "bias": torch.ones(1)}, torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    held = dict(weights)  # which a graph's cannot be changed in the meantime
    return torch.func.functional_call(module, held, (AS_IT_IS, *args) if isinstance(module, Part) else args, kwargs)


def open_leaves(graph: Graph, root: nn.Module) -> None:
    """Replaces the calls of weighted leaf modules by what they compute, in place.

    A module with hooks stays as it is, for its hooks must run, and so does an embedding with ``max_norm``.
    """
    reads: dict[str, Node] = {}  # a layer that is called twice has its weight read, and quantized, once
    for node in list(graph.nodes):
        if node.op == "get_attr":
            reads.setdefault(str(node.target), node)
        if node.op != "call_module":
            continue
        module = root.get_submodule(node.target)
        renormalizes = getattr(module, "max_norm", None) is not None  # an embedding that changes its table
        if not isinstance(module, WEIGHTED_MODULES) or has_hooks(module) or renormalizes:
            continue
        opener = _OPENERS.get(op_of_layer(module, subclasses=True).name, _open_whole)
        with graph.inserting_before(node):
            opened = opener(_Leaf(graph, node, module, reads))
        annotate(opened, note_of(node))
        node.replace_all_uses_with(opened)
        graph.erase_node(node)


@dataclass(frozen=True)
class _Leaf:
    """A call of a leaf module that is being opened."""

    graph: Graph
    node: Node
    module: nn.Module
    reads: dict[str, Node]

    def parameter(self, name: str) -> Node | None:
        """Returns the node that reads one of the module's parameters; ``None`` if it has none of that name."""
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.module.get_submodule(owner), attribute, None)
        if not isinstance(value, Tensor):
            return None
        path = f"{self.node.target}.{name}"
        if path not in self.reads:
            note = Note(module=path.rpartition(".")[0], source=note_of(self.node).source, dtype=value.dtype)
            read = self.graph.create_node("get_attr", path)
            self.reads[path] = annotate(read, replace(note, sizes=(tuple(value.shape),) * 2))
        return self.reads[path]

    def argument(self, position: int) -> Any:
        """Returns an argument of the call, given by position or by name."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs[list(inspect.signature(self.module.forward).parameters)[position]]


def _open_linear(leaf: _Leaf) -> Node:
    return leaf.graph.call_function(F.linear, (leaf.argument(0), leaf.parameter("weight"), leaf.parameter("bias")))


def _open_bilinear(leaf: _Leaf) -> Node:
    weights = leaf.parameter("weight"), leaf.parameter("bias")
    return leaf.graph.call_function(F.bilinear, (leaf.argument(0), leaf.argument(1), *weights))


def _open_embedding(leaf: _Leaf) -> Node:
    module = leaf.module
    assert isinstance(module, nn.Embedding)
    options = (
        module.padding_idx,
        module.max_norm,
        module.norm_type,
        module.scale_grad_by_freq,
        module.sparse,
    )
    return leaf.graph.call_function(F.embedding, (leaf.argument(0), leaf.parameter("weight"), *options))


def _open_whole(leaf: _Leaf) -> Node:
    """Makes arguments of the weight matrices; biases and everything inside stay as they are."""
    path = str(leaf.node.target)
    whole = annotate(leaf.graph.create_node("get_attr", path), Note(module=path))
    found = leaf.module.named_parameters()  # without those of node types that no input ever had: they have no shape
    names = [name for name, parameter in found if not is_lazy(parameter) and parameter.dim() > 1]
    weights = {name: leaf.parameter(name) for name in names}
    return leaf.graph.call_function(call_with_weights, (whole, weights, *leaf.node.args), dict(leaf.node.kwargs))


_OPENERS: dict[str, Callable[[_Leaf], Node]] = {
    "linear": _open_linear,
    "bilinear": _open_bilinear,
    "embedding": _open_embedding,
}
"""By the operation that a layer computes."""

"""Makes the weights of leaf modules visible: ``lin(x)`` becomes ``linear(x, lin.weight, lin.bias)``.

One function per kind of layer; a layer without one is called through :func:`call_with_weights`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.trace.leaves import WEIGHTED_MODULES, has_hooks
from dqconvert.trace.note import Note, Stage, annotate, note_of


def call_with_weights(module: nn.Module, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Calls a module with some of its parameters replaced (a GRU with quantized weight matrices).

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> call_with_weights(linear, {"weight": torch.zeros(1, 2), "bias": torch.ones(1)}, torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    return torch.func.functional_call(module, weights, args, kwargs)


def open_leaves(graph: Graph, root: nn.Module) -> None:
    """Replaces the calls of weighted leaf modules by what they compute, in place.

    A module with hooks stays as it is, for its hooks must run, and so does an embedding with ``max_norm``.
    """
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = root.get_submodule(node.target)
        renormalizes = getattr(module, "max_norm", None) is not None  # an embedding that changes its table
        if not isinstance(module, WEIGHTED_MODULES) or has_hooks(module) or renormalizes:
            continue
        opener = next((fn for kind, fn in _OPENERS.items() if isinstance(module, kind)), _open_whole)
        with graph.inserting_before(node):
            opened = opener(graph, node, module)
        annotate(opened, note_of(node))
        node.replace_all_uses_with(opened)
        graph.erase_node(node)


def _attribute(graph: Graph, node: Node, module: nn.Module, name: str) -> Node | None:
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        return None
    read = graph.create_node("get_attr", f"{node.target}.{name}")
    note = replace(note_of(node), module=str(node.target), sizes=(tuple(value.shape),) * 2, dtype=value.dtype)
    return annotate(read, replace(note, stage=Stage.NONE, propagation=-1))


def _argument(node: Node, name: str, position: int) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs[name]


def _open_linear(graph: Graph, node: Node, module: nn.Module) -> Node:
    weight, bias = _attribute(graph, node, module, "weight"), _attribute(graph, node, module, "bias")
    return graph.call_function(F.linear, (_argument(node, _first_parameter(module), 0), weight, bias))


def _first_parameter(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters))


def _open_bilinear(graph: Graph, node: Node, module: nn.Module) -> Node:
    weight, bias = _attribute(graph, node, module, "weight"), _attribute(graph, node, module, "bias")
    inputs = _argument(node, "input1", 0), _argument(node, "input2", 1)
    return graph.call_function(F.bilinear, (*inputs, weight, bias))


def _open_embedding(graph: Graph, node: Node, module: nn.Module) -> Node:
    assert isinstance(module, nn.Embedding)
    options = (module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq, module.sparse)
    weight = _attribute(graph, node, module, "weight")
    return graph.call_function(F.embedding, (_argument(node, "input", 0), weight, *options))


def _open_whole(graph: Graph, node: Node, module: nn.Module) -> Node:
    """Weight matrices become arguments; biases and everything inside stay as they are."""
    whole = annotate(graph.create_node("get_attr", str(node.target)), Note(module=str(node.target)))
    names = [name for name, parameter in module.named_parameters() if parameter.dim() > 1]
    weights = {name: _attribute_path(graph, node, module, name) for name in names}
    return graph.call_function(call_with_weights, (whole, weights, *node.args), dict(node.kwargs))


def _attribute_path(graph: Graph, node: Node, module: nn.Module, name: str) -> Node:
    value = module.get_parameter(name)
    read = graph.create_node("get_attr", f"{node.target}.{name}")
    owner = f"{node.target}.{name}".rpartition(".")[0]
    source = note_of(node).source
    return annotate(read, Note(module=owner, source=source, sizes=(tuple(value.shape),) * 2, dtype=value.dtype))


_OPENERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Graph, Node, nn.Module], Node]] = {
    (nn.Linear, torch_geometric.nn.Linear): _open_linear,
    nn.Bilinear: _open_bilinear,
    nn.Embedding: _open_embedding,
}

"""Graphs as plain data, for pickle.

A ``torch.fx.Graph`` pickles as a chain of nodes, each within the one before: Python's recursion limit ends that at some
hundred nodes. It also names functions by where they were defined, which for some of torch's is inside another function.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from dqconvert.trace.nested import map_items


@dataclass(frozen=True)
class PackedGraph:
    """A graph as one tuple a node: what it calls, its name, its target, arguments, keyword arguments and notes."""

    nodes: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class _Ref:
    """Stands for a node in packed arguments."""

    index: int


@dataclass(frozen=True)
class _Function:
    """A function by the name under which its module holds it."""

    module: str
    name: str


def pack(value: Any) -> Any:
    """Returns the value with every graph in it, also inside tuples, lists and dicts, as a :class:`PackedGraph`.

    Example:
        >>> graph = Graph()
        >>> x = graph.placeholder("x")
        >>> _ = graph.output(graph.call_function(torch.relu, (x,)))
        >>> [node.target for node in unpack(pack({"graph": graph}))["graph"].nodes][1] is torch.relu
        True
    """
    if isinstance(value, Graph):
        return _packed(value)
    return map_items(value, pack) if type(value) in (tuple, list, dict) else value


def unpack(value: Any) -> Any:
    """Returns what :func:`pack` was given."""
    if isinstance(value, PackedGraph):
        return _unpacked(value)
    return map_items(value, unpack) if type(value) in (tuple, list, dict) else value


def _packed(graph: Graph) -> PackedGraph:
    index = {node: position for position, node in enumerate(graph.nodes)}

    def refer(value: Any) -> Any:
        return torch.fx.node.map_arg(value, lambda node: _Ref(index[node]))  # type: ignore[arg-type, return-value]

    return PackedGraph(
        tuple(
            (node.op, node.name, _by_name(node.target), refer(node.args), refer(node.kwargs), dict(node.meta))
            for node in graph.nodes
        )
    )


def _by_name(target: Any) -> Any:
    """Returns a target; a function whose qualified name does not lead to it (``torch.unique``), by its plain name."""
    if "<locals>" not in getattr(target, "__qualname__", ""):
        return target
    module, name = str(target.__module__), str(target.__name__)
    return _Function(module, name) if getattr(sys.modules.get(module), name, None) is target else target


def _unpacked(packed: PackedGraph) -> Graph:
    graph = Graph()
    nodes: list[Node] = []
    for op, name, target, args, kwargs, meta in packed.nodes:
        if isinstance(target, _Function):
            target = getattr(sys.modules[target.module], target.name)
        node = graph.create_node(op, target, _resolve(args, nodes), _resolve(kwargs, nodes), name=name)
        node.meta.update(meta)
        nodes.append(node)
    return graph


def _resolve(value: Any, nodes: list[Node]) -> Any:
    return nodes[value.index] if isinstance(value, _Ref) else map_items(value, lambda item: _resolve(item, nodes))

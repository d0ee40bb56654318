"""One more graph of a module, and which calls a graph is for."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch_geometric.data.data import BaseData

from dqconvert.errors import ArgumentError
from dqconvert.trace.adjacency import plain_connectivity
from dqconvert.trace.callee import signature_of_graph
from dqconvert.trace.guards import ARGUMENT_CHECKS, pinned
from dqconvert.trace.islands import Island
from dqconvert.trace.note import note_of
from dqconvert.trace.packing import pack, unpack


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """The graph of a method, of a module or of a part of it, for arguments of one form.

    Attributes:
        name: ``"encode"``; of a part, its path before it: ``"encoder.forward"``.
        graph: What it does, in terms of the whole module's paths.
        eval_graph: What it does in evaluation mode, where that differs in structure.
        source: The float graphs that these were made of, in the same order; ``None`` where they are not kept.
        islands: Modules that the graphs call whole, and why.
        how: How it came to be traced, in words for the report.
    """

    name: str
    graph: Graph
    eval_graph: Graph | None = None
    source: tuple[Graph, Graph | None] | None = None
    islands: tuple[Island, ...] = ()
    how: str = ""

    def graphs(self) -> tuple[Graph, ...]:
        """Returns the graph of training, and that of evaluation where there is one."""
        return (self.graph,) if self.eval_graph is None else (self.graph, self.eval_graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        copied = [copy.deepcopy(graph) for graph in (self.graph, self.eval_graph)]
        source = None if self.source is None else (copy.deepcopy(self.source[0]), copy.deepcopy(self.source[1]))
        assert copied[0] is not None
        return replace(self, graph=copied[0], eval_graph=copied[1], source=source)

    def __reduce__(self) -> Any:
        packed = pack((self.graph, self.eval_graph, self.source))
        return _unpickle, (self.name, packed, self.islands, self.how)


def _unpickle(name: str, packed: Any, islands: tuple[Island, ...], how: str) -> Method:
    graph, eval_graph, source = unpack(packed)
    return Method(name=name, graph=graph, eval_graph=eval_graph, source=source, islands=islands, how=how)


def words_of(graph: Graph) -> str:
    """Describes the arguments that a graph is for: without those that must be absent, flags with their value.

    Example:
        >>> from dqconvert.trace.guards import pinned
        >>> graph = Graph()
        >>> x, weight = graph.placeholder("x"), graph.placeholder("edge_weight", default_value=None)
        >>> check = graph.call_function(pinned, (weight, None, "edge_weight"))
        >>> words_of(graph)
        'x'
    """
    fixed = {str(node.args[2]): node.args[1] for node in graph.find_nodes(op="call_function", target=pinned)}
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder" and node.target != "protect_prob"]
    words = (f"{name}={fixed[name]!r}" if name in fixed else name for name in names if fixed.get(name, ...) is not None)
    return ", ".join(words)


def fits(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Returns True if a graph is for arguments of this form: tensors, tuples, absent arguments and flags alike.

    Example:
        >>> from dqconvert.trace.guards import pinned
        >>> graph = Graph()
        >>> x, weight = graph.placeholder("x"), graph.placeholder("edge_weight", default_value=None)
        >>> check = graph.call_function(pinned, (weight, None, "edge_weight"))
        >>> fits(graph, (1,), {}), fits(graph, (1, 2), {}), fits(graph, (), {})
        (True, False, False)
    """
    try:
        bound = signature_of_graph(graph).bind(*args, **kwargs)
    except TypeError:
        return False
    bound.apply_defaults()
    given = bound.arguments
    for node in graph.nodes:
        if node.op == "placeholder" and not _same_kind(node, given[str(node.target).lstrip("*")]):
            return False
        if node.target in ARGUMENT_CHECKS:
            try:
                node.target(_value(node.args[0], given), *node.args[1:])
            except (ArgumentError, KeyError, IndexError, TypeError, AttributeError):
                return False
    return True


def binds(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Returns True if a graph's forward takes as many arguments, of these names."""
    try:
        signature_of_graph(graph).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _same_kind(node: Node, value: Any) -> bool:
    note = note_of(node)
    if not note.is_tensor:
        return True
    if value is None or isinstance(value, tuple | list | dict | str | BaseData):
        return False
    return not isinstance(value, Tensor) or note.sparse == (value.layout != torch.strided)


def _value(node: Any, given: Mapping[str, Any]) -> Any:
    """Returns the value of a node that takes a part out of an argument."""
    if node.op == "placeholder":
        return given[str(node.target).lstrip("*")]
    value = _value(node.args[0], given)
    if node.target is operator.getitem:
        return value[node.args[1]]
    return getattr(value, node.args[1]) if node.target is getattr else plain_connectivity(value)

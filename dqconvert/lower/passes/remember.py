"""What depends on the graph alone is computed when the graph is new, and used again while it is the same."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.lower.movers import keeps_rows
from dqconvert.lower.program import Program
from dqconvert.ops import op_of
from dqconvert.quant.memo import Memo
from dqconvert.rewrite.connectivity import input_name, is_connectivity, is_input
from dqconvert.trace import TracedModule
from dqconvert.trace.note import note_of


class Remember(Memo):
    """Computes something of the graph, and returns it again while it is given the same, value by value.

    Args:
        inner: What to compute; returns a tuple.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any) -> Any:
        """What ``inner`` returns."""
        return self.inner(*given) if torch.compiler.is_compiling() else self.recall(self.inner, *given)


# -- finding it in a graph -----------------------------------------------------------------------------------------


def remember(out: Program) -> None:
    """Moves what depends on the graph alone into modules that remember it.

    Args:
        out: A graph that is written and changes nothing in place, in which equal calls are one.
    """
    number = 0
    while group := _group(out.graph):
        path = f"graph_{number}"
        out.root.add_module(path, Remember(_cut_out(out.graph, group, path)))
        number += 1


def share_sizes(graph: Graph) -> None:
    """Reads the number of rows where the rows come from: it is known before they are computed."""
    for node in list(graph.nodes):
        if op_of(node).name == "size" and len(node.args) == 2 and node.args[1] == 0 and isinstance(node.args[0], Node):
            source = _rows_from(node.args[0])
            order = source.args[2].args[0] if source.target is integer_propagate else None  # type: ignore[union-attr]
            if isinstance(order, Node) and order.target is receiver_order:
                node.replace_all_uses_with(order.args[3])
                graph.erase_node(node)
            else:
                node.args = (source, 0)


def _rows_from(node: Node) -> Node:
    """An earlier value that has as many rows."""
    while (source := _same_rows(node)) is not None:
        node = source
    return node


def _same_rows(node: Node) -> Node | None:
    """What a value has its rows from, if it has the same number of them."""
    op = op_of(node)
    if (op.row_by_row and not op.pointwise) or keeps_rows(node):
        return node.all_input_nodes[0]
    entry_by_entry = op.pointwise and note_of(node).ndim > 0
    alike = (n for n in node.all_input_nodes if n.op != "get_attr" and note_of(n).sizes == note_of(node).sizes)
    return next(alike, None) if entry_by_entry else None


def share(graph: Graph) -> None:
    """Calls that are the same become one."""
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if not _repeatable(node):
            continue
        key = (node.op, node.target, _key(node.args), _key(node.kwargs))
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
        else:
            known[key] = node


def _key(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    return (type(value), repr(value)) if isinstance(value, slice | float) else (type(value), value)


def _repeatable(node: Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    form = node.target is getattr and node.args[1] in ("dtype", "device")
    return form or op_of(node).repeatable


def _group(graph: Graph) -> list[Node]:
    """Nodes that are computed from the graph and from numbers, none of which waits for another of them to be used."""
    group: dict[Node, None] = {}
    waits: set[Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        of_graph = any(n in group or _is_graph(n) for n in inputs)
        ready = all(n in group or _is_graph(n) or (_is_number(n) and n not in waits) for n in inputs)
        if of_graph and ready and _repeatable(node):
            group[node] = None
        elif any(n in group or n in waits for n in inputs):
            waits.add(node)
    return list(group) if any(node.target not in (getattr, operator.getitem) for node in group) else []


def _is_graph(node: Node) -> bool:
    """Whether a node is an argument that says which nodes belong together, or how closely."""
    note, name = note_of(node), input_name(node) if is_input(node) else ""
    named = name in ("batch", "ptr", "edge_weight") or name.endswith("_batch")
    return bool(name) and not note.sparse and note.is_tensor and (named or is_connectivity(node))


def _is_number(node: Node) -> bool:
    smallest = node.target is min and all(map(_is_number, node.all_input_nodes))
    return node.op == "get_attr" or op_of(node).reads_size or node.target is getattr or smallest


def _cut_out(graph: Graph, group: list[Node], path: str) -> nn.Module:
    """The group as a module; in ``graph`` its call takes their place."""
    inside = set(group)
    inputs = list(dict.fromkeys(n for node in group for n in node.all_input_nodes if n not in inside))
    outputs = [node for node in group if any(user not in inside for user in node.users)]
    inner = Graph()
    copies: dict[Node, Node] = {node: inner.placeholder(node.name) for node in inputs}
    for node in group:
        copies[node] = inner.node_copy(node, lambda n: copies[n])
    inner.output(tuple(copies[node] for node in outputs))
    with graph.inserting_before(next(node for node in graph.nodes if node.op == "output")):
        call = graph.call_module(path, tuple(inputs))
        for k, node in enumerate(outputs):
            part = graph.call_function(operator.getitem, (call, k))
            part.meta.update(node.meta)
            node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in inside)
    for node in reversed(group):
        graph.erase_node(node)
    in_order(graph)
    module: nn.Module = TracedModule.build(nn.Module(), inner)
    return module


def in_order(graph: Graph) -> None:
    """Puts every node behind those that it needs, and else leaves them in their order."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        pending = [node]
        while pending:
            missing = [n for n in pending[-1].all_input_nodes if n not in order]
            if missing:
                pending += missing
            else:
                order[pending.pop()] = None

    for node in sorted(graph.nodes, key=lambda n: (n.op != "placeholder", n.op == "output")):
        visit(node)
    for node in order:
        graph._root.prepend(node)

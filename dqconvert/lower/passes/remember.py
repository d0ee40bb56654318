"""Values that depend on the graph alone are computed when it is new, and used again while it is the same."""

from __future__ import annotations

import operator

from torch import nn
from torch.fx import Graph, Node

from dqconvert.lower.passes.sharing import repeatable
from dqconvert.lower.program import Program
from dqconvert.lower.remember import Remember
from dqconvert.ops import op_of
from dqconvert.rewrite.connectivity import input_name, is_connectivity, is_input
from dqconvert.trace import TracedModule
from dqconvert.trace.note import note_of


def remember_graph(program: Program) -> Program:
    """Moves what depends on the graph alone into modules that remember it."""
    number = 0
    while group := _group(program.graph):
        path = f"graph_{number}"
        program.root.add_module(path, Remember(_cut_out(program, group, path)))
        number += 1
    return program


def _group(graph: Graph) -> list[Node]:
    """Returns nodes that are computed from the graph and from numbers alone.

    Their call becomes one node. So none of them may need what is computed, outside, from another one of them: such
    nodes (``waits``) go into the next group.
    """
    group: dict[Node, None] = {}
    waits: set[Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        of_graph = any(n in group or _is_graph(n) for n in inputs)
        ready = all(n in group or _is_graph(n) or (_is_number(n) and n not in waits) for n in inputs)
        if of_graph and ready and repeatable(node):
            group[node] = None
        elif any(n in group or n in waits for n in inputs):
            waits.add(node)
    return list(group) if any(node.target not in (getattr, operator.getitem) for node in group) else []


def _is_graph(node: Node) -> bool:
    """True if a node is an argument that says which nodes belong together, or how closely: edges, a batch."""
    note, name = note_of(node), input_name(node) if is_input(node) else ""
    named = name in ("batch", "ptr", "edge_weight") or name.endswith("_batch")
    return bool(name) and not note.sparse and note.is_tensor and (named or is_connectivity(node))


def _is_number(node: Node) -> bool:
    """True if a node is a constant, a size, or another number that is known without computing any row."""
    smallest = node.target is min and all(map(_is_number, node.all_input_nodes))
    return node.op == "get_attr" or op_of(node).reads_size or node.target is getattr or smallest


def _cut_out(program: Program, group: list[Node], path: str) -> nn.Module:
    """Returns a group of nodes as a module; in the program its call takes their place."""
    graph, inside = program.graph, set(group)
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
    program.sort()
    return TracedModule.build(nn.Module(), inner)

"""The prepared graph as evaluation sees it: without what only training needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.lower.runtime import check_edges
from dqconvert.ops import op_of, writes
from dqconvert.prepared import PreparedModule
from dqconvert.quant import FakeQuantize, Protection
from dqconvert.rewrite.connectivity import gather, is_connectivity, is_input
from dqconvert.rewrite.derive import dimensions
from dqconvert.rewrite.dropouts import drop_messages
from dqconvert.rewrite.follow import last_of
from dqconvert.rewrite.protect import ARGUMENT, given_probability
from dqconvert.trace.guards import only_in
from dqconvert.trace.merge import erase_unused
from dqconvert.trace.nested import nodes_in
from dqconvert.trace.note import Stage, annotate, note_of
from dqconvert.trace.unchanged import without_reads


def evaluation_graph(module: PreparedModule) -> Graph:
    """Returns a copy of the graph that a prepared module evaluates, before anything is fused, without protection."""
    return evaluation_of(module.eval_graph or module.graph, module)


def evaluation_of(prepared: Graph, module: PreparedModule) -> Graph:
    """Returns the same of any of the module's graphs."""
    graph = without_reads(copy.deepcopy(prepared))
    _follow_cast(graph, module)
    modules = dict(module.named_modules(remove_duplicate=False))
    for check in graph.find_nodes(op="call_function", target=only_in):
        graph.erase_node(check)
    for node in graph.nodes:
        called = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, FakeQuantize):
            node.args = node.args[:1] if len(node.args) < 3 else (node.args[0], None, node.args[2])
        elif node.target is drop_messages:
            node.replace_all_uses_with(node.args[0])
        elif "quant" in str(node.target).split(".") and node.op == "call_module" and len(node.args) > 1:
            node.args = (node.args[0], None)  # a user's own quantizer

    def without(node: Node) -> bool:
        switch = node.target is torch._C._set_grad_enabled
        return switch or isinstance(modules.get(str(node.target)), Protection) or removable(node)

    erase_unused(graph, without)
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target == ARGUMENT and not node.users:
            graph.erase_node(node)
    check_connectivity(graph)
    return graph


def _follow_cast(graph: Graph, module: PreparedModule) -> None:
    """Has notes name, in place, the type that the module was cast to since it was traced.

    Not where the forward itself names a type: then values of the old one may be there still, and inputs are refused.
    """
    held = {(note_of(node).dtype, parameter.dtype) for node, parameter in _parameters(graph, module)}
    casts = {"float", "double", "half", "bfloat16", "type", "type_as"}
    if len(held) != 1:
        return
    ((was, now),) = held
    named = any(node.target in casts or was in (*node.args, *node.kwargs.values()) for node in graph.nodes)
    if was is now or named:
        return
    for node in graph.nodes:
        if note_of(node).dtype is was:
            annotate(node, replace(note_of(node), dtype=now))


def _parameters(graph: Graph, module: PreparedModule) -> Iterator[tuple[Node, nn.Parameter]]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for node in graph.nodes:
        parameter = parameters.get(str(node.target)) if node.op == "get_attr" else None
        if parameter is not None and parameter.is_floating_point():
            yield node, parameter


def refused(graph: Graph) -> str | None:
    """Returns the float model's error for a graph's arguments in evaluation; None if it takes them."""
    checks = graph.find_nodes(op="call_function", target=only_in, sort=False)
    return next((str(node.args[2]) for node in checks if node.args[1]), None)


def check_connectivity(graph: Graph) -> None:
    """Lets a graph check, in place, that each edge ends at nodes that are there, where nodes are of one kind.

    Where they are of several, each layer checks the edges that it uses.
    """
    gathers = [found for node in graph.nodes if (found := gather(node)) is not None]
    spaces = {found.space for found in gathers}
    added = [node for node in graph.nodes if note_of(node).stage is Stage.AGGREGATE and note_of(node).is_float]
    results = [node for node in added if any(note_of(user).stage is not Stage.AGGREGATE for user in node.users)]
    if any(not spaces & {*dimensions(note_of(node))} for node in results):
        return  # what receives is of another kind than what sends
    inputs = [node for node in graph.nodes if is_input(node)]
    edges = [node for node in inputs if is_connectivity(node) and not note_of(node).sparse]
    made_plain = {source for node in edges for source in node.all_input_nodes}  # of an EdgeIndex, the tensor in it
    holders = [node for node in inputs if dimensions(note_of(node))[:1] == [*spaces]]
    if not holders:
        return
    for edge_index in (node for node in edges if node not in made_plain):
        with graph.inserting_after(last_of(graph, [edge_index, holders[0]])):
            rows = graph.call_method("size", (holders[0], 0))
        with graph.inserting_after(rows):
            checked = annotate(graph.call_function(check_edges, (edge_index, rows)), note_of(edge_index))
        # The checks of arguments come before.
        edge_index.replace_all_uses_with(
            checked, delete_user_cb=lambda user, checked=checked: user is not checked and not op_of(user).checks
        )


def differentiated(graph: Graph) -> set[Node]:
    """Returns the nodes through which the forward itself takes a gradient, its two ends included."""
    between: set[Node] = set()
    for node in graph.nodes:
        if node.target is torch.autograd.grad:
            tops, bottoms = (set(nodes_in(argument)) for argument in node.args[:2])
            below = _reached(bottoms, lambda n: n.users)
            between |= (below & _reached(tops, lambda n: n.all_input_nodes)) | tops | bottoms
    return between


def _reached(start: set[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    found, pending = set(start), list(start)
    while pending:
        new = [n for n in following(pending.pop()) if n not in found]
        found.update(new)
        pending += new
    return found


def removable(node: Node) -> bool:
    """True if a node that nothing reads can be removed: it changes nothing, and refuses nothing."""
    if node.op == "get_attr" or node.target is given_probability:
        return True
    kept = op_of(node).checks or node.target is torch._C._set_grad_enabled
    return node.op in ("call_function", "call_method") and not kept and not writes(node)


def remove_unused(graph: Graph) -> None:
    """Removes, in place, nodes that nothing reads."""
    erase_unused(graph, removable)

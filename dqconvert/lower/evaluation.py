"""The prepared graph as evaluation sees it: without what only training needs."""

from __future__ import annotations

import copy

from torch.fx import Graph, Node

from dqconvert.quant import FakeQuantize, Protection
from dqconvert.rewrite import PreparedModule
from dqconvert.rewrite.protect import ARGUMENT, given_probability
from dqconvert.trace import runtime
from dqconvert.trace.ops import writes

CHECKS = frozenset((runtime.guard, runtime.pinned, runtime.present, runtime.check_sorted, runtime.same_keys))
"""Functions that are called for what they refuse."""


def evaluation_graph(module: PreparedModule) -> Graph:
    """A copy of the graph that a prepared module evaluates, before anything is fused, without protection.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> from dqconvert import prepare
        >>> graph = evaluation_graph(prepare(GCNConv(8, 4)).module)
        >>> [node.name for node in graph.nodes if "protect" in node.name]
        []
    """
    graph = copy.deepcopy(module.eval_graph or module.graph)
    modules = dict(module.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        called = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, FakeQuantize):
            node.args = node.args[:1]
        elif "quant" in str(node.target).split(".") and node.op == "call_module" and len(node.args) > 1:
            node.args = (node.args[0], None)  # a user's own quantizer
    for node in reversed(list(graph.nodes)):
        if not node.users and (isinstance(modules.get(str(node.target)), Protection) or removable(node)):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target == ARGUMENT and not node.users:
            graph.erase_node(node)
    return graph


def removable(node: Node) -> bool:
    """Whether nothing is lost with a node that nobody uses."""
    if node.op == "get_attr" or node.target is given_probability:
        return True
    return node.op in ("call_function", "call_method") and node.target not in CHECKS and not writes(node)


def remove_unused(graph: Graph) -> None:
    """Takes out, in place, what nobody uses."""
    for node in reversed(list(graph.nodes)):
        if not node.users and removable(node):
            graph.erase_node(node)

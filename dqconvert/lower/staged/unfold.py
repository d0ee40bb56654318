"""An integer graph without what its passes added for graphs that fit into memory: folding, and remembering."""

from __future__ import annotations

import copy

from torch import nn
from torch.fx import Graph, Node

from dqconvert.kernels.integer.folding.fold import Level, fold_nodes
from dqconvert.lower.evaluation import remove_unused
from dqconvert.lower.remember import Remember


def unfolded(graph: Graph, root: nn.Module) -> Graph:
    """Returns a copy of an integer graph that computes the rows of all nodes, and remembers nothing.

    The outputs are the same, bit for bit: see :mod:`.passes.colors` and :mod:`.passes.remember`.

    Args:
        root: The module that it is of.
    """
    graph = copy.deepcopy(graph)
    for node in list(graph.nodes):
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Remember):
            _write_out(graph, node, module.inner.graph)  # type: ignore[arg-type]
    for fold in graph.find_nodes(op="call_function", target=fold_nodes):
        whole = dict(zip(("ptr", "senders"), fold.args[1:3], strict=True))
        for part in [part for level in list(fold.users) for part in list(level.users)]:
            known = whole.get(Level._fields[part.args[1]])
            if isinstance(known, Node):
                part.replace_all_uses_with(known)
            else:  # it says which rows are left: all
                for user in list(part.users):
                    user.replace_all_uses_with(user.args[0])
                    graph.erase_node(user)
    remove_unused(graph)
    return graph


def _write_out(graph: Graph, call: Node, inner: Graph) -> None:
    """Writes the nodes of a module's graph in the place of its call."""
    known = dict(zip(inner.find_nodes(op="placeholder"), call.args, strict=True))
    with graph.inserting_before(call):
        for node in inner.nodes:
            if node.op == "output":
                results = node.args[0]
            elif node.op != "placeholder":
                known[node] = graph.node_copy(node, known.__getitem__)
    for part in list(call.users):
        part.replace_all_uses_with(known[results[part.args[1]]])
        graph.erase_node(part)
    graph.erase_node(call)

"""Copies outputs that share memory with cached results: whoever gets them may write into them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.fx import Graph, Node

from dqconvert.kernels.integer.folding.fold import take_rows
from dqconvert.ops import Storage, storage_of
from dqconvert.quant.memo import Memo, apart


def keep_apart(graph: Graph, modules: Mapping[str, nn.Module], *, constants: bool = False) -> Graph:
    """Copies, where a graph returns, what shares memory with a result that one of its modules keeps.

    Args:
        graph: What runs; it is written.
        constants: Whether what the module holds is its own alone, and not the user's: it is remembered, too.

    Returns:
        The graph.
    """
    kept: dict[Node, dict[Node, None]] = {}
    for node in graph.nodes:
        remembers = node.op == "call_module" and isinstance(modules.get(str(node.target)), Memo)
        if remembers or (constants and node.op == "get_attr"):
            kept[node] = {node: None}
        elif storage_of(node) is not Storage.OWN:
            # Rows that are taken are those of the first argument; the second only says which.
            inputs = node.args[:1] if node.target is take_rows else node.all_input_nodes
            found = {source: None for value in inputs for source in kept.get(value, ())}
            if found:
                kept[node] = found
    output = graph.output_node()
    copies: dict[Node, Node] = {}
    for value in output.all_input_nodes:
        if value in kept:
            with graph.inserting_before(output):
                copies[value] = graph.call_function(apart, (value, *kept[value]))
            copies[value].meta.update(value.meta)
            output.replace_input_with(value, copies[value])
    return graph

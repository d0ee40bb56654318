"""The graph that a prepared module runs: the prepared graph, with groups of nodes replaced by one operator each.

The prepared graph stays what is saved, shown and prepared again; this one is made from it whenever code is generated.

One module per pass: :mod:`.messages`, :mod:`.chains` and :mod:`.weights` (groups become one operator),
:mod:`.one_for_one` (a function becomes its counterpart), :mod:`.islands` (what was not traced is kept apart). Below
them, from the bottom: :mod:`.context` (the graph that is being fused, and what may be asked of its nodes) and
:mod:`.memos` (modules that remember).
"""

from __future__ import annotations

import copy

from torch import nn
from torch.fx import Graph, Node

from dqconvert.fuse.chains import fuse_chains, fuse_entries
from dqconvert.fuse.context import Context
from dqconvert.fuse.islands import guard_islands, refuse_explanations
from dqconvert.fuse.messages import fuse_messages
from dqconvert.fuse.one_for_one import put_stand_ins, remember
from dqconvert.fuse.outputs import keep_apart
from dqconvert.fuse.weights import fuse_weights
from dqconvert.ops import op_name
from dqconvert.quant import gather_protected
from dqconvert.report import Fusion


def fuse(graph: Graph, root: nn.Module, tag: str = "") -> tuple[Graph, tuple[Fusion, ...]]:
    """The fused graph, and what was fused. ``graph`` stays as it is; ``root`` gets what remembers
    the order of edges, among its quantizers.

    Args:
        graph: The prepared graph.
        root: The module that it is of.
        tag: Sets the names of what remembers apart from those of other methods' graphs.

    Example:
        >>> from torch_geometric.nn import GIN
        >>> from dqconvert import prepare
        >>> module, _ = prepare(GIN(8, 16, num_layers=1), "int8-dq")
        >>> [fusion.op for fusion in fuse(module.graph, module)[1]]
        ['message passing, chain', 'linear, chain', 'quantizer, linear, chain', 'weights']
    """
    context = Context.of(copy.deepcopy(graph), root, tag)
    fuse_messages(context)
    put_stand_ins(context)
    fuse_chains(context)
    fuse_entries(context)
    fuse_weights(context)
    remember(context)
    _drop_unused(context.graph)
    return context.graph, tuple(context.fusions.values())


def _drop_unused(graph: Graph) -> None:
    """Erases what was only needed for what was fused."""
    for node in reversed(graph.nodes):
        if not node.users and _droppable(node):
            graph.erase_node(node)


def _droppable(node: Node) -> bool:
    return node.target is gather_protected or op_name(node) in ("index_select", "view", "unsqueeze", "size", "getitem")


__all__ = ["fuse", "guard_islands", "keep_apart", "refuse_explanations"]

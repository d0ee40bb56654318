"""The graph that a prepared module runs: the prepared graph, with groups of nodes replaced by one operator each.

The prepared graph stays what is saved, shown and prepared again. ``prepare`` makes the fused one of it, and so do
first calls of further methods; copies, loaded files and ``recompile()`` make it again.

One module per pass: :mod:`.messages`, :mod:`.chains` and :mod:`.weights` (groups become one operator),
:mod:`.one_for_one` (a function becomes its counterpart). Then, fused or not: :mod:`.islands` (copies around modules
that were not traced) and :mod:`.outputs` (copies of outputs that share memory with cached results). Below them:
:mod:`.context` (the graph that is being fused, and questions about its nodes) and :mod:`.memos` (caching modules).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.fx import Graph, Node
from torch_geometric.nn.conv import MessagePassing

from dqconvert.fuse.chains import fuse_chains, fuse_entries
from dqconvert.fuse.context import Context
from dqconvert.fuse.islands import guard_islands, refuse_explanations
from dqconvert.fuse.messages import fuse_messages
from dqconvert.fuse.one_for_one import drop_identities, put_stand_ins, remember
from dqconvert.fuse.outputs import keep_apart
from dqconvert.fuse.weights import fuse_weights
from dqconvert.ops import op_of
from dqconvert.quant import gather_protected, groups_of_edges, groups_of_nodes
from dqconvert.report import Fusion
from dqconvert.trace.computed import at_rest
from dqconvert.trace.merge import erase_unused
from dqconvert.trace.method import Method


class Fused(NamedTuple):
    """The graph that runs for a prepared graph.

    Attributes:
        graph: The graph that runs.
        fusions: The groups of nodes of the prepared graph that are one operator in it.
    """

    graph: Graph
    fusions: tuple[Fusion, ...]


def fuse(graph: Graph, root: nn.Module, tag: str = "") -> Fused:
    """Puts one operator in the place of each group of nodes, in a copy of a prepared graph.

    Args:
        root: The module that it is of. It gets, among its quantizers, the modules that remember what the graph computes
            of the edges alone.
        tag: Sets the names of those apart from those of other methods' graphs.

    Example:
        >>> from torch_geometric.nn import GIN
        >>> from dqconvert import prepare
        >>> module, _ = prepare(GIN(8, 16, num_layers=1), "int8-dq")
        >>> [fusion.op for fusion in fuse(module.graph, module).fusions]
        ['message passing, chain', 'linear, chain', 'quantizer, linear, chain', 'weights']
    """
    context = Context.of(copy.deepcopy(graph), root, tag)
    drop_identities(context)
    fuse_messages(context)
    put_stand_ins(context)
    fuse_chains(context)
    fuse_entries(context)
    fuse_weights(context)
    remember(context)
    _drop_unused(context.graph)
    return Fused(context.graph, tuple(context.fusions.values()))


def fuse_method(method: Method, root: nn.Module, number: int = 0, *, groups: bool = True) -> dict[Graph, Fused]:
    """Makes the graphs that run of the prepared graphs of a method.

    Args:
        method: The prepared graphs; they stay as they are.
        root: As for :func:`fuse`.
        number: The place of the method among those of ``root``.
        groups: ``False``: no groups are fused.

    Returns:
        By prepared graph, what runs for it.
    """
    tag, found = f"_of_{number}" if number else "", {}
    whole = [island.module for island in method.islands]
    with at_rest(root):  # what is looked at on the way is not trained
        for graph in method.graphs():
            fused = fuse(graph, root, tag) if groups else Fused(copy.deepcopy(graph), ())
            modules = dict(root.named_modules())
            guard_islands(fused.graph, whole)
            keep_apart(fused.graph, modules)
            refuse_explanations(fused.graph, _layers(modules, whole))
            found[graph] = fused
    return found


def _layers(modules: Mapping[str, nn.Module], whole: Sequence[str]) -> list[str]:
    """Returns the paths of the message-passing layers whose messages a graph computes itself."""
    paths = [path for path, module in modules.items() if path and isinstance(module, MessagePassing)]
    return [path for path in paths if not f"{path}.".startswith(tuple(f"{island}." for island in whole))]


def _drop_unused(graph: Graph) -> None:
    """Erases nodes that only fused groups used."""

    def may(node: Node) -> bool:
        op, kept = op_of(node), (gather_protected, groups_of_edges, groups_of_nodes)
        return node.target in kept or op.moves is not None or op.reads_size

    erase_unused(graph, may)


__all__ = ["Fused", "fuse", "fuse_method", "keep_apart"]

"""Guards on whether there are edges: dropped where a graph without edges computes what the model does there."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import GuardError
from dqconvert.trace import verify
from dqconvert.trace.guards import guard
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.merge import remove_unused
from dqconvert.trace.module import TracedModule


def without_empty_guards(graphs: list[Graph]) -> dict[Node, Any]:
    """Has the guards of graphs that ask whether there are edges say yes; returns them with their arguments."""
    guards = [node for graph in graphs for node in graph.nodes if node.target is guard and _on_emptiness(node)]
    saved = {node: node.args for node in guards}
    for node in guards:
        node.args = (0, "==", 0, True, node.args[4])
    return saved


def settle_empty_guards(
    root: nn.Module, traced: TracedModule, empty: Inputs, method: str, guards: dict[Node, Any]
) -> None:
    """Drops the guards that :func:`without_empty_guards` found, or puts them back.

    Layers shortcut on ``index.numel() == 0``. Where the graph agrees with the model on a graph without edges, the
    shortcut changed nothing, and empty graphs need not be refused.
    """
    try:
        agreed = all(verify.compare(root, method, traced, empty, mode) is None for mode in empty.modes)
    except (RuntimeError, IndexError, ValueError, GuardError):  # the model itself refuses graphs without edges
        agreed = False
    for node, args in guards.items():
        node.args = args
        if agreed:
            node.graph.erase_node(node)
    for graph in traced.graphs():
        remove_unused(graph)
    traced.recompile()


def _on_emptiness(node: Node) -> bool:
    left, symbol, right = node.args[:3]
    return (
        len(node.args) == 5
        and isinstance(left, Node)
        and f"{symbol} {right}" in ("== 0", "!= 0", "> 0", ">= 1", "< 1", "<= 0")
    )

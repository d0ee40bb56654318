"""Guards on whether there are edges: dropped where a graph without edges computes what the model does there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from dqconvert.errors import GuardError
from dqconvert.trace import verify
from dqconvert.trace.guards import COMPARISONS, guard
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.merge import remove_unused
from dqconvert.trace.module import TracedModule

_numbers = itertools.count()
_failed: set[int] = set()
"""Numbers of the guards that :func:`_ask` found to fail: of all that are being traced, in any thread."""


def _ask(left: Any, comparison: str, right: Any, expected: bool, number: int) -> None:
    """Notes that a guard fails, and lets the graph run on."""
    if bool(COMPARISONS[comparison](left, right)) is not expected:
        _failed.add(number)


class _Erased(NamedTuple):
    """What a node was, and which one came after it."""

    node: Node
    graph: Graph
    following: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class EmptyGuards:
    """The guards of graphs that ask whether there are edges, and what only they read: erased, and to be put back.

    Layers shortcut on ``index.numel() == 0``. Where the graph agrees with the model on a graph without edges, the
    shortcut changed nothing, and empty graphs need not be refused. Most agree: so the graph is written without the
    guards first. A guard of the user's own code may ask about something else, of which such a graph says nothing: it
    goes only if it would have failed there.
    """

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._erased: list[_Erased] = []
        self._asked: dict[Node, tuple[Any, ...]] = {}
        for graph in graphs:
            guards = [node for node in graph.nodes if node.target is guard and _on_emptiness(node)]
            for node in guards:
                if str(node.args[4]).startswith("torch_geometric/"):
                    self._erase(node)
                else:
                    self._asked[node] = node.args
                    node.target, node.args = _ask, (*node.args[:4], next(_numbers))
            if guards:
                remove_unused(graph, self._erase)

    def __bool__(self) -> bool:
        return bool(self._erased or self._asked)

    def settle(self, root: nn.Module, traced: TracedModule, empty: Inputs, method: str) -> None:
        """Puts the guards back if the graphs do not compute what the model does on inputs without edges."""
        try:
            agreed = all(verify.compare(root, method, traced, empty, mode) is None for mode in empty.modes)
        except (RuntimeError, IndexError, ValueError, GuardError):  # the model itself refuses graphs without edges
            agreed = False
        for node, args in self._asked.items():
            number: Any = node.args[4]
            node.target, node.args = guard, args
            if agreed and number in _failed:
                node.graph.erase_node(node)
            _failed.discard(number)
        if not agreed:
            self._put_back()
        if self._asked:
            for graph in traced.graphs():
                remove_unused(graph)
        if self._asked or not agreed:
            traced.recompile()

    def _erase(self, node: Node) -> None:
        self._erased.append(_Erased(node, node.graph, node.next, node.args, node.kwargs))
        node.graph.erase_node(node)

    def _put_back(self) -> None:
        again: dict[Node, Node] = {}
        for node, graph, following, args, kwargs in reversed(self._erased):
            with graph.inserting_before(again.get(following, following)):
                made = graph.create_node(
                    node.op,
                    node.target,
                    map_arg(args, lambda one: again.get(one, one)),
                    map_arg(kwargs, lambda one: again.get(one, one)),
                    node.name,
                    node.type,
                )
            made.meta = node.meta
            again[node] = made


def _on_emptiness(node: Node) -> bool:
    left, symbol, right = node.args[:3]
    return (
        len(node.args) == 5
        and isinstance(left, Node)
        and f"{symbol} {right}" in ("== 0", "!= 0", "> 0", ">= 1", "< 1", "<= 0")
    )

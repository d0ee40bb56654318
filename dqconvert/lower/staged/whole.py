"""What is known of a whole graph before any row is computed: its arguments, sizes, and what follows from its edges."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.errors import InputShapeError
from dqconvert.lower.replay import argument_of, plain
from dqconvert.lower.staged.kinds import OF_ROWS, Count, Ends, Form, Listing, Nodes, Part, Space
from dqconvert.lower.staged.rows import Rows
from dqconvert.ops import op_of
from dqconvert.store import in_file


class WholeGraph:
    """Values that are computed once for a whole graph.

    Args:
        rows: What the rows of each value are.
        root: The module of the graph.
        given: The arguments, by the names of their placeholders.

    Raises:
        GuardError: If the arguments are not what the model was traced for.
    """

    def __init__(self, rows: Rows, root: nn.Module, given: Mapping[str, Any]) -> None:
        self.rows, self._root, self._given = rows, root, given
        self._known: dict[Node, Any] = {}
        self._in_file: dict[Node, bool] = {}
        self._counts: dict[Space, tuple[int, Node]] = {}
        for node, kind in rows.kinds.items():
            if isinstance(kind, Nodes) and node in rows.given:
                self._count(node, kind.space)
        for node in rows.kinds:
            if op_of(node).checks:
                self.of(node)

    def of(self, node: Node) -> Any:
        """Returns a value of the whole graph."""
        if node not in self._known:
            self._known[node] = self._compute(node)
        return self._known[node]

    def forget(self, node: Node) -> None:
        """Lets a value go; it is computed again if it is asked for."""
        self._known.pop(node, None)

    def lies_in_file(self, node: Node) -> bool:
        """True if a value is a tensor in a file that is mapped into memory."""
        if node not in self._in_file:
            self._in_file[node] = in_file(self.of(node))
        return self._in_file[node]

    def count(self, of: Space | Listing) -> int:
        """Returns how many nodes of a kind there are, or how many edges in a list."""
        if isinstance(of, Listing):
            if of.drop:
                ends = self.of(of.base)
                loops = 0 if of.loops is None else self.count(of.loops)
                return int((ends[0] != ends[1]).sum()) + loops
            return int(self.of(of.base).size(1)) + (0 if of.loops is None else self.count(of.loops))
        return self._counts[of][0]

    def _count(self, node: Node, space: Space) -> None:
        rows = int(self.of(node).size(0))
        known, other = self._counts.setdefault(space, (rows, node))
        if known != rows:
            raise InputShapeError(
                f"{node.name} has {rows:,} rows and {other.name} has {known:,}, and the model was prepared for as many"
            )

    def _argument(self, node: Node) -> Any:
        value, ends = self.of(node), isinstance(self.rows.kinds[node], Ends)
        return value.long() if ends and value.dtype is not torch.int64 else value

    def _compute(self, node: Node) -> Any:
        kind = self.rows.kinds[node]
        if isinstance(kind, (*OF_ROWS, Form, Part)) and node not in self.rows.given:
            raise self.rows.refuse(node, "it is asked for as a whole")
        if isinstance(kind, Count) and node not in self.rows.given:
            return self.count(kind.of)
        if node.op == "placeholder":
            return argument_of(str(node.target), node.args, self._given)
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self._root)
        args, kwargs = map_arg((node.args, node.kwargs), self._argument)
        return call(node, self._root, args, kwargs)


def call(node: Node, root: nn.Module, args: Any, kwargs: Any) -> Any:
    """Returns what a node of a graph computes of its arguments."""
    args, kwargs = plain(args), plain(kwargs)
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(torch.Tensor if isinstance(args[0], Tensor) else type(args[0]), str(node.target))(
            *args, **kwargs
        )
    return node.target(*args, **kwargs)  # type: ignore[operator]

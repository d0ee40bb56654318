"""What is known of a whole graph before any row is computed: its arguments, sizes, and what follows from its edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.errors import ConfigError, InputShapeError
from dqconvert.lower.replay import argument_of, plain
from dqconvert.lower.staged.kinds import OF_ROWS, Count, Ends, Form, Listing, Made, Nodes, Part, Space
from dqconvert.lower.staged.rows import Rows
from dqconvert.ops import op_of
from dqconvert.store import in_file
from dqconvert.trace.note import note_of

BYTES_OF_EDGE = 40
"""What a norm takes for each edge while it is made: both ends and the weight, with loops, and what they are made of."""


class WholeGraph:
    """Values that are computed once for a whole graph.

    Args:
        rows: What the rows of each value are.
        root: The module of the graph.
        given: The arguments, by the names of their placeholders.
        room: Returns the bytes that may be used from now on; ``None``: any number.

    Raises:
        ConfigError: If there is no room for what is made of all edges at once.
        GuardError: If the arguments are not what the model was traced for.
    """

    def __init__(
        self, rows: Rows, root: nn.Module, given: Mapping[str, Any], room: Callable[[], int] | None = None
    ) -> None:
        self.rows, self._root, self._given, self._room = rows, root, given, room
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
        if isinstance(kind, Made):
            self._check_room(node)
        args, kwargs = map_arg((node.args, node.kwargs), self._argument)
        return call(node, self._root, args, kwargs)

    def _check_room(self, node: Node) -> None:
        listings = [kind.listing for one in node.all_input_nodes if isinstance(kind := self.rows.kinds[one], Ends)]
        needed = BYTES_OF_EDGE * max(map(self.count, listings), default=0)
        if self._room is not None and needed > (room := self._room()):
            raise ConfigError(
                f"memory is too small: {node.name} ({note_of(node).source}) is made of all edges at once, which takes "
                f"{needed:,} bytes, {needed - room:,} more than there are beside what the process holds."
            )


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

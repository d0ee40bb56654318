"""Functions that only move entries: they move codes as they move values."""

from __future__ import annotations

from torch.fx import Node

from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import note_of
from dqconvert.trace.ops import op_name

MOVERS = frozenset(
    (
        *("chunk", "contiguous", "expand", "expand_as", "flatten", "getitem", "index_select", "movedim", "permute"),
        *("repeat", "reshape", "select", "split", "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten"),
        *("unsqueeze", "view"),
    )
)
"""By :func:`dqconvert.trace.ops.op_name`; their first argument is what they move."""

_WHOLE_ROWS = frozenset(("index_select", "getitem", "contiguous"))


def moves(node: Node) -> bool:
    """Whether a node only moves entries of its first argument."""
    return op_name(node) in MOVERS and bool(node.args) and isinstance(node.args[0], Node)


def moves_rows(node: Node) -> bool:
    """Whether whole rows move, so that each column stays where it is."""
    if op_name(node) not in _WHOLE_ROWS or not isinstance(node.args[0], Node):
        return False
    before, after = dimensions(note_of(node.args[0])), dimensions(note_of(node))
    if op_name(node) == "getitem" and isinstance(node.args[1], tuple | int):
        return False
    along_rows = op_name(node) != "index_select" or node.args[1] in (0, -len(before))
    return along_rows and len(before) == len(after) and before[1:] == after[1:]


def reshapes(node: Node) -> bool:
    """Whether the entries stay in their order."""
    return op_name(node) in ("contiguous", "flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view")

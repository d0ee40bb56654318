"""Functions that only move entries: they move codes as they move values."""

from __future__ import annotations

import math

from torch.fx import Node

from dqconvert.ops import argument, op_name
from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import note_of

MOVERS = frozenset(
    (
        *("chunk", "contiguous", "expand", "expand_as", "flatten", "getitem", "index_select", "movedim", "permute"),
        *("repeat", "reshape", "select", "split", "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten"),
        *("unsqueeze", "view"),
    )
)
"""By :func:`dqconvert.ops.op_name`; their first argument is what they move."""

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


def keeps_rows(node: Node) -> bool:
    """Whether each row consists of entries of the same row of the first argument, and so there are as many."""
    if not moves(node):
        return False
    name, source, rest = op_name(node), note_of(node.args[0]), node.args[1:]  # type: ignore[arg-type]
    if name == "getitem":
        index = rest[0] if isinstance(rest[0], tuple) else ()
        return index[:1] == (slice(None),) and all(isinstance(part, int | slice) for part in index)
    if name in ("squeeze", "unsqueeze", "select", "flatten"):
        dim = argument(node, "start_dim" if name == "flatten" else "dim", 0)
        return isinstance(dim, int) and source.ndim > 0 and dim % (source.ndim + (name == "unsqueeze")) != 0
    if name in ("view", "reshape"):
        widths = {math.prod(size[1:]) for note in (source, note_of(node)) for size in note.sizes if size}
        return rest[:1] == (-1,) and len(widths) == 1
    return name == "contiguous"

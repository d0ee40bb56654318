"""Operations that only move entries: they move codes as they move values."""

from __future__ import annotations

import math

from torch.fx import Node

from dqconvert.ops import Moves, argument, op_of
from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import note_of


def moves(node: Node) -> bool:
    """True if a node only moves entries of its first argument."""
    op = op_of(node)
    return op.moves is not None and not op.joins and bool(node.args) and isinstance(node.args[0], Node)


def moves_rows(node: Node) -> bool:
    """True if whole rows move, so that each column stays where it is."""
    op = op_of(node)
    whole_rows = op.moves in (Moves.PICK, Moves.ITEM) or op.name == "contiguous"
    if not whole_rows or not isinstance(node.args[0], Node):
        return False
    before, after = dimensions(note_of(node.args[0])), dimensions(note_of(node))
    if op.moves is Moves.ITEM and isinstance(node.args[1], tuple | int):
        return False
    along_rows = op.moves is not Moves.PICK or argument(node, "dim") in (0, -len(before))
    return along_rows and len(before) == len(after) and before[1:] == after[1:]


def reshapes(node: Node) -> bool:
    """True if the entries stay in their order."""
    return op_of(node).moves is Moves.RESHAPE


def keeps_rows(node: Node) -> bool:
    """True if each row consists of entries of the same row of the first argument, and so there are as many."""
    if not moves(node):
        return False
    op, source, rest = op_of(node), note_of(node.args[0]), node.args[1:]  # type: ignore[arg-type]
    name = op.name
    if op.moves is Moves.ITEM:
        index = rest[0] if isinstance(rest[0], tuple) else ()
        return index[:1] == (slice(None),) and all(isinstance(part, int | slice) for part in index)
    if name in ("squeeze", "unsqueeze", "select", "flatten"):
        dim = argument(node, "start_dim" if name == "flatten" else "dim", 0)
        return isinstance(dim, int) and source.ndim > 0 and dim % (source.ndim + (name == "unsqueeze")) != 0
    if name in ("view", "reshape"):
        widths = {math.prod(size[1:]) for note in (source, note_of(node)) for size in note.sizes if size}
        return rest[:1] == (-1,) and len(widths) == 1
    return name == "contiguous" or op.moves is Moves.COPY

"""Row spaces made from others, by picking, cutting, joining or repeating: protection follows the rows.

A top-k pooling picks rows, a sampled neighbourhood is cut to the rows that a layer still needs, several node types are
put one behind the other, attention heads are laid out as further rows. None of these begins rows of its own.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.ops import Moves, argument, op_of
from dqconvert.trace.note import Note, note_of

Size = tuple[int, ...]
"""A dimension on the example input and on the second input."""


def dimensions(note: Note) -> list[Size]:
    """Returns every dimension of a value, on both inputs; nothing where their numbers differ."""
    if not note.sizes or any(len(size) != len(note.sizes[0]) for size in note.sizes):
        return []
    return list(zip(*note.sizes, strict=True))


def grows(size: Size) -> bool:
    """True if a dimension follows the graph; one that is known on one input alone may."""
    return len(set(size)) > 1 or len(size) == 1


class How(enum.StrEnum):
    """The ways to make rows from other rows."""

    PICK = "pick"
    """An index vector says which."""
    CUT = "cut"
    """A stretch of them."""
    JOIN = "join"
    """One behind the other."""
    REPEAT = "repeat"
    """Each several times: further dimensions were flattened into that of the rows."""


@dataclass(frozen=True)
class Derivation:
    """One dimension of a node's value that was made from rows of other values.

    Attributes:
        how: What was done.
        node: The node that makes the rows.
        sources: The values that the rows come from, in order.
        parts: Size of the row space of each.
        arguments: PICK: the index. CUT: start, stop and step, nodes or numbers or ``None``. REPEAT: how often the
            whole of them follows itself, and how often each row does.
    """

    how: How
    node: Node
    sources: tuple[Node, ...]
    parts: tuple[Size, ...]
    arguments: tuple[Any, ...] = ()


def derivations(node: Node) -> dict[int, Derivation]:
    """Returns, by dimension of a node's value that did not stay as it was, how its rows were made from others.

    An index may say that all rows stay, and in which order, for the inputs at hand: that counts as picking.

    Args:
        node: Any node of a traced graph.
    """
    sizes = dimensions(note_of(node))
    moves = op_of(node).moves
    find = _FINDERS.get(moves) if moves is not None else None
    found = find(node) if sizes and find is not None else {}
    return {
        dim: made
        for dim, made in found.items()
        if dim < len(sizes) and (made.how is How.PICK or sizes[dim] not in made.parts)
    }


def _source(node: Node) -> tuple[Node, list[Size]] | None:
    source = argument(node, "input", node.args[0] if node.args else None)
    sizes = dimensions(note_of(source)) if isinstance(source, Node) else []
    return (source, sizes) if sizes else None


def _by_index(node: Node, index: Any, dim: int) -> dict[int, Derivation]:
    """Returns that rows are picked by a vector of positions. (A boolean mask may pick from rows sorted before.)"""
    source = _source(node)
    if source is None or not isinstance(index, Node) or note_of(index).ndim != 1:
        return {}
    if note_of(index).dtype not in (torch.int64, torch.int32):
        return {}
    dim %= len(source[1])
    return {dim: Derivation(How.PICK, node, (source[0],), (source[1][dim],), (index,))}


def _index_select(node: Node) -> dict[int, Derivation]:
    dim = argument(node, "dim")
    return _by_index(node, argument(node, "index"), dim) if isinstance(dim, int) else {}


def _getitem(node: Node) -> dict[int, Derivation]:
    if len(node.args) != 2:
        return {}
    index, source = node.args[1], _source(node)
    if isinstance(index, Node):
        return _by_index(node, index, 0)
    found: dict[int, Derivation] = {}
    parts = index if isinstance(index, tuple) else (index,)
    if source is None or not all(isinstance(part, slice) for part in parts):
        return {}
    for dim, part in enumerate(parts):
        cut = (part.start, part.stop, part.step)
        if cut != (None, None, None):
            found[dim] = Derivation(How.CUT, node, (source[0],), (source[1][dim],), cut)
    return found


def _narrow(node: Node) -> dict[int, Derivation]:
    dim, start, length = (argument(node, name) for name in ("dim", "start", "length"))
    source = _source(node)
    if source is None or not isinstance(dim, int) or start != 0:
        return {}
    dim %= len(source[1])
    return {dim: Derivation(How.CUT, node, (source[0],), (source[1][dim],), (None, length, None))}


def _cat(node: Node) -> dict[int, Derivation]:
    parts, dim = argument(node, "tensors"), argument(node, "dim", 0)
    if not isinstance(parts, tuple | list) or not isinstance(dim, int):
        return {}
    sizes = [dimensions(note_of(part)) if isinstance(part, Node) else [] for part in parts]
    if not all(sizes):
        return {}
    dim %= len(sizes[0])
    return {dim: Derivation(How.JOIN, node, tuple(parts), tuple(size[dim] for size in sizes))}


def _reshape(node: Node) -> dict[int, Derivation]:
    source = _source(node)
    if source is None:
        return {}
    found: dict[int, Derivation] = {}
    for dims, dim in _merged(source[1], dimensions(note_of(node))):
        rows = [i for i in dims if grows(source[1][i])]
        if len(rows) == 1:
            times = math.prod(source[1][i][0] for i in dims if i < rows[0])
            each = math.prod(source[1][i][0] for i in dims if i > rows[0])
            parts = (source[1][rows[0]],)
            found[dim] = Derivation(How.REPEAT, node, (source[0],), parts, (times, each))
    return found


def _merged(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[list[int], int]]:
    """Returns the dimensions that a reshape merges into one, and that one."""
    found: list[tuple[list[int], int]] = []
    position = 0
    for dim, size in enumerate(after):
        dims: list[int] = []
        product = tuple(1 for _ in size)
        while position < len(before) and product != size:
            product = tuple(a * b for a, b in zip(product, before[position], strict=True))
            dims.append(position)
            position += 1
        if product != size:
            return found
        if len(dims) > 1:
            found.append((dims, dim))
    return found


_FINDERS = {
    Moves.PICK: _index_select,
    Moves.ITEM: _getitem,
    Moves.CUT: _narrow,
    Moves.JOIN: _cat,
    Moves.RESHAPE: _reshape,
}


# -- what graphs call ----------------------------------------------------------------------------------------------


def cut_protected(mask: Tensor | None, start: int | None, stop: int | None, step: int | None) -> Tensor | None:
    """Returns the mask of protected rows after ``x[start:stop:step]``; ``None`` where nothing is protected.

    Example:
        >>> cut_protected(torch.tensor([True, False, True]), None, 2, None)
        tensor([ True, False])
    """
    return None if mask is None else mask[start:stop:step]


def join_protected(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the mask of protected rows after a concatenation; ``None`` where nothing is protected.

    Example:
        >>> join_protected([torch.tensor([True]), torch.tensor([False, True])])
        tensor([ True, False,  True])
    """
    given = [mask for mask in masks if mask is not None]
    return torch.cat(given) if len(given) == len(masks) else None


def repeat_protected(mask: Tensor | None, times: int, each: int) -> Tensor | None:
    """Returns the mask of protected rows where each row comes ``each`` times, and all that ``times`` times.

    Example:
        >>> repeat_protected(torch.tensor([True, False]), 2, 1)
        tensor([ True, False,  True, False])
    """
    return None if mask is None else mask.repeat_interleave(each).repeat(times)

"""Nodes of one color are computed once.

See :mod:`.refine`: behind each layer a node has the value of all nodes of its color. So a layer has to compute one row
for each color, from the rows of the colors before. Sums of integers are exact, and so no bit of the result changes.
In graphs without features of their own that is much: of a batch of REDDIT-BINARY the first layer computes 161 of
63,371 rows, the fifth 27,191.

Colors depend on the graph and on which features are the same. They are kept with the graph, and used again where all
features of a color still are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqconvert.kernels._takes import ORDINARY
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer import colors as loops
from dqconvert.kernels.cpu.threads import balanced, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.folding.colors import have_colors, repeats, row_colors
from dqconvert.kernels.integer.folding.refine import refine_colors
from dqconvert.kernels.order import check_order, vouch

WORTH = 4
"""Rows are left out where one in so many can be."""

DEEPEST = 1_000
"""Layers behind one another that a graph may be folded for."""


class Level(NamedTuple):
    """The rows that are left behind so many layers; level 0 is the features.

    Attributes:
        ptr: int64, where the edges of each row begin.
        senders: int32 or int64, which rows of the level before they come from.
        edges: int64, which edges of the whole graph those are; None: all of them, or it makes no difference.
        own: int32, which row of the level before (of level 0: of the nodes) each row was; None: the same.
        place: int32 `[num_nodes]`, the row of every node; None: all nodes have their own.
    """

    ptr: Tensor
    senders: Tensor
    edges: Tensor | None = None
    own: Tensor | None = None
    place: Tensor | None = None


def whole(x: Tensor, ptr: Tensor, senders: Tensor, depth: int, by_degree: bool = False) -> tuple[Level, ...]:
    """As :func:`fold_nodes`, with all nodes left on every level.

    Example:
        >>> whole(torch.ones(2, 1), torch.tensor([0, 0, 0]), torch.tensor([]), 3)[3].place is None
        True
    """
    return (Level(ptr, senders),) * (depth + 1)


def fold_nodes(x: Tensor, ptr: Tensor, senders: Tensor, depth: int, by_degree: bool = False) -> tuple[Level, ...]:
    """Finds the rows that each layer has to compute.

    Args:
        x: `[num_nodes, *]`, the features of the nodes, of any dtype.
        ptr: int64 `[num_nodes + 1]`; the edges to node `i` are `ptr[i]` to `ptr[i + 1]`.
        senders: int32 or int64 `[num_edges]`.
        depth: How many layers there are behind one another.
        by_degree: True if messages have weights that depend on how many edges both ends receive.

    Returns:
        `depth + 1` levels. All nodes are left where features seldom repeat, in compiled code, for tensors of
        subclasses, and on devices other than the CPU; and on a level where fewer than one node in four would go.

    Raises:
        ValueError: If there are not as many rows as nodes.
        IndexError: If a sender is not there.

    Example:
        >>> star = torch.tensor([0, 3, 4, 5, 6]), torch.tensor([1, 2, 3, 0, 0, 0])
        >>> features, first, second = fold_nodes(torch.ones(4, 1), *star, 2)
        >>> features.place.tolist(), first.place.tolist()
        ([0, 0, 0, 0], [0, 1, 1, 1])
        >>> first.ptr.tolist(), first.senders.tolist(), second.senders.tolist()
        ([0, 3, 4], [0, 0, 0, 0], [1, 1, 1, 0])
    """
    if not 0 <= depth <= DEEPEST:
        raise ValueError(f"there can be 0 to {DEEPEST} layers behind one another, got {depth}")
    if torch.compiler.is_compiling() or not _in_memory(x) or not _often((x,)):
        return whole(x, ptr, senders, depth)
    if x.size(0) != ptr.numel() - 1:
        raise ValueError(f"{ptr.numel() - 1} nodes take x with as many rows, got {tuple(x.shape)}")
    check_order(ptr, senders, x.size(0))
    last = _folded.find((ptr, senders), depth, by_degree)
    if last is not None and have_colors(x, last[0]):
        return last[1]
    colors = row_colors(x)
    own = ptr.data, senders.data  # the same memory, in tensors of their own: what is kept must not hold these
    vouch(*own, x.size(0))
    levels = _levels(colors, *own, depth, by_degree)
    _folded.keep((colors, levels), (ptr, senders), depth, by_degree)
    return levels


_folded = Derived[tuple[Tensor, tuple[Level, ...]]]()
"""Of an order, the colors of the features that it was folded for last, and the levels."""


_often = Derived(repeats)
"""True for features that repeat often: were it wrong, results would be the same, and computed otherwise."""


def _in_memory(x: Tensor) -> bool:
    """True if there are values to be looked at, here and now."""
    return type(x) in ORDINARY and x.is_cpu and x.layout == torch.strided


def _levels(colors: Tensor, ptr: Tensor, senders: Tensor, depth: int, by_degree: bool) -> tuple[Level, ...]:
    if by_degree:
        colors = refine_colors(colors, torch.zeros_like(colors), ptr, senders)
    place, rows = _rows_of(colors)
    levels = [Level(ptr, senders, own=rows, place=place)]
    while len(levels) <= depth and place is not None:
        before, number = place, 0 if rows is None else rows.numel()
        colors = refine_colors(colors, colors, ptr, senders)
        place, rows = _rows_of(colors)
        level = _level(before, place, rows, ptr, senders, by_degree)
        if rows is not None and rows.numel() == number:  # as many colors are the same colors: that is how it stays
            return (*levels, *[level._replace(own=None)] * (depth + 1 - len(levels)))
        levels.append(level)
    return tuple(levels) + whole(colors, ptr, senders, depth)[len(levels) :]


def _rows_of(colors: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Returns the row of each node, and the node of each row; None if too few nodes would go."""
    place, rows = torch.empty_like(colors), torch.empty_like(colors)
    count = loops.number_colors(array(colors), array(place), array(rows))
    if (colors.numel() - count) * WORTH < colors.numel():
        return None, None
    return place, rows[:count].clone()


def _level(
    before: Tensor, place: Tensor | None, rows: Tensor | None, ptr: Tensor, senders: Tensor, listed: bool
) -> Level:
    """Returns the level behind one where `before` says the rows of the nodes; `listed`: true to list its edges."""
    if rows is None:
        return Level(ptr, before[senders], own=before)
    starts = torch.empty(rows.numel() + 1, dtype=torch.int64)
    loops.begin_lists(array(ptr), array(rows), array(starts))
    taken = torch.empty(int(starts[-1]), dtype=torch.int32)
    edges = torch.empty(taken.numel() if listed else 0, dtype=torch.int64)
    args = tuple(map(array, (ptr, senders, rows, before, starts, edges, taken)))
    run(lambda _, start, stop: loops.copy_lists(*args, start, stop), balanced(array(starts), 1))
    return Level(starts, taken, edges if listed else None, before[rows], place)


# -- rows, and back ------------------------------------------------------------------------------------------------


def take_rows(values: Tensor, index: Tensor | None) -> Tensor:
    """`values[index]`; `values` themselves without an index, as where nothing was left out.

    Args:
        values: `[rows, *]`.
        index: int32 or int64, a member of :class:`Level`.

    Example:
        >>> take_rows(torch.tensor([[5], [7]]), torch.tensor([1, 0, 0])).tolist()
        [[7], [5], [5]]
    """
    return values if index is None else values.index_select(0, index)


def place_rows(rows: Tensor, place: Tensor | None) -> Tensor:
    """Returns where nodes are among the rows that are left; `rows` themselves if all are.

    Args:
        rows: int32 or int64 `[n]`, nodes.
        place: Of :class:`Level`.

    Example:
        >>> place_rows(torch.tensor([2, 0]), torch.tensor([0, 1, 1], dtype=torch.int32)).tolist()
        [1, 0]
    """
    return rows if place is None else place.index_select(0, rows)


__all__ = ["Level", "fold_nodes", "place_rows", "take_rows", "whole"]

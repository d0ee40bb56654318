"""What :mod:`dqconvert.kernels.integer.propagate` multiplies messages by: whether it fits, and as the loops take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.integer.lines import lines
from dqconvert.kernels.cpu.integer.propagate import messages_of_codes
from dqconvert.kernels.cpu.llvm.messages import BIAS, MAX, MIN, SUM
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.finish import Finish, check

REDUCTIONS = {"sum": SUM, "mean": SUM, "max": MAX, "min": MIN}

STEEPEST = 1e4
"""Larger multipliers are as good as this one: all but zero is clamped. With them float32 rounds as it should."""


def _make_messages(
    multipliers: Tensor, grid: Tensor, zero: int, packed_input: bool
) -> tuple[NDArray[Any], tuple[int, int, int, int, int]]:
    """Returns the table that messages are made with, and the numbers that belong to it."""
    slopes = array(multipliers).clip(-STEEPEST, STEEPEST)
    _, middle, top, low = CodeGrid(*map(int, grid.tolist()))
    if packed_input:
        return messages_of_codes(slopes, zero, middle + low, low, low + top), (0, 0, 0, 0, middle)
    if (by_code := lines(slopes, zero, middle + low, low, top)) is not None:
        return by_code, (0, 0, 0, 0, middle + 255 - top)
    return slopes, (zero, middle + low, BIAS + low, BIAS + low + top, BIAS + middle + low)


messages = Derived(_make_messages)


def _make_group_messages(
    multipliers: Tensor, grid: Tensor, x_grid: Tensor
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Returns multipliers, the zero of each group of senders, and what belongs to each group of receivers."""
    _, middle, top, low = grid.round().to(torch.int64).t()
    numbers = torch.stack([middle + low, BIAS + low, BIAS + low + top, BIAS + middle + low], 1)
    slopes = array(multipliers).clip(-STEEPEST, STEEPEST)
    return slopes, array(x_grid[:, 1].to(torch.int64)).copy(), array(numbers.contiguous()).copy()


group_messages = Derived(_make_group_messages)


def check_all(sizes: Mapping[str, int], args: Sequence[Any]) -> None:
    """Raises unless the flat arguments of the operator fit each other: the loops do not look again."""
    x, x_grid, _, _, columns, packed_input, reduce, weight, multipliers, message_grid, groups, *finish = args
    check_width(x, columns, packed_input)
    weighed = [part is None for part in (weight, multipliers, message_grid)]
    if any(weighed) != all(weighed) or (weight is not None and (weight.size(1) == 0 or columns % weight.size(1) != 0)):
        raise unweighed(sizes["edges"], columns, weight)
    several = multipliers is not None and multipliers.dim() == 3
    if several:
        counts, ends = multipliers.shape[:2], (len(message_grid), len(x_grid))
        sides = zip(counts, (finish[-1], groups), strict=True)
        known = counts == ends and all(count > 0 and (count == 1 or own is not None) for count, own in sides)
        if x_grid.dim() != 2 or message_grid.dim() != 2 or not known or REDUCTIONS[reduce] != SUM:
            raise InputShapeError(
                f"messages between {tuple(counts)} groups of receivers and senders take grids of as many, the group of "
                f"each node, and a sum or mean; got grids of {ends}, and {reduce!r}"
            )
    elif x_grid.dim() != 1 or (message_grid is not None and message_grid.dim() != 1):
        raise InputShapeError("rows on grids of groups take a weight for each pair of groups")
    check(Finish(*finish), sizes["nodes"], columns)


def check_width(x: Tensor, columns: int, packed_input: bool) -> None:
    """Raises unless rows have so many columns, packed or not."""
    width = (columns + 1) // 2 if packed_input else columns
    if x.dim() != 2 or x.size(1) != width:
        given = ("num_senders", *x.shape[1:])  # how many are left of those that a user knows says nothing to them
        raise InputShapeError(f"{columns} columns take x of shape {('num_senders', width)}, got {given}")


def unweighed(edges: int, columns: int, weight: Tensor | None) -> InputShapeError:
    """Returns the error about codes of weights that do not fit the edges and the columns."""
    given = None if weight is None else tuple(weight.shape)
    return InputShapeError(
        f"{edges} edges of {columns} columns take weight codes {('num_edges', 'heads')}, of which the heads divide "
        f"the columns; got {given}"
    )


def check_weight(codes: Tensor, multipliers: Tensor, grid: Tensor, edges: int, columns: int) -> None:
    """Raises unless the fields of a :class:`.propagate.MessageWeight` fit the edges and the columns."""
    if codes.dim() != 2 or codes.size(0) != edges or codes.size(1) == 0 or columns % codes.size(1) != 0:
        raise unweighed(edges, columns, codes)
    if codes.dtype != torch.uint8 or multipliers.dtype != torch.float32:
        raise TypeError(f"expected uint8 codes and float32 multipliers, got {codes.dtype} and {multipliers.dtype}")
    if multipliers.dim() < 3 and (multipliers.shape != (CODES,) or grid.shape != (4,)):
        shapes = tuple(multipliers.shape), tuple(grid.shape)
        raise ValueError(f"expected multipliers {(CODES,)} and a grid {(4,)}, got {shapes[0]} and {shapes[1]}")

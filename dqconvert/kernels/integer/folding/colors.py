"""Colors of nodes by their features: nodes that have the same share a color, which is named after the first of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer import colors as loops
from dqconvert.kernels.cpu.threads import parts, run

_PAIRS = 64
"""Pairs of nodes by which is judged how often features repeat."""

_EQUAL = 4
"""So many of them have to be equal."""

_APART = 8
"""Of rows that have no memory of their own, so many for each pair are looked at."""

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


def plain_row_colors(x: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`row_colors`."""
    known: dict[bytes, int] = {}
    rows = array(as_words(x).cpu())
    found = [known.setdefault(row.tobytes(), i) for i, row in enumerate(rows)]
    return torch.tensor(found, dtype=torch.int32, device=x.device)


def as_words(x: Tensor) -> Tensor:
    """Returns integers `[rows, columns]` of the same bits, as a view where possible."""
    x = x.detach()
    if x.dim() != 2 or not x.is_contiguous():
        x = x.reshape(x.size(0), -1).contiguous()
    return x.view(_SAME_SIZE.get(x.itemsize, torch.int64))


def _rows_on_cpu(x: Tensor) -> Tensor:
    words = array(as_words(x))
    hashes, colors = np.empty(len(words), np.uint64), torch.empty(len(words), dtype=torch.int32)
    run(lambda _, start, stop: loops.hash_rows(words, hashes, start, stop), parts(len(words), words.size))
    loops.match_rows(words, hashes, loops.hash_table(len(words)), array(colors))
    return colors


row_colors_operator = Operator(
    "row_colors",
    plain_row_colors,
    fake=lambda x: x.new_empty(x.size(0), dtype=torch.int32),
    cpu=_rows_on_cpu,
    takes=Takes("row_colors", x="any [rows, ...]"),
)


def row_colors(x: Tensor) -> Tensor:
    """For each row the first one that is the same, bit by bit.

    Args:
        x: `[rows, *]`, of any dtype, with at least one value in a row.

    Returns:
        int32 `[rows]`.

    Example:
        >>> row_colors(torch.tensor([[1.0], [2.0], [1.0]]))
        tensor([0, 1, 0], dtype=torch.int32)
    """
    return row_colors_operator(x)


def plain_have_colors(x: Tensor, colors: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`have_colors`."""
    held = as_words(x)
    return (held == held[colors.long()]).all()


def _have_on_cpu(x: Tensor, colors: Tensor) -> Tensor:
    words, named = array(as_words(x)), array(colors)
    return torch.tensor(
        all(run(lambda _, start, stop: loops.equal_to_first(words, named, start, stop), parts(len(words), words.size)))
    )


have_colors_operator = Operator(
    "have_colors",
    plain_have_colors,
    fake=lambda x, colors: x.new_empty((), dtype=torch.bool),
    cpu=_have_on_cpu,
    takes=Takes("have_colors", x="any [rows, ...]", colors="int32 [rows]"),
)


def have_colors(x: Tensor, colors: Tensor) -> bool:
    """True if all rows of a color are the same; those of two colors may be, too.

    Args:
        x: `[rows, *]`.
        colors: int32 `[rows]`.

    Example:
        >>> have_colors(torch.tensor([[3.0], [5.0], [3.0]]), torch.tensor([0, 1, 0], dtype=torch.int32))
        True
    """
    return bool(have_colors_operator(x, colors))


def repeats(x: Tensor) -> bool:
    """True if rows are often the same, by a few pairs: to find that they are not costs next to nothing.

    Example:
        >>> repeats(torch.ones(100, 3)), repeats(torch.arange(300.0).view(100, 3))
        (True, False)
    """
    if x.dim() == 0 or x.numel() == 0 or x.size(0) > torch.iinfo(torch.int32).max:
        return False
    pairs = min(_PAIRS, x.size(0))
    if not x.is_contiguous():
        some = min(pairs * _APART, x.size(0))
        x = x[torch.arange(some) * x.size(0) // some]
    return bool(loops.count_equal(array(as_words(x)), pairs) * _PAIRS >= _EQUAL * pairs)

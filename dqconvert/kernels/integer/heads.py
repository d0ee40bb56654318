"""The heads of attention, added up: codes of a row that lie next to each other, head by head.

sums[r, c] = sum over the heads h of (x[r, h, c] - zero),   exactly
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.heads import add_rows
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.finish import TAKES, Finish, check, fake_room, finish_arrays, plain_finish, room

MOST = 1 << 23
"""Heads whose sum fits into int32, whatever the codes: 2^23 * 255 < 2^31."""


def plain_add_heads(x: Tensor, x_grid: Tensor, columns: int, finish: Finish) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`add_heads`."""
    zero = x_grid[..., 1].long()
    if finish.groups is not None and zero.dim() > 0:
        zero = zero[finish.groups.long()].unsqueeze(1)
    centred = x.long() - zero
    sums = centred.view(x.size(0), x.size(1) // columns, columns).sum(1)
    return plain_finish(sums, finish)


def _make_zeros(x_grid: Tensor) -> NDArray[Any]:
    return array(x_grid.reshape(-1, 4)[:, 1].int())


_zeros = Derived(_make_zeros)


def _on_cpu(x: Tensor, x_grid: Tensor, columns: int, finish: Finish) -> Tensor:
    rows, width = x.shape
    out = room(rows, columns, finish)
    args = array(x), _zeros((x_grid,)), columns, finish_arrays(finish, columns), array(out)
    run(lambda _, start, stop: add_rows(*args, start, stop), parts(rows, rows * width))
    return out


def _check(sizes: Mapping[str, int], args: Sequence[Any]) -> None:
    x, x_grid, columns, *finish = args
    _check_forms(x, x_grid, columns, Finish(*finish))
    check(Finish(*finish), sizes["rows"], columns)


def _check_forms(x: Tensor, x_grid: Tensor, columns: int, finish: Finish) -> None:
    _check_width(x, columns)
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 codes, got {x.dtype}")
    if x_grid.dim() > 1 and (finish.groups is None or x_grid.size(0) != finish.factor.size(0)):
        raise InputShapeError(f"grids {tuple(x_grid.shape)} of groups of rows take a finish of as many groups")


add_heads_operator = Operator(
    "add_heads",
    plain_add_heads,
    fake=lambda x, x_grid, columns, finish: fake_room(x, x.size(0), columns, finish),
    cpu=_on_cpu,
    check=_check_forms,
    takes=Takes(
        "add_heads",
        x="uint8 [rows, width]",
        x_grid="float32 [4] | [count, 4]",
        columns="size",
        **TAKES,
        also=_check,
    ),
)


def _check_width(x: Tensor, columns: int) -> None:
    if x.dim() != 2 or columns < 1 or x.size(1) % columns != 0 or x.size(1) // columns > MOST:
        raise InputShapeError(f"heads of {columns} columns take x {('rows', 'heads * columns')}, got {tuple(x.shape)}")


def add_heads(x: Tensor, x_grid: Tensor, columns: int, finish: Finish) -> Tensor:
    """Returns the sum, or by its factor the mean, of the heads of each row, that ends as `finish` says.

    Args:
        x: uint8 codes `[rows, heads * columns]`.
        x_grid: float32 `[4]`: scale, zero, the highest code, and the lowest of training; or `[groups, 4]`, by the
            groups of the finish.
        columns: Of a head, and of the result.
        finish: What makes codes of the sums; its factor is the scale of `x`, for a mean divided by the heads.

    Returns:
        `[rows, columns]`, or `[rows, (columns + 1) // 2]` if the finish packs; of its table's dtype, or
        uint8, or float32 without a grid.

    Example:
        >>> x = torch.tensor([[3, 5, 1, 9]], dtype=torch.uint8)
        >>> finish = Finish(factor=torch.tensor([0.5]), grid=torch.tensor([1.0, 0.0, 255.0, 0.0]))
        >>> add_heads(x, torch.tensor([1.0, 1.0, 15.0, 0.0]), 2, finish)
        tensor([[1, 6]], dtype=torch.uint8)
    """
    return add_heads_operator(x, x_grid, columns, finish)

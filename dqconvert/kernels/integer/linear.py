"""A linear layer on codes: products of integers, and what makes codes of their sums.

    sums[r, c] = sum_k (x[r, k] - zero) * weight[c, k],   exactly

A few rows at a time: their sums are in the cache when they become codes (see :mod:`dqconvert.kernels.integer.finish`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.linear import linear_rows
from dqconvert.kernels.cpu.llvm.multiply import GROUP
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.integer.codes import for_loops, not_a_number, not_floating, plain_quantize, quantize
from dqconvert.kernels.integer.finish import TAKES, Finish, check, fake_room, finish_arrays, plain_finish, room, unpack


def pack_weight(centred: Tensor) -> Tensor:
    """Returns a weight in the order in which the loops read it.

    Args:
        centred: int16 `[columns, depth]`, codes less their zero, between -255 and 255.

    Returns:
        int16 `[groups, pairs, 16, 2]`: groups of 16 columns, pairs of the depth, filled up with zeros.

    Example:
        >>> packed = pack_weight(torch.tensor([[1, 2, 3]], dtype=torch.int16))
        >>> packed.shape, packed[0, :, 0].tolist()
        (torch.Size([1, 2, 16, 2]), [[1, 2], [3, 0]])
    """
    columns, depth = centred.shape
    wide = torch.nn.functional.pad(centred, (0, depth % 2, 0, -columns % GROUP))
    return wide.reshape(-(-columns // GROUP), GROUP, (depth + 1) // 2, 2).transpose(1, 2).contiguous()


def unpack_weight(packed: Tensor, columns: int, depth: int) -> Tensor:
    """Reverses :func:`pack_weight`.

    Example:
        >>> unpack_weight(pack_weight(torch.tensor([[1, 2, 3]], dtype=torch.int16)), columns=1, depth=3)
        tensor([[1, 2, 3]], dtype=torch.int16)
    """
    groups, pairs = packed.shape[:2]
    return packed.transpose(1, 2).reshape(groups * GROUP, 2 * pairs)[:columns, :depth].contiguous()


def plain_integer_linear(
    x: Tensor, x_grid: Tensor, weight: Tensor, columns: int, packed_input: bool, finish: Finish, name: str | None = None
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`integer_linear`."""
    grids, dim = rows_on(x_grid, finish)
    if x.is_floating_point():
        x = plain_quantize(x, grids, dim, False, name)
    elif packed_input:
        x = unpack(x, 2 * x.size(1))
    # float64 holds these sums exactly, and has products on every device.
    zero = CodeGrid(*grids).zero.to(torch.float64)
    centred = x.to(torch.float64) - (zero if dim is None else zero[:, None])
    sums = centred @ unpack_weight(weight, columns, x.size(1)).to(torch.float64).t()
    return plain_finish(sums.to(torch.int64), finish)


def rows_on(x_grid: Tensor, finish: Finish) -> tuple[Tensor, int | None]:
    """Returns the grid of the rows, and the dimension along which it differs, if it is that of their groups."""
    if x_grid.dim() == 1 or finish.groups is None:
        return x_grid, None
    return x_grid[finish.groups.long()].t(), 0


_READ = (torch.uint8, torch.float32)
"""Types of rows that the loops read; others are quantized before."""


def _on_cpu(
    x: Tensor, x_grid: Tensor, weight: Tensor, columns: int, packed_input: bool, finish: Finish, name: str | None = None
) -> Tensor:
    rows = x.size(0)
    out = room(rows, columns, finish)
    args = (
        array(x),
        packed_input,
        for_loops(x_grid if x_grid.dim() == 1 else x_grid[0], np.float32),
        array(x_grid) if x_grid.dim() == 2 else None,
        array(weight),
        weight.size(1),
        columns,
        finish_arrays(finish, columns),
        array(out),
    )
    cuts = parts(rows, rows * (columns + weight.numel() // 32))
    missing = run(lambda _, start, stop: linear_rows(*args, start, stop), cuts)
    if name is not None and any(missing):
        raise not_a_number(name)
    return out


def _fake(
    x: Tensor, x_grid: Tensor, weight: Tensor, columns: int, packed_input: bool, finish: Finish, *_: Any
) -> Tensor:
    return fake_room(x, x.size(0), columns, finish)


def _check(sizes: Mapping[str, int], args: Sequence[Any]) -> None:
    _, _, weight, columns, packed_input, *finish, _ = args
    width = sizes["width"]
    if sizes["groups"] != -(-columns // GROUP) or sizes["pairs"] != (width if packed_input else (width + 1) // 2):
        raise misfit(args[0], columns, packed_input, weight)
    if args[1].dim() == 2 and (finish[-1] is None or len(args[1]) == 0):
        raise ValueError(f"rows are on {len(args[1])} grids, and the finish does not say which have which")
    check(Finish(*finish), sizes["rows"], columns)


def misfit(x: Tensor, columns: int, packed_input: bool, weight: Tensor) -> InputShapeError:
    """Returns the error about a weight that does not belong to such rows."""
    width = x.size(-1)
    pairs = width if packed_input else (width + 1) // 2
    return InputShapeError(
        f"x of shape {('rows', *x.shape[1:])} and {columns} columns take a weight of shape "
        f"{(-(-columns // GROUP), pairs, GROUP, 2)}, packed by pack_weight; got {tuple(weight.shape)}"
    )


def _check_types(x: Tensor, x_grid: Tensor, weight: Tensor, columns: int, packed_input: bool, *finish: object) -> None:
    name = finish[-1]
    if x.dim() != 2:
        raise misfit(x, columns, packed_input, weight)
    if isinstance(name, str) and not x.is_floating_point():
        raise not_floating(name, x)
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"expected uint8 codes or floating-point values, got {x.dtype}")


integer_linear_operator = Operator(
    "integer_linear",
    plain_integer_linear,
    fake=_fake,
    cpu=_on_cpu,
    check=_check_types,
    takes=Takes(
        "integer_linear",
        x="number [rows, width]",
        x_grid="float32 [4] | [of_x, 4]",
        weight="int16 [groups, pairs, 16, 2]",
        columns="size",
        packed_input="flag",
        **TAKES,
        name="flag",
        also=_check,
    ),
)


def integer_linear(
    x: Tensor,
    x_grid: Tensor,
    weight: Tensor,
    columns: int,
    finish: Finish,
    *,
    packed_input: bool = False,
    name: str | None = None,
    depth: int | None = None,
) -> Tensor:
    """Returns a linear layer on codes, in integers: exact sums, of any depth, that end as `finish` says.

    Args:
        x: uint8 codes `[rows, depth]`; with `packed_input`, two to a byte, `[rows, (depth + 1) // 2]`; or floating
            values `[rows, depth]`, which are quantized to `x_grid` on the way, see
            :func:`dqconvert.kernels.integer.codes.quantize`.
        x_grid: float32 `[4]`: scale, zero, the highest code, and the lowest of training, as there; or `[groups, 4]`, by
            the group of each row, that the finish says.
        weight: int16, see :func:`pack_weight`.
        columns: Of the result.
        finish: What makes codes of the sums; its factor is the scale of `x` times that of the weight.
        packed_input: True if `x` is packed.
        name: What to call the values in an error, if NaN among them is one; then they are no codes.
        depth: How many columns the weight takes, as it is packed by pairs; `None`: in files of before, one more or one
            less is not noticed.

    Returns:
        `[rows, columns]`, or `[rows, (columns + 1) // 2]` if the finish packs; of its table's dtype, or
        uint8, or float32 without a grid.

    Raises:
        ValueError: If shapes do not fit, and for NaN if there is a name.
        TypeError: For integers other than codes.

    Example:
        >>> x = torch.tensor([[3, 5], [1, 1]], dtype=torch.uint8)
        >>> weight = pack_weight(torch.tensor([[2, 1], [-1, 0]], dtype=torch.int16))
        >>> finish = Finish(factor=torch.tensor([0.5]), grid=torch.tensor([1.0, 4.0, 15.0, 0.0]))
        >>> integer_linear(x, torch.tensor([0.1, 1.0, 255.0, 0.0]), weight, 2, finish)
        tensor([[8, 3],
                [4, 4]], dtype=torch.uint8)
    """
    if depth is not None and x.dim() == 2 and x.size(1) != (-(-depth // 2) if packed_input else depth):
        raise InputShapeError(f"{name or 'x'} has {x.size(1)} columns, and the weight takes {depth}")
    if x.dtype not in _READ and x.is_floating_point() and x.dim() == 2:
        grids, dim = rows_on(x_grid, finish)
        x = quantize(x, grids, dim, name=name)
    return integer_linear_operator(x, x_grid, weight, columns, packed_input, finish, name)

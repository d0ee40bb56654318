"""Between values and codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputShapeError, InputTypeError, InputValueError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels._layout import along, wide_dtype
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.codes import dequantize_part, quantize_packed, quantize_part
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.finish import pack


def plain_quantize(x: Tensor, grid: Tensor, dim: int | None, packed: bool, name: str | None = None) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`quantize`."""
    wide = x.to(wide_dtype(x.dtype))
    if name is not None:
        check_numbers(wide, name)
    grid = grid.to(wide.dtype)
    scale, zero, top, low = CodeGrid(*(part if dim is None else along(part, x, dim) for part in grid))
    # Rounded where the training kernels round: their sum is another one, to the last bit, than one with `zero`.
    codes = (wide / scale + (zero + low)).round() - low
    codes = torch.where(wide.isnan(), zero, codes.clamp(torch.zeros_like(top), top)).to(torch.uint8).contiguous()
    return pack(codes) if packed else codes


def _quantize_on_cpu(x: Tensor, grid: Tensor, dim: int | None, packed: bool, name: str | None = None) -> Tensor:
    wide = wide_dtype(x.dtype)
    values = array(x if x.dtype is wide else x.detach().to(wide))
    numbers = for_loops(grid, values.dtype.type)
    if not packed:
        codes = empty(x.shape, torch.uint8)
        flat = values.reshape(-1), array(codes).reshape(-1), numbers
        missing = run(lambda _, start, stop: quantize_part(*flat, start, stop), parts(x.numel(), x.numel()))
    else:
        codes = empty((x.size(0), (x.size(1) + 1) // 2), torch.uint8)
        args = values, array(codes), numbers
        missing = run(lambda _, start, stop: quantize_packed(*args, start, stop), parts(x.size(0), x.numel()))
    if name is not None and any(missing):
        raise not_a_number(name)
    return codes


def not_a_number(name: str) -> InputValueError:
    """Returns the error about values called `name`, one of which is NaN."""
    return InputValueError(f"{name} holds NaN, for which there is no code: replace or leave out what is not known")


def not_floating(name: str, x: Tensor) -> InputTypeError:
    """Returns the error about a tensor called `name`, of integers where values should be."""
    return InputTypeError(f"{name} must hold floating-point values, got {x.dtype}: give {name}.float()")


def check_numbers(x: Tensor, name: str) -> Tensor:
    """Returns values as they are; raises if one of them is NaN.

    Args:
        x: Any tensor.
        name: What to call it.

    Raises:
        ValueError: If not.

    Example:
        >>> check_numbers(torch.tensor([float("nan")]), "x")
        Traceback (most recent call last):
        dqconvert.errors.InputValueError: x holds NaN, for which there is no code: ...
    """
    if torch.compiler.is_compiling():  # such code cannot branch on values; it looks at them when it runs
        torch._assert_async(~x.isnan().any(), str(not_a_number(name)))
    elif bool(x.isnan().any()):
        raise not_a_number(name)
    return x


def as_numbers(grid: Tensor, kind: type[np.floating]) -> CodeGrid:
    """Returns the numbers of a grid."""
    return CodeGrid(*_numbers((grid,), kind))


def for_loops(grid: Tensor, kind: type[np.floating]) -> tuple[np.floating, ...]:
    """Returns the numbers of a grid as a plain tuple, which costs the call of a loop less than a NamedTuple does."""
    return _numbers((grid,), kind)


_numbers: Derived[tuple[np.floating, ...]] = Derived(lambda grid, kind: tuple(map(kind, grid.tolist())))


def _fake_quantize(x: Tensor, grid: Tensor, dim: int | None, packed: bool, name: str | None = None) -> Tensor:
    shape = (x.size(0), (x.size(1) + 1) // 2) if packed else x.shape
    return x.new_empty(shape, dtype=torch.uint8)


def _check_packed(_: object, args: Sequence[Any]) -> None:
    if args[3] and args[0].dim() != 2:
        raise InputShapeError(f"only matrices are packed, got a tensor of shape {tuple(args[0].shape)}")


def _check_values(x: Tensor, grid: Tensor, dim: int | None, packed: bool, name: str | None = None) -> None:
    _check_grid(x, grid, dim)
    if not x.is_floating_point():
        raise not_floating(name or "x", x)
    if packed and x.dim() != 2:
        raise ValueError(f"only matrices are packed, got a tensor of shape {tuple(x.shape)}")


quantize_operator = Operator(
    "quantize_codes",
    plain_quantize,
    fake=_fake_quantize,
    cpu=_quantize_on_cpu,
    check=_check_values,
    serves=lambda x, grid, dim, *_: dim is None,  # else it is weights, once
    takes=Takes("quantize_codes", x="any", grid="any [4]", dim="flag", packed="flag", name="flag", also=_check_packed),
)


def quantize(
    x: Tensor, grid: Tensor, dim: int | None = None, *, packed: bool = False, name: str | None = None
) -> Tensor:
    """Returns the codes of values: `clamp(round(x / scale + (zero + low)) - low, 0, top)`.

    Halves round to even. Infinities become the ends of the grid; NaN, for which there is no code, becomes that of zero.

    Args:
        x: Floating tensor of any shape. float64 is computed in float64, all else in float32.
        grid: float32 `[4]`: scale, zero, the highest code, and what the training kernels call code 0: they round `x /
            scale + (zero + low)`, and where that is a half, the even one depends on it. `[4, channels]` with `dim`.
        dim: The dimension along which grids differ, if they do.
        packed: Codes below 16 of a matrix, two to a byte.
        name: What to call the values in an error, if NaN among them is one.

    Returns:
        uint8 of `x`'s shape, contiguous; packed, `[rows, (columns + 1) // 2]`.

    Raises:
        ValueError: If the grid does not fit, for what is packed and no matrix, and for NaN if there is a name.
        TypeError: For integers.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.0, 0.26, 9.0]), torch.tensor([0.5, 3.0, 15.0, 0.0])).tolist()
        [1, 3, 4, 15]
    """
    return quantize_operator(x, grid, dim, packed, name)


def _check_grid(x: Tensor, grid: Tensor, dim: int | None) -> None:
    right = () if dim is None else (x.size(dim),)
    if grid.shape != (4, *right):
        raise ValueError(f"the grid must have shape {(4, *right)}, got {tuple(grid.shape)}")


def plain_dequantize(codes: Tensor, grid: Tensor, dim: int | None) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`dequantize`."""
    scale, zero = (part if dim is None else along(part, codes, dim) for part in grid[:2])
    return ((codes.to(torch.float32) - zero) * scale).contiguous()


def _dequantize_on_cpu(codes: Tensor, grid: Tensor, dim: int | None) -> Tensor:
    values = empty(codes.shape, torch.float32)
    numbers = as_numbers(grid, np.float32)
    args = array(codes).reshape(-1), array(values).reshape(-1), numbers.scale, numbers.zero
    run(lambda _, start, stop: dequantize_part(*args, start, stop), parts(codes.numel(), codes.numel()))
    return values


dequantize_operator = Operator(
    "dequantize_codes",
    plain_dequantize,
    fake=lambda codes, grid, dim: codes.new_empty(codes.shape, dtype=torch.float32),
    cpu=_dequantize_on_cpu,
    check=lambda *args: _check_grid(*args),
    serves=lambda codes, grid, dim: dim is None,
    takes=Takes("dequantize_codes", codes="uint8", grid="any [4]", dim="flag"),
)


def dequantize(codes: Tensor, grid: Tensor, dim: int | None = None) -> Tensor:
    """Returns the values of codes: `(code - zero) * scale`.

    Args:
        codes: uint8 of any shape.
        grid, dim: As for :func:`quantize`.

    Returns:
        float32 of the same shape, contiguous.

    Example:
        >>> dequantize(torch.tensor([1, 3, 15], dtype=torch.uint8), torch.tensor([0.5, 3.0, 15.0, 0.0])).tolist()
        [-1.0, 0.0, 6.0]
    """
    return dequantize_operator(codes, grid, dim)

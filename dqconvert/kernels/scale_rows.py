"""Rows times numbers, one number for each row, in memory that is used again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import has_loops, matrix
from dqconvert.kernels.cpu.scale_rows import scale
from dqconvert.kernels.cpu.threads import parts, run


def plain_scale_rows(x: Tensor, factor: Tensor) -> Tensor:
    """Defines what every implementation is held to."""
    return x * factor.view(-1, *[1] * (x.dim() - 1))


def _on_cpu(x: Tensor, factor: Tensor) -> Tensor:
    y = empty(x.shape, x.dtype)
    args = matrix(x), array(factor), matrix(y)
    run(lambda _, start, stop: scale(*args, start, stop), parts(x.size(0), x.numel()))
    return y


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (factor,) = ctx.saved_tensors
    return scale_rows_operator(grad.contiguous(), factor), None


scale_rows_operator = Operator(
    "scale_rows",
    plain_scale_rows,
    fake=lambda x, factor: x.new_empty(x.shape),
    cpu=_on_cpu,
    serves=lambda x, factor: has_loops(x.dtype) and x.dim() > 0,
    takes=Takes("scale_rows", x="real [rows, ...]", factor="x [rows]"),
    setup=_setup,
    backward=_backward,
)


def scale_rows(x: Tensor, factor: Tensor) -> Tensor:
    """Returns `x` with each of its rows times a number.

    Args:
        x: Floating `[rows, ...]`.
        factor: `[rows]`, of `x`'s type.

    Returns:
        Contiguous, of `x`'s shape. Gradients reach `x` alone.

    Example:
        >>> import torch
        >>> scale_rows(torch.ones(2, 2), torch.tensor([1.0, 3.0]))
        tensor([[1., 1.],
                [3., 3.]])
    """
    result: Tensor = scale_rows_operator(x, factor)
    return result

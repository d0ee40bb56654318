"""A linear layer whose large results lie in memory that is used again; see :mod:`dqconvert.kernels._memory`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._dispatch import direct
from dqconvert.kernels._memory import empty


@torch.library.custom_op("dqconvert::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


@_linear.register_kernel("cpu")
def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _serves(x, weight) or (bias is not None and bias.dtype != x.dtype):
        return torch.nn.functional.linear(x, weight, bias)
    out = empty((x.size(0), weight.size(0)), x.dtype)
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.size(0)))


@torch.library.custom_op("dqconvert::matmul", mutates_args=())
def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight`, two matrices."""
    return x @ weight


@_matmul.register_kernel("cpu")
def _matmul_on_cpu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight, out=empty((x.size(0), weight.size(1)), x.dtype)) if _serves(x, weight) else x @ weight


@_matmul.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((x.size(0), weight.size(1)))


def _serves(x: Tensor, weight: Tensor) -> bool:
    return x.dim() == 2 and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias = ctx.needs_input_grad
    flat = grad.unsqueeze(0) if grad.dim() == 1 else grad.flatten(0, -2)
    to_x = None
    if for_x:  # a gradient of a gradient goes through torch's own operator
        again = torch.is_grad_enabled()
        multiply = torch.matmul if again else _matmul_on_cpu if direct(flat) else _matmul
        product = multiply(flat, weight)
        to_x = product.view(*grad.shape[:-1], weight.size(1))
    to_weight = flat.t() @ (x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)) if for_weight else None
    return to_x, to_weight, flat.sum(0) if for_bias else None


_linear.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator, where it need not be one."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        output = _on_cpu(*args)
        _setup(ctx, args, output)
        return output

    backward = staticmethod(_backward)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: the same values and gradients.

    **Arguments**

    - `x`: floating `[..., in]`; `weight`: `[out, in]`; `bias = None`: `[out]`, all of one type.

    **Returns** `[..., out]`.

    ```python
    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    >>> linear(x, weight)
    tensor([[11.]])

    ```
    """
    result: Tensor = (_Direct.apply if direct(x, weight, bias) else _linear)(x, weight, bias)
    return result

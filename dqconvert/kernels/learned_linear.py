"""The product of a linear layer before a chain whose ranges are learned: that wants the rows once more on the way back,
so they are in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Steps
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.linear import product_of
from dqconvert.kernels.linear_grad import Entry, joined, quantize_linear_grad, serves

_ALONE = Entry(None, None, None, *joined(None, *Steps((None, None, None)).packed()))
"""Of a linear layer with no grids before or behind it."""


def plain_learned_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Defines the values."""
    return torch.nn.functional.linear(x, weight)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    for_x, for_weight = ctx.needs_input_grad
    if torch.is_grad_enabled() or grad.numel() == 0:  # a gradient of a gradient goes through torch's own operators
        return grad @ weight if for_x else None, grad.t() @ x if for_weight else None
    rest = (None, None, _ALONE, False, [for_x, for_weight, False, False, False, False])
    none = grad.new_empty(0, dtype=torch.uint8)
    to_x, to_weight, *_ = quantize_linear_grad(grad.contiguous(), none, x.contiguous(), weight.contiguous(), *rest)
    return to_x if for_x else None, to_weight if for_weight else None


learned_linear_operator = Operator(
    "learned_linear",
    plain_learned_linear,
    fake=lambda x, weight: x.new_empty((x.size(0), weight.size(0))),
    cpu=product_of,
    serves=lambda x, weight: serves(x, weight, None, None, None, None),
    takes=Takes("learned_linear", x="real [rows, depth]", weight="x [columns, depth]"),
    setup=_setup,
    backward=_backward,
)


def learned_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Returns `torch.nn.functional.linear(x, weight)`, whose gradients our loops compute.

    Args:
        x: Floating `[rows, in]`.
        weight: `[out, in]`, of the same type.

    Returns:
        `[rows, out]`.

    Example:
        >>> learned_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])
    """
    result: Tensor = learned_linear_operator(x, weight)
    return result

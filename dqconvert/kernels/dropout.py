"""Dropout that remembers a byte for each value instead of a float, and draws the same random numbers as torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import has_loops
from dqconvert.kernels.cpu.draw import bernoulli
from dqconvert.kernels.cpu.dropout import scale_kept
from dqconvert.kernels.cpu.threads import parts, run


def plain_dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Defines what every implementation is held to: the result, and which values were kept (uint8)."""
    kept = torch.empty_like(x, memory_format=torch.contiguous_format).bernoulli_(1 - p)
    return x * (kept / (1 - p)), kept.to(torch.uint8)


def plain_dropout_grad(grad: Tensor, kept: Tensor, p: float) -> Tensor:
    """Returns the gradient of `x`: that of the result where it was kept."""
    return grad * (kept.to(grad.dtype) / (1 - p))


def _on_cpu(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    kept = torch.from_numpy(bernoulli(x.numel(), 1 - p)).view(x.shape)
    return _scaled(x, kept, p), kept


def _grad_on_cpu(grad: Tensor, kept: Tensor, p: float) -> Tensor:
    return _scaled(grad, kept, p)


def _scaled(x: Tensor, kept: Tensor, p: float) -> Tensor:
    y = empty(x.shape, x.dtype)
    flat = [array(t).reshape(-1) for t in (x, kept, y)]
    factor = flat[0].dtype.type(1.0) / flat[0].dtype.type(1 - p)
    run(lambda _, start, stop: scale_kept(*flat, factor, start, stop), parts(x.numel(), x.numel()))
    return y


def _fake(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.uint8)


dropout_grad = Operator(
    "dropout_grad",
    plain_dropout_grad,
    fake=lambda grad, kept, p: grad.new_empty(grad.shape),
    cpu=_grad_on_cpu,
    serves=lambda grad, kept, p: has_loops(grad.dtype),
    takes=Takes("dropout_grad", grad="real", kept="uint8 [=grad]", p="free"),
)


def _setup(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.p = inputs[1]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
    (kept,) = ctx.saved_tensors
    if grad is None:
        return None, None
    # A gradient of a gradient goes through torch's own operators.
    return (plain_dropout_grad if torch.is_grad_enabled() else dropout_grad)(grad, kept, ctx.p), None


dropout_operator = Operator(
    "dropout",
    plain_dropout,
    fake=_fake,
    cpu=_on_cpu,
    serves=lambda x, p: has_loops(x.dtype),
    takes=Takes("dropout", x="real", p="free"),
    setup=_setup,
    backward=_backward,
    random=True,
)


def dropout(x: Tensor, p: float) -> Tensor:
    """`torch.nn.functional.dropout(x, p, training=True)`: the same values, random numbers and gradients.

    Args:
        x: Floating, of any shape, contiguous (torch draws for others in another order).
        p: The share of values that become zero, `0 <= p < 1`.

    Example:
        >>> _ = torch.manual_seed(0); one = dropout(torch.ones(8), 0.5)
        >>> _ = torch.manual_seed(0); two = torch.nn.functional.dropout(torch.ones(8), 0.5)
        >>> torch.equal(one, two)
        True
    """
    return dropout_operator(x, p)[0]

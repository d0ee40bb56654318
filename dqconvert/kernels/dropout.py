"""Dropout that remembers a byte for each value instead of a float, and draws the same random numbers as torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._chain_loops import has_loops
from dqconvert.kernels._dispatch import direct
from dqconvert.kernels._memory import empty
from dqconvert.kernels._threads import loop, parts, run


def plain_dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The definition that every implementation is held to: the result, and which values were kept (uint8)."""
    kept = torch.empty_like(x, memory_format=torch.contiguous_format).bernoulli_(1 - p)
    return x * (kept / (1 - p)), kept.to(torch.uint8)


def plain_dropout_grad(grad: Tensor, kept: Tensor, p: float) -> Tensor:
    """The gradient of the result, where it was kept."""
    return grad * (kept.to(grad.dtype) / (1 - p))


# Draws random numbers, so equal calls must neither be merged nor run again in a backward pass.
@torch.library.custom_op("dqconvert::dropout", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return plain_dropout(x, p)


@_dropout.register_kernel("cpu")
def _on_cpu(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    if not has_loops(x.dtype):
        return plain_dropout(x, p)
    y, kept = empty(x.shape, x.dtype), empty(x.shape, torch.uint8)
    y.bernoulli_(1 - p)
    flat = [t.contiguous().view(-1).numpy() for t in (x.detach(), y, kept)]
    factor = flat[0].dtype.type(1.0) / flat[0].dtype.type(1 - p)
    run(lambda _, start, stop: scale_kept(*flat, factor, start, stop), parts(x.numel(), x.numel()))
    return y, kept


@_dropout.register_fake
def _(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.uint8)


@torch.library.custom_op("dqconvert::dropout_grad", mutates_args=())
def _dropout_grad(grad: Tensor, kept: Tensor, p: float) -> Tensor:
    return plain_dropout_grad(grad, kept, p)


@_dropout_grad.register_kernel("cpu")
def _grad_on_cpu(grad: Tensor, kept: Tensor, p: float) -> Tensor:
    if not has_loops(grad.dtype):
        return plain_dropout_grad(grad, kept, p)
    out = empty(grad.shape, grad.dtype)
    flat = [t.contiguous().view(-1).numpy() for t in (grad, kept, out)]
    factor = flat[0].dtype.type(1.0) / flat[0].dtype.type(1 - p)
    run(lambda _, start, stop: scale_by(*flat, factor, start, stop), parts(grad.numel(), grad.numel()))
    return out


@_dropout_grad.register_fake
def _(grad: Tensor, kept: Tensor, p: float) -> Tensor:
    return grad.new_empty(grad.shape)


@loop
def scale_kept(x, y, kept, factor, start, stop):  # type: ignore[no-untyped-def]
    """`y` holds ones and zeros on the way in."""
    zero = x.dtype.type(0)
    for i in range(start, stop):
        kept[i] = np.uint8(y[i] > zero)
    for i in range(start, stop):
        y[i] = x[i] * (y[i] * factor)


@loop
def scale_by(grad, kept, out, factor, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        out[i] = grad[i] * (kept[i] * factor)


def _setup(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.p = inputs[1]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
    (kept,) = ctx.saved_tensors
    if grad is None:
        return None, None
    if torch.is_grad_enabled():  # a gradient of a gradient goes through torch's own operators
        return plain_dropout_grad(grad, kept, ctx.p), None
    return (_grad_on_cpu if direct(grad) else _dropout_grad)(grad, kept, ctx.p), None


_dropout.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator, where it need not be one."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        output = _on_cpu(*args)
        _setup(ctx, args, output)
        return output

    backward = staticmethod(_backward)


def dropout(x: Tensor, p: float) -> Tensor:
    """`torch.nn.functional.dropout(x, p, training=True)`: the same values, random numbers and gradients.

    **Arguments**

    - `x`: floating, of any shape, contiguous (torch draws for others in another order).
    - `p`: the share of values that become zero, `0 <= p < 1`.

    ```python
    >>> _ = torch.manual_seed(0); one = dropout(torch.ones(8), 0.5)
    >>> _ = torch.manual_seed(0); two = torch.nn.functional.dropout(torch.ones(8), 0.5)
    >>> torch.equal(one, two)
    True

    ```
    """
    result: Tensor = (_Direct.apply if direct(x) else _dropout)(x, p)[0]
    return result

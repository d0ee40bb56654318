"""Quantization noise: some of the values pass rounded, the others as they are."""

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
from dqconvert.kernels.cpu.noise import choose, share_out
from dqconvert.kernels.cpu.threads import parts, run


def plain_mix(x: Tensor, rounded: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Defines what every implementation is held to: the result, and which values were drawn (uint8)."""
    drawn = torch.empty_like(rounded, memory_format=torch.contiguous_format).bernoulli_(share)
    return torch.where(drawn > 0, rounded, x), drawn.to(torch.uint8)


def plain_mix_grad(grad: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Defines the gradients of both: that of the result, each where it was taken from there."""
    return torch.where(drawn > 0, 0, grad), torch.where(drawn > 0, grad, 0)


def _on_cpu(x: Tensor, rounded: Tensor, share: float) -> tuple[Tensor, Tensor]:
    drawn = torch.from_numpy(bernoulli(x.numel(), share)).view(x.shape)
    y = empty(x.shape, x.dtype)
    flat = [array(t).reshape(-1) for t in (x, rounded, drawn, y)]
    run(lambda _, start, stop: choose(*flat, start, stop), parts(x.numel(), x.numel()))
    return y, drawn


def _grad_on_cpu(grad: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    ways = empty(grad.shape, grad.dtype), empty(grad.shape, grad.dtype)
    flat = [array(t).reshape(-1) for t in (grad, drawn, *ways)]
    run(lambda _, start, stop: share_out(*flat, start, stop), parts(grad.numel(), grad.numel()))
    return ways


mix_grad = Operator(
    "mix_grad",
    plain_mix_grad,
    fake=lambda grad, drawn: (grad.new_empty(grad.shape), grad.new_empty(grad.shape)),
    cpu=_grad_on_cpu,
    serves=lambda grad, drawn: has_loops(grad.dtype),
    takes=Takes("mix_grad", grad="real", drawn="uint8 [=grad]"),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    (drawn,) = ctx.saved_tensors
    if grad is None:
        return None, None, None
    # A gradient of a gradient goes through torch's own operators.
    to_x, to_rounded = (plain_mix_grad if torch.is_grad_enabled() else mix_grad)(grad.contiguous(), drawn)
    return to_x, to_rounded, None


mix_operator = Operator(
    "mix",
    plain_mix,
    fake=lambda x, rounded, share: (x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.uint8)),
    cpu=_on_cpu,
    serves=lambda x, rounded, share: has_loops(x.dtype),
    takes=Takes("mix", x="real", rounded="x [=x]", share="free"),
    setup=_setup,
    backward=_backward,
    random=True,
)


def mix(x: Tensor, rounded: Tensor, share: float) -> Tensor:
    """Returns the rounded values at a random share of the places, and `x` at the others.

    Args:
        x: Floating, of any shape.
        rounded: Likewise, what becomes of it.
        share: Each place's probability to be rounded.

    Returns:
        Shaped like `x`, contiguous. Gradients reach each of both where it was taken.

    Source: Fan et al., *Training with Quantization Noise for Extreme Model Compression*, ICLR 2021, section 4.1, with
    blocks of one value, as for scalar quantization.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mix(torch.zeros(8), torch.ones(8), 0.5).tolist()
        [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """
    return mix_operator(x.contiguous(), rounded.contiguous(), share)[0]

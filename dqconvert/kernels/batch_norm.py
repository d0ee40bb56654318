"""Batch normalization in training, and what happens to its rows behind it, a few rows at a time.

    x -> (x - mean) / sqrt(var + eps) * weight + shift -> grid 0 -> + bias | + alpha * other -> grid 1 -> ReLU -> grid 2

See :mod:`dqconvert.kernels.chain`; here even all of the chain may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import CHAIN, OF_MATRIX, Chain
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import SUM, X, all_pass, chain_gradients, fake_results, plain_quantize_chain
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import norm_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import Caught, ChainArrays


def plain_batch_norm(
    x: Tensor, weight: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Returns rows `[rows, columns]` normalized by the moments of each column."""
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    offset = -mean * scale if shift is None else shift - mean * scale
    return x * scale + offset


def plain_quantize_batch_norm(
    x: Tensor, weight: Tensor | None, shift: Tensor | None, eps: float, chain: Chain
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to: the chain of the normalized rows.

    Returns:
        What that does; and the mean and the variance (of the batch, not corrected) of each column.
    """
    var, mean = torch.var_mean(x, 0, correction=0)
    return *plain_quantize_chain(plain_batch_norm(x, weight, shift, mean, var, eps), chain), mean, var


class _Normed(_chain.Source):
    """Normalized rows, made when they are wanted."""

    def __init__(self, x: NDArray[Any], scale: NDArray[Any], shift: NDArray[Any]) -> None:
        super().__init__(x.shape, torch.from_numpy(x).dtype, parts(len(x), x.size))
        self._args = (x, scale, shift)

    def go(self, y: NDArray[Any], chain: ChainArrays, caught: Sequence[Caught]) -> None:
        run(lambda part, start, stop: loops.chain_normed(*self._args, y, chain, caught[part], start, stop), self.cuts)


def _serves(x: Tensor, weight: Tensor | None, shift: Tensor | None, eps: float, chain: Chain) -> bool:
    alike = all(t is None or t.dtype == x.dtype for t in (weight, shift))
    return alike and x.dim() == 2 and x.size(0) > 0 and _chain.serves(x.shape, x.dtype, chain.added)


def _on_cpu(x: Tensor, weight: Tensor | None, shift: Tensor | None, eps: float, chain: Chain) -> tuple[Tensor, ...]:
    mean, var = _moments(_chain.matrix(x))
    scale = 1 / torch.sqrt(var + eps)
    scale = scale if weight is None else scale * weight.detach()
    offset = -mean * scale if shift is None else shift.detach() - mean * scale
    rows = _Normed(_chain.matrix(x), *(array(t.to(x.dtype)) for t in (scale, offset)))
    return *_chain.quantize(rows, chain), mean.to(x.dtype), var.to(x.dtype)


def _moments(x: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Returns the mean and the variance of each column, float64."""
    cuts = parts(len(x), x.size)
    mean, square = (torch.empty((len(cuts), x.shape[1]), dtype=torch.float64) for _ in range(2))
    run(lambda part, start, stop: loops.moments(x, array(mean[part]), array(square[part]), start, stop), cuts)
    rows = torch.tensor([stop - start for start, stop in cuts], dtype=torch.float64).unsqueeze(1)
    total = (mean * rows).sum(0) / len(x)
    return total, (square + rows * (mean - total).square()).sum(0) / len(x)


def _fake(x: Tensor, weight: Tensor | None, shift: Tensor | None, eps: float, chain: Chain) -> tuple[Tensor, ...]:
    columns = x.new_empty((x.size(1),))
    return *fake_results(x, x.shape, chain), columns, torch.empty_like(columns)


def plain_batch_norm_grad(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines the gradients of `x`, `weight` and `shift`, given that of the normalized rows."""
    invstd = (var + eps).rsqrt()
    distance = x - mean
    to_shift, spread = grad.sum(0), (grad * distance).sum(0)
    scale = invstd if weight is None else invstd * weight
    to_x = scale * (grad - to_shift / len(x) - invstd.square() * spread / len(x) * distance)
    return to_x, spread * invstd, to_shift


def _grad(
    grad: Tensor, passes: Tensor, bit: int, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same, given a chain's gradient and the bit of `passes` by which it reaches the normalized rows."""
    reaching = grad if all_pass(passes) else torch.where((passes & bit) > 0, grad, 0)
    return plain_batch_norm_grad(reaching, x, weight, mean, var, eps)


def _grad_on_cpu(
    grad: Tensor, passes: Tensor, bit: int, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    grads, rows, center = _chain.matrix(grad), _chain.matrix(x), array(mean)
    bits = np.empty((0, 0), np.uint8) if all_pass(passes) else _chain.matrix(passes)
    into = (grads, bits, np.uint8(bit), rows, center)
    cuts = parts(len(rows), rows.size)
    sums = torch.empty((len(cuts), 2, rows.shape[1]), dtype=torch.float64)
    run(lambda part, a, b: loops.sums_back(*into, *array(sums[part]), a, b), cuts)
    to_shift, spread = sums.sum(0)
    invstd = 1 / torch.sqrt(var.double() + eps)
    scale = invstd if weight is None else invstd * weight.detach()
    factors = (scale, to_shift / len(x), invstd.square() * spread / len(x))
    to_x = empty(x.shape, x.dtype)
    args = (*into, *(array(t.to(x.dtype)) for t in factors), array(to_x))
    run(lambda _, start, stop: loops.normed_back(*args, start, stop), cuts)
    return to_x, (spread * invstd).to(x.dtype), to_shift.to(x.dtype)


def _fake_grad(grad: Tensor, passes: Tensor, bit: int, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.size(1),)), x.new_empty((x.size(1),))


def _serves_grad(grad: Tensor, passes: Tensor, bit: int, x: Tensor, weight: Tensor | None, *_: Any) -> bool:
    alike = grad.dtype == x.dtype and (weight is None or weight.dtype == x.dtype)
    return alike and x.size(0) > 0 and _chain.has_loops(x.dtype)


batch_norm_grad = Operator(
    "batch_norm_grad",
    _grad,
    fake=_fake_grad,
    cpu=_grad_on_cpu,
    serves=_serves_grad,
    takes=Takes(
        "batch_norm_grad",
        grad="real [rows, columns]",
        passes="uint8 [0] | [=grad]",
        bit="free",
        x="grad [=grad]",
        weight="grad? [columns]",
        mean="grad [columns]",
        var="grad [columns]",
        eps="free",
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    x, weight, _, ctx.eps, chain = inputs
    ctx.apart = chain.steps.schemes[0] is not None
    keep_other = chain.other if chain.alpha is not None and ctx.needs_input_grad[6] else None
    ctx.save_for_backward(x, weight, output[2], *output[3:], chain.alpha, keep_other)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    x, weight, passes, mean, var, alpha, other = ctx.saved_tensors
    for_x, for_weight, for_shift = ctx.needs_input_grad[:3]
    for_added = ctx.needs_input_grad[4:7]
    found: tuple[Tensor | None, ...] = (None, None, None)
    added: Sequence[Tensor | None] = (None, None, None)
    if not any(for_added) and not torch.is_grad_enabled():
        found = batch_norm_grad(grad, passes, X if ctx.apart else SUM, x, weight, mean, var, ctx.eps)
    else:
        needed = (for_x or for_weight or for_shift, *for_added)
        at_rows, *added = chain_gradients(grad, passes, other, alpha, ctx.apart, needed)
        if at_rows is not None and torch.is_grad_enabled():
            # A gradient of a gradient goes through torch's own operators, moments included.
            var, mean = torch.var_mean(x, 0, correction=0)
            found = plain_batch_norm_grad(at_rows, x, weight, mean, var, ctx.eps)
        elif at_rows is not None:
            found = batch_norm_grad(at_rows, passes.new_empty(0), X, x, weight, mean, var, ctx.eps)
    gradients = (g if wanted else None for g, wanted in zip(found, (for_x, for_weight, for_shift), strict=True))
    return *gradients, None, Chain.gradients(*added)


quantize_batch_norm_operator = Operator(
    "quantize_batch_norm",
    plain_quantize_batch_norm,
    fake=_fake,
    cpu=_on_cpu,
    serves=_serves,
    check=lambda x, weight, shift, eps, chain: chain.check(x),
    takes=Takes(
        "quantize_batch_norm",
        x="real [rows, columns]",
        weight="x? [columns]",
        shift="x? [columns]",
        eps="free",
        **CHAIN | OF_MATRIX,
    ),
    setup=_setup,
    backward=_backward,
)


def quantize_batch_norm(
    x: Tensor, weight: Tensor | None, shift: Tensor | None, eps: float, chain: Chain
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalizes the columns of a batch and passes its rows through a chain.

    Args:
        x: Floating `[rows, columns]`, at least one row.
        weight, shift: `[columns]`, what the normalized columns are multiplied with and what is added; or None.
        eps: Added to the variance.
        chain: As for :func:`dqconvert.kernels.quantize_chain`.

    Returns:
        The result `[rows, columns]`; the new ends of the ranges, float32 `[len(ranges)]`; the mean and the variance of
        each column, `[columns]`, the latter that of the batch, not corrected. Gradients reach `x`, `weight`, `shift`,
        `bias`, `other` and `alpha`, from the first result alone.

    Source: Ioffe and Szegedy, *Batch Normalization*, ICML 2015, algorithm 1.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> y, _, mean, var = quantize_batch_norm(x, None, None, 0.0, Chain.of())
        >>> y.tolist(), mean.tolist(), var.tolist()
        ([[-1.0, -1.0], [1.0, 1.0]], [2.0, 2.0], [1.0, 4.0])
    """
    y, new, _, mean, var = quantize_batch_norm_operator(x, weight, shift, eps, chain)
    return y, new, mean, var

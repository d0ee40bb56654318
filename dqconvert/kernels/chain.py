"""What happens to the rows of a value between two heavy operations, in as few passes over them as can be.

A chain is, each part but one grid being optional:

    x -> grid 0 -> + bias | + alpha * other -> grid 1 -> ReLU -> grid 2

where a grid is a quantizer: it observes its range, then rounds the rows that are not protected. On the CPU a row goes
through the chain while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from dqconvert.kernels._grid import Scheme
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import CHAIN, Chain
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.fake_quantize import plain_fake_quantize, scheme_qparams
from dqconvert.kernels.minmax import plain_minmax_pair
from dqconvert.kernels.of_ranks import pair_of_ranks
from dqconvert.kernels.percentile import plain_percentile_pair

SUM, X = 1, 2
"""Bits of `passes`: whether the gradient of the result reaches the sum, and `x`."""


def plain_observe(
    values: Tensor, lo: Tensor, hi: Tensor, scheme: Scheme, protected: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Defines how a per-tensor range follows the values it sees: the new range."""
    if not scheme.observe:
        return lo.clone(), hi.clone()
    keep = None if protected is None else ~protected
    if scheme.ranks is not None:
        batch_lo, batch_hi = pair_of_ranks(values, scheme.p, scheme.ranks, keep=keep)
    elif scheme.p > 0:
        batch_lo, batch_hi = plain_percentile_pair(values, scheme.p, keep, 0, None, None)
    else:
        batch_lo, batch_hi = plain_minmax_pair(values, keep, 0, None)
    if scheme.momentum < 0:
        return torch.minimum(lo, batch_lo), torch.maximum(hi, batch_hi)
    first, nothing_new = lo > hi, batch_lo > batch_hi

    def average(old: Tensor, batch: Tensor) -> Tensor:
        return torch.where(nothing_new, old, torch.where(first, batch, old + scheme.momentum * (batch - old)))

    return average(lo, batch_lo), average(hi, batch_hi)


def plain_quantize_chain(x: Tensor, chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to.

    Returns:
        The result; the new ends of the ranges, shaped like them; and, uint8, shaped like `x`, which gradients
        pass: bit 0, to the sum; bit 1, to `x` (`[0]` if the steps are not masked).
    """
    steps, (bias, other, alpha, protected, groups, ranges, *_) = chain.steps, chain
    new = list(ranges.unbind())
    to_sum = torch.ones_like(x, dtype=torch.bool)
    to_x = to_sum

    def quantize(values: Tensor, place: int) -> tuple[Tensor, Tensor | bool]:
        scheme = steps.schemes[place]
        if scheme is None:
            return values, False
        i = sum(before is not None for before in steps.schemes[:place])
        lo, hi = plain_observe(values, ranges[2 * i], ranges[2 * i + 1], scheme, protected)
        new[2 * i], new[2 * i + 1] = lo, hi
        grids = of_rows(scheme_qparams(scheme, lo, hi), groups)
        rounded, clipped = round_rows(values, grids, scheme, protected)
        return rounded, clipped & scheme.clip

    value, clipped = quantize(x, 0)
    to_x = to_x & ~torch.as_tensor(clipped)
    if bias is not None:
        value = value + bias
    if other is not None:
        value = value + (other if alpha is None else alpha * other)
    value, clipped = quantize(value, 1)
    to_sum = to_sum & ~torch.as_tensor(clipped)
    if steps.relu:
        to_sum = to_sum & ~(value <= 0)
        value = value.relu()
    value, clipped = quantize(value, 2)
    to_sum = to_sum & ~torch.as_tensor(clipped)
    passes = to_sum * SUM + (to_sum & to_x) * X if steps.masked else x.new_empty(0)
    ends = torch.stack(new).float() if new else ranges.clone()
    return value.to(x.dtype).contiguous().clone(), ends, passes.to(torch.uint8)


def round_rows(
    values: Tensor, grid: tuple[Tensor, Tensor, int | None], scheme: Scheme, protected: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the values on a grid of :func:`of_rows`, and which were clipped."""
    scale, zero_point, dim = grid
    return plain_fake_quantize(values, scale, zero_point, scheme.quant_min, scheme.quant_max, protected, 0, dim)


def of_rows(
    grid: tuple[Tensor, Tensor], groups: Tensor | None, index: Tensor | None = None
) -> tuple[Tensor, Tensor, int | None]:
    """Returns a grid, and the dimension that it differs along: the rows', if each has that of its group.

    Args:
        grid: Scale and zero point, `[]`, or `[groups]` if rows have groups.
        groups: uint8 `[rows]`, or None.
        index: int64, which of these rows; None: all.
    """
    if groups is None:
        return *grid, None
    rows = groups.long() if index is None else groups.long()[index]
    return grid[0][rows], grid[1][rows], 0


def fake_results(x: Tensor, shape: Sequence[int], chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the fake results of operators that end in a chain."""
    passes = x.new_empty(shape if chain.steps.masked else (0,), dtype=torch.uint8)
    return x.new_empty(shape), torch.empty_like(chain.ranges), passes


def plain_quantize_chain_grad(
    grad: Tensor, passes: Tensor, other: Tensor | None, alpha: Tensor | None, apart: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of the sum, of `x`, of the bias, of `other` and of `alpha`.

    Args:
        grad: Of the result.
        passes: From :func:`plain_quantize_chain`; `[0]`: everything passes.
        other, alpha: As given to the chain; `None`: none was, or its gradient is not wanted.
        apart: True if `x` and the sum differ in what passes.
    """
    every = all_pass(passes)
    at_sum = grad if every else _passing(grad, passes, SUM)
    at_x = _passing(grad, passes, X) if apart and not every else at_sum
    at_bias = at_sum.sum(tuple(range(at_sum.dim() - 1))) if at_sum.dim() > 1 else at_sum
    at_other = at_sum if alpha is None else at_sum * alpha
    at_alpha = grad.new_zeros(1) if other is None else (at_sum * other).sum().reshape(1)
    return at_sum, at_x, at_bias, at_other, at_alpha


def all_pass(passes: Tensor) -> bool:
    """True if all gradients pass, for there are no bits. Compiled code knows that, whatever the number of rows is."""
    return bool(guard_or_false(passes.numel() == 0))


def _passing(grad: Tensor, passes: Tensor, bit: int) -> Tensor:
    """Returns the gradient where the bits let it through, else zero, also for what is infinite or NaN: no product."""
    return torch.where((passes & bit) > 0, grad, 0).contiguous()


def _grad(
    grad: Tensor, passes: Tensor, other: Tensor | None, alpha: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of the five gradients that are wanted; `[0]` for the others. That of `x` is wanted only if it is apart."""
    found = plain_quantize_chain_grad(grad, passes, other, alpha, wanted[1])
    return tuple(g.clone() if w else grad.new_empty(0) for g, w in zip(found, wanted, strict=True))  # type: ignore[return-value]


def _serves_grad(grad: Tensor, passes: Tensor, other: Tensor | None, alpha: Tensor | None, *_: Any) -> bool:
    fits = _chain.serves(grad.shape, grad.dtype, (None, other, alpha))
    return grad.numel() > 0 and passes.numel() > 0 and fits


def _fake_grad(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    columns = grad.size(-1) if grad.dim() else 1
    shapes = (grad.shape, grad.shape, (columns,), grad.shape, (1,))
    return tuple(grad.new_empty(s if w else (0,)) for s, w in zip(shapes, rest[-1], strict=True))


quantize_chain_grad = Operator(
    "quantize_chain_grad",
    _grad,
    fake=_fake_grad,
    cpu=_chain.back,
    serves=_serves_grad,
    takes=Takes(
        "quantize_chain_grad",
        grad="real [...]",
        passes="uint8 [=grad]",
        other="grad? [=grad]",
        alpha="grad? [] | [1]",
        wanted="free",
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    chain: Chain = inputs[1]
    ctx.apart = chain.steps.schemes[0] is not None
    # What `alpha` is multiplied with is needed for its own gradient alone.
    keep_other = chain.other if chain.alpha is not None and ctx.needs_input_grad[3] else None
    ctx.save_for_backward(output[2], chain.alpha, keep_other)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None
    passes, alpha, other = ctx.saved_tensors
    to_x, *added = chain_gradients(grad, passes, other, alpha, ctx.apart, ctx.needs_input_grad[:4])
    return to_x, Chain.gradients(*added)


def chain_gradients(
    grad: Tensor, passes: Tensor, other: Tensor | None, alpha: Tensor | None, apart: bool, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of `x`, of the bias, of `other` and of `alpha`, where they are needed."""
    for_x, for_bias, for_other, for_alpha = needed
    if all_pass(passes) or torch.is_grad_enabled():  # a gradient of a gradient goes through torch's own operators
        to_sum, to_x, to_bias, to_other, to_alpha = plain_quantize_chain_grad(grad, passes, other, alpha, apart)
    else:
        apart = apart and for_x
        scaled = for_other and alpha is not None
        wanted = [(for_x and not apart) or (for_other and not scaled), apart, for_bias, scaled, for_alpha]
        to_sum, to_x, to_bias, to_other, to_alpha = quantize_chain_grad(grad, passes, other, alpha, wanted)
        to_x = to_x if apart else to_sum
        to_other = to_other if scaled else to_sum
    return (
        to_x if for_x else None,
        to_bias if for_bias else None,
        to_other if for_other else None,
        None if alpha is None or not for_alpha else to_alpha.reshape(alpha.shape),
    )


quantize_chain_operator = Operator(
    "quantize_chain",
    plain_quantize_chain,
    fake=lambda x, chain: fake_results(x, x.shape, chain),
    cpu=lambda x, chain: _chain.quantize(_chain.StoredRows(x), chain),
    serves=lambda x, chain: _chain.serves(x.shape, x.dtype, chain.added),
    check=lambda x, chain: chain.check(x),
    takes=Takes("quantize_chain", x="real [rows, ...]", **CHAIN),
    setup=_setup,
    backward=_backward,
)


def quantize_chain(x: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """Passes rows through a chain of sums, grids and a ReLU.

    Args:
        x: Floating, at least one dimension; rows are its first one.
        chain: The chain, see :meth:`Chain.of`.

    Returns:
        The result, shaped like `x` and contiguous, and the new ends of the ranges, shaped like them. A range is
        updated before its grid rounds. Gradients reach `x`, `bias`, `other` and `alpha`; those of clipped values are
        zero in grids whose scheme says `clip`.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, and its official implementation.

    Example:
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> x = torch.tensor([[-3.0, 4.4], [0.6, 12.0]])
        >>> y, ends = quantize_chain(x, Chain.of((None, scheme, None), never, relu=True))
        >>> y.tolist(), ends.tolist()
        ([[0.0, 4.0], [1.0, 12.0]], [-3.0, 12.0])
    """
    y, new, _ = quantize_chain_operator(x, chain)
    return y, new

"""A linear layer, a grid before it and a chain behind it whose ranges are learned.

The way back wants the rows of the product once more: they are kept, as to make them again takes several times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import CHAIN, OF_MATRIX, RANGED, Chain, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import learned_linear as _loops
from dqconvert.kernels.learned import (
    fake_of_added,
    learned_chain,
    of_added,
    plain_grid_back,
    plain_learned_chain,
    plain_learned_chain_grad,
)
from dqconvert.kernels.linear import Product, linear
from dqconvert.kernels.linear_grad import is_large, serves

_ENTRY = RANGED | {"range_": "float32? [2] | [2, groups]"}


def plain_learned_linear(
    x: Tensor, weight: Tensor, offset: Tensor | None, entry: Ranged | None, chain: Chain
) -> tuple[Tensor, Tensor]:
    """Defines the values, :func:`dqconvert.kernels.learned.plain_learned_chain` of the product; and the product."""
    product = torch.nn.functional.linear(_entered(x, entry, chain), weight, offset)
    return plain_learned_chain(product, chain), product


def _entered(x: Tensor, entry: Ranged | None, chain: Chain) -> Tensor:
    """Returns the rows behind the entry."""
    return x if entry is None else plain_learned_chain(x, entry.chain(chain.protected, chain.groups))


def plain_learned_linear_grad(
    grad: Tensor,
    product: Tensor | None,
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    entry: Ranged | None,
    chain: Chain,
    for_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of `x` (`[0, 0]` unless `for_x`), the weight, `offset`, the entry's range (`[0]` without
    them), the bias, `other`, `alpha` and the ranges.

    Without the product it is made of what has gradients, so that this gradient has one.
    """
    rows = _entered(x, entry, chain)
    product = torch.nn.functional.linear(rows, weight, offset) if product is None else product
    at, *others = plain_learned_chain_grad(grad, product, chain)
    to_x, to_range = at @ weight, torch.empty(0)
    if entry is not None:
        to_x, to_ends = plain_grid_back(to_x, x, entry.range_, entry.scheme, chain.protected, chain.groups)
        to_range = torch.stack(to_ends).float()
    to_offset = grad.new_empty(0) if offset is None else at.sum(0)
    to_x = to_x if for_x else x.new_empty((0, 0))
    return to_x, at.t() @ rows, to_offset, to_range, *others  # type: ignore[return-value]


def _fake_grad(
    grad: Tensor,
    product: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    entry: Ranged | None,
    chain: Chain,
    for_x: bool,
) -> tuple[Tensor, ...]:
    to_x = x.new_empty(x.shape if for_x else (0, 0))
    to_range = torch.empty(0) if entry is None else torch.empty_like(entry.range_)
    to_offset = grad.new_empty(0 if offset is None else offset.shape)
    return to_x, weight.new_empty(weight.shape), to_offset, to_range, *fake_of_added(grad, chain)


learned_linear_grad = Operator(
    "learned_linear_grad",
    plain_learned_linear_grad,
    fake=_fake_grad,
    cpu=_loops.back,
    serves=lambda grad, product, x, weight, offset, _, chain, __: (
        product is not None and grad.numel() > 0 and grad.dtype == x.dtype and serves(x, weight, offset, chain.added)
    ),
    takes=Takes(
        "learned_linear_grad",
        grad="real [rows, columns]",
        product="grad? [=grad]",
        x="grad [rows, depth]",
        weight="grad [columns, depth]",
        offset="grad? [columns]",
        **_ENTRY,
        **CHAIN | OF_MATRIX,
        for_x="free",
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    x, weight, offset, entry, (*tensors, ints, floats) = inputs
    ctx.scheme, ctx.steps = None if entry is None else entry[1:], (ints, floats)
    ctx.save_for_backward(output[1], x, weight, offset, None if entry is None else entry.range_, *tensors)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    product, x, weight, offset, range_, *tensors = ctx.saved_tensors
    entry, chain = None if range_ is None else Ranged(range_, *ctx.scheme), Chain(*tensors, *ctx.steps)
    # A gradient of a gradient goes through torch's own operators.
    back, product = (plain_learned_linear_grad, None) if torch.is_grad_enabled() else (learned_linear_grad, product)
    for_x = ctx.needs_input_grad[0]
    given = (product, x, weight, offset, entry, chain, for_x)
    to_x, to_weight, to_offset, to_range, *others = back(grad.contiguous(), *given)
    to_entry = None if entry is None else (to_range, None, None)
    to_offset = None if offset is None else to_offset
    return to_x if for_x else None, to_weight, to_offset, to_entry, of_added(chain, *others)


def _on_cpu(
    x: Tensor, weight: Tensor, offset: Tensor | None, entry: Ranged | None, chain: Chain
) -> tuple[Tensor, Tensor]:
    kept = empty((x.size(0), weight.size(0)), x.dtype)
    product = Product(x, weight, offset, None if entry is None else entry.grid(), chain, kept)
    return _chain.quantize(product, chain)[0], kept


learned_linear_operator = Operator(
    "learned_linear",
    plain_learned_linear,
    fake=lambda x, weight, *_: (x.new_empty((len(x), len(weight))), x.new_empty((len(x), len(weight)))),
    cpu=_on_cpu,
    serves=lambda x, weight, offset, _, chain: len(x) > 0 and serves(x, weight, offset, chain.added),
    check=lambda x, weight, offset, _, chain: chain.check(x),
    takes=Takes(
        "learned_linear",
        x="real [rows, depth]",
        weight="x [columns, depth]",
        offset="x? [columns]",
        **_ENTRY,
        **CHAIN | OF_MATRIX,
    ),
    setup=_setup,
    backward=_backward,
)


def learned_linear(
    x: Tensor, weight: Tensor, offset: Tensor | None, chain: Chain, entry: Ranged | None = None
) -> Tensor:
    """Passes the rows of a linear layer's result through a chain, all of whose ranges are learned.

    Args:
        x: Floating `[rows, in]`.
        weight, offset: `[out, in]` and `[out]`, or None; of the same type.
        chain: As for :func:`dqconvert.kernels.learned_chain`.
        entry: What `x` is rounded to first, but its protected rows; None: it passes as it is.

    Returns:
        `[rows, out]`. Gradients reach `x`, `weight`, `offset`, the entry's range and what the chain's reach.

    Example:
        >>> from dqconvert.kernels import Scheme
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0, momentum=-1, observe=False, clip=False)
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, 1.5]])
        >>> ends = (torch.tensor(-8.0), torch.tensor(7.0))
        >>> learned_linear(x, weight, None, Chain.of((None, scheme, None), ends, learned=True))
        tensor([[3.]])
    """
    if is_large(weight):  # then the library's products are faster
        x = x if entry is None else learned_chain(x, entry.chain(chain.protected, chain.groups))
        return learned_chain(linear(x, weight, offset), chain)
    return learned_linear_operator(x.contiguous(), weight.contiguous(), offset, entry, chain)[0]

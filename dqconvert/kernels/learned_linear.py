"""A linear layer, a grid before it and a chain behind it whose ranges are learned: the product is never in memory.

The way back wants the rows of the product once more, and makes them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def plain_learned_linear(x: Tensor, weight: Tensor, entry: Ranged | None, chain: Chain) -> Tensor:
    """Defines the values: :func:`dqconvert.kernels.learned.plain_learned_chain` of the product."""
    return plain_learned_chain(torch.nn.functional.linear(_entered(x, entry, chain), weight), chain)


def _entered(x: Tensor, entry: Ranged | None, chain: Chain) -> Tensor:
    """Returns the rows behind the entry."""
    return x if entry is None else plain_learned_chain(x, entry.chain(chain.protected, chain.groups))


def plain_learned_linear_grad(
    grad: Tensor, x: Tensor, weight: Tensor, entry: Ranged | None, chain: Chain, for_x: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of `x` (`[0, 0]` unless `for_x`), the weight, the entry's range (`[0]` without one), the
    bias, `other`, `alpha` and the ranges."""
    rows = _entered(x, entry, chain)
    at, *others = plain_learned_chain_grad(grad, torch.nn.functional.linear(rows, weight), chain)
    to_x, to_range = at @ weight, torch.empty(0)
    if entry is not None:
        to_x, to_ends = plain_grid_back(to_x, x, entry.range_, entry.scheme, chain.protected, chain.groups)
        to_range = torch.stack(to_ends).float()
    return to_x if for_x else x.new_empty((0, 0)), at.t() @ rows, to_range, *others  # type: ignore[return-value]


def _fake_grad(
    grad: Tensor, x: Tensor, weight: Tensor, entry: Ranged | None, chain: Chain, for_x: bool
) -> tuple[Tensor, ...]:
    to_x = x.new_empty(x.shape if for_x else (0, 0))
    to_range = torch.empty(0) if entry is None else torch.empty_like(entry.range_)
    return to_x, weight.new_empty(weight.shape), to_range, *fake_of_added(grad, chain)


learned_linear_grad = Operator(
    "learned_linear_grad",
    plain_learned_linear_grad,
    fake=_fake_grad,
    cpu=_loops.back,
    serves=lambda grad, x, weight, _, chain, __: (
        grad.numel() > 0 and grad.dtype == x.dtype and serves(x, weight, None, chain.added)
    ),
    takes=Takes(
        "learned_linear_grad",
        grad="real [rows, columns]",
        x="grad [rows, depth]",
        weight="grad [columns, depth]",
        **_ENTRY,
        **CHAIN | OF_MATRIX,
        for_x="free",
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, entry, (*tensors, ints, floats) = inputs
    ctx.scheme, ctx.steps = None if entry is None else entry[1:], (ints, floats)
    ctx.save_for_backward(x, weight, None if entry is None else entry.range_, *tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, range_, *tensors = ctx.saved_tensors
    entry, chain = None if range_ is None else Ranged(range_, *ctx.scheme), Chain(*tensors, *ctx.steps)
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_linear_grad if torch.is_grad_enabled() else learned_linear_grad
    for_x = ctx.needs_input_grad[0]
    to_x, to_weight, to_range, *others = back(grad.contiguous(), x, weight, entry, chain, for_x)
    to_entry = None if entry is None else (to_range, None, None)
    return to_x if for_x else None, to_weight, to_entry, of_added(chain, *others)


def _on_cpu(x: Tensor, weight: Tensor, entry: Ranged | None, chain: Chain) -> Tensor:
    return _chain.quantize(Product(x, weight, None, None if entry is None else entry.grid(), chain), chain)[0]


learned_linear_operator = Operator(
    "learned_linear",
    plain_learned_linear,
    fake=lambda x, weight, *_: x.new_empty((x.size(0), weight.size(0))),
    cpu=_on_cpu,
    serves=lambda x, weight, _, chain: len(x) > 0 and serves(x, weight, None, chain.added),
    check=lambda x, weight, _, chain: chain.check(x),
    takes=Takes("learned_linear", x="real [rows, depth]", weight="x [columns, depth]", **_ENTRY, **CHAIN | OF_MATRIX),
    setup=_setup,
    backward=_backward,
)


def learned_linear(x: Tensor, weight: Tensor, chain: Chain, entry: Ranged | None = None) -> Tensor:
    """Passes the rows of the product `x @ weight.t()` through a chain, all of whose ranges are learned.

    Args:
        x: Floating `[rows, in]`.
        weight: `[out, in]`, of the same type.
        chain: As for :func:`dqconvert.kernels.learned_chain`.
        entry: What `x` is rounded to first, but its protected rows; None: it passes as it is.

    Returns:
        `[rows, out]`. Gradients reach `x`, `weight`, the entry's range and what the chain's reach.

    Example:
        >>> from dqconvert.kernels import Scheme
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0, momentum=-1, observe=False, clip=False)
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, 1.5]])
        >>> ends = (torch.tensor(-8.0), torch.tensor(7.0))
        >>> learned_linear(x, weight, Chain.of((None, scheme, None), ends, learned=True))
        tensor([[3.]])
    """
    if is_large(weight):  # then the library's products are faster
        x = x if entry is None else learned_chain(x, entry.chain(chain.protected, chain.groups))
        return learned_chain(linear(x, weight), chain)
    y: Tensor = learned_linear_operator(x.contiguous(), weight.contiguous(), entry, chain)
    return y

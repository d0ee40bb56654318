"""A linear layer and a chain behind it whose ranges are learned: the product is never in memory.

The way back wants the rows of the product once more, and makes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme, Steps
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import ends_of
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import learned_linear as _loops
from dqconvert.kernels.learned import learned_chain, of_added, plain_learned_chain, plain_learned_chain_grad
from dqconvert.kernels.linear import Product, linear
from dqconvert.kernels.linear_grad import is_large, serves


def plain_learned_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> Tensor:
    """Defines the values: :func:`dqconvert.kernels.learned.plain_learned_chain` of the product."""
    product = torch.nn.functional.linear(x, weight)
    return plain_learned_chain(product, bias, other, alpha, protected, ranges, ints, floats)


def plain_learned_linear_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of `x` (`[0, 0]` unless `for_x`), the weight, the bias, `other`, `alpha` and the ranges."""
    product = torch.nn.functional.linear(x, weight)
    chain = (bias, other, alpha, protected, ranges, ints, floats)
    at, *rest = plain_learned_chain_grad(grad, product, *chain)
    to_x = at @ weight if for_x else x.new_empty((0, 0))
    return to_x, at.t() @ x, rest[0], rest[1], rest[2], rest[3]


def _fake_grad(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bias, other, alpha, _, ranges, *_, for_x = rest
    nothing = grad.new_empty(0)
    return (
        x.new_empty(x.shape if for_x else (0, 0)),
        weight.new_empty(weight.shape),
        nothing if bias is None else bias.new_empty(bias.shape),
        nothing if other is None else grad.new_empty(grad.shape),
        nothing if other is None or alpha is None else grad.new_empty(1),
        torch.empty_like(ranges),
    )


def _serves_grad(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> bool:
    bias, other, alpha = rest[:3]
    return grad.numel() > 0 and grad.dtype == x.dtype and serves(x, weight, None, bias, other, alpha)


learned_linear_grad = Operator(
    "learned_linear_grad",
    plain_learned_linear_grad,
    fake=_fake_grad,
    cpu=_loops.back,
    serves=_serves_grad,
    takes=Takes(
        "learned_linear_grad",
        grad="real [rows, columns]",
        x="grad [rows, depth]",
        weight="grad [columns, depth]",
        bias="grad? [columns]",
        other="grad? [=grad]",
        alpha="grad?",
        protected="bool? [rows]",
        ranges="float32",
        ints="free",
        floats="free",
        for_x="free",
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.ints, ctx.floats = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias, other, alpha, protected, ranges = ctx.saved_tensors
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_linear_grad if torch.is_grad_enabled() else learned_linear_grad
    chain = (bias, other, alpha, protected, ranges, ctx.ints, ctx.floats)
    for_x = ctx.needs_input_grad[0]
    to_x, to_weight, to_bias, to_other, to_alpha, to_ranges = back(grad.contiguous(), x, weight, *chain, for_x)
    return (
        to_x if for_x else None,
        to_weight,
        *of_added(bias, other, alpha, to_bias, to_other, to_alpha),
        None,
        to_ranges,
        None,
        None,
    )


def _on_cpu(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    *added, ranges, ints, floats = rest
    return _chain.quantize(Product(x, weight, None), _chain.Added(*added), ranges, ints, floats)[0]


learned_linear_operator = Operator(
    "learned_linear",
    plain_learned_linear,
    fake=lambda x, weight, *_: x.new_empty((x.size(0), weight.size(0))),
    cpu=_on_cpu,
    serves=lambda x, weight, bias, other, alpha, *_: len(x) > 0 and serves(x, weight, None, bias, other, alpha),
    takes=Takes(
        "learned_linear",
        x="real [rows, depth]",
        weight="x [columns, depth]",
        bias="x? [columns]",
        other="x? [rows, columns]",
        alpha="x?",
        protected="bool? [rows]",
        ranges="float32",
        ints="free",
        floats="free",
    ),
    setup=_setup,
    backward=_backward,
)


def learned_linear(
    x: Tensor,
    weight: Tensor,
    schemes: tuple[Scheme | None, Scheme | None, Scheme | None],
    ranges: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    alpha: Tensor | None = None,
    protected: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Passes the rows of the product `x @ weight.t()` through a chain, all of whose ranges are learned.

    Args:
        x: Floating `[rows, in]`.
        weight: `[out, in]`, of the same type.
        schemes, ranges, bias, other, alpha, protected, relu: As in :func:`dqconvert.kernels.learned_chain`.

    Returns:
        `[rows, out]`. Gradients reach `x`, `weight` and what the chain's reach.

    Example:
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0, momentum=-1, observe=False, clip=False)
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, 1.5]])
        >>> learned_linear(x, weight, (None, scheme, None), (torch.tensor(-8.0), torch.tensor(7.0)))
        tensor([[3.]])
    """
    if protected is not None:
        check_rows(protected, x, 0, name="protected")
    if is_large(weight):  # then the library's products are faster
        chain = {"bias": bias, "other": other, "alpha": alpha, "protected": protected, "relu": relu}
        return learned_chain(linear(x, weight), schemes, ranges, **chain)  # type: ignore[arg-type]
    packed = Steps(schemes, relu).packed()
    x, weight = x.contiguous(), weight.contiguous()
    y: Tensor = learned_linear_operator(x, weight, bias, other, alpha, protected, ends_of(ranges), *packed)
    return y

"""A linear layer, a grid before it and a chain behind it whose ranges are learned: the product is never in memory.

The way back wants the rows of the product once more, and makes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme, Steps, grid_of, joined, split
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import ends_of
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import learned_linear as _loops
from dqconvert.kernels.learned import (
    learned_chain,
    of_added,
    plain_grid_back,
    plain_learned_chain,
    plain_learned_chain_grad,
)
from dqconvert.kernels.linear import Product, linear
from dqconvert.kernels.linear_grad import is_large, serves


def plain_learned_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    groups: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> Tensor:
    """Defines the values: :func:`dqconvert.kernels.learned.plain_learned_chain` of the product.

    Ranges, `ints` and `floats` begin with those of the entry, see :func:`dqconvert.kernels.linear_grad.split`.
    """
    rows, behind, steps = _entered(x, protected, groups, ranges, ints, floats)
    product = torch.nn.functional.linear(rows, weight)
    return plain_learned_chain(product, bias, other, alpha, protected, groups, behind, *steps)


def _entered(
    x: Tensor,
    protected: Tensor | None,
    groups: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, tuple[Sequence[int], Sequence[float]]]:
    """Returns the rows behind the entry, and the ranges and numbers of the chain."""
    entry, steps = split(ints, floats)
    if entry is None:
        return x, ranges, steps
    alone = Steps((None, entry, None)).packed()
    return plain_learned_chain(x, None, None, None, protected, groups, ranges[:2], *alone), ranges[2:], steps


def plain_learned_linear_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    groups: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of `x` (`[0, 0]` unless `for_x`), the weight, the bias, `other`, `alpha` and the ranges."""
    rows, behind, steps = _entered(x, protected, groups, ranges, ints, floats)
    product = torch.nn.functional.linear(rows, weight)
    at, *added, to_ranges = plain_learned_chain_grad(
        grad, product, bias, other, alpha, protected, groups, behind, *steps
    )
    to_x, (entry, _) = at @ weight, split(ints, floats)
    if entry is not None:
        to_x, to_entry = plain_grid_back(to_x, x, ranges[:2], entry, protected, groups)
        to_ranges = torch.cat([torch.stack(to_entry).float(), to_ranges])
    return to_x if for_x else x.new_empty((0, 0)), at.t() @ rows, added[0], added[1], added[2], to_ranges


def _fake_grad(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bias, other, alpha, _, _, ranges, *_, for_x = rest
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
        groups="uint8? [rows]",
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
    x, weight, bias, other, alpha, protected, groups, ranges = ctx.saved_tensors
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_linear_grad if torch.is_grad_enabled() else learned_linear_grad
    chain = (bias, other, alpha, protected, groups, ranges, ctx.ints, ctx.floats)
    for_x = ctx.needs_input_grad[0]
    to_x, to_weight, to_bias, to_other, to_alpha, to_ranges = back(grad.contiguous(), x, weight, *chain, for_x)
    return (
        to_x if for_x else None,
        to_weight,
        *of_added(bias, other, alpha, to_bias, to_other, to_alpha),
        None,
        None,
        to_ranges,
        None,
        None,
    )


def _on_cpu(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    *added, ranges, ints, floats = rest
    entry, steps = split(ints, floats)
    grid = None if entry is None else grid_of(entry, *ranges[:2].tolist())
    product = Product(x, weight, None, grid, *added[3:])
    return _chain.quantize(product, _chain.Added(*added), ranges if grid is None else ranges[2:], *steps)[0]


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
        groups="uint8? [rows]",
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
    groups: Tensor | None = None,
    entry: Scheme | None = None,
) -> Tensor:
    """Passes the rows of the product `x @ weight.t()` through a chain, all of whose ranges are learned.

    Args:
        x: Floating `[rows, in]`.
        weight: `[out, in]`, of the same type.
        schemes, ranges, bias, other, alpha, protected, relu, groups: As in :func:`dqconvert.kernels.learned_chain`.
        entry: The grid that `x` is rounded to first; its range comes first in `ranges`.

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
        if entry is not None:
            x = learned_chain(x, (None, entry, None), ranges[:2], protected=protected, groups=groups)
            ranges = ranges[2:]
        chain = {"bias": bias, "other": other, "alpha": alpha, "protected": protected, "relu": relu, "groups": groups}
        return learned_chain(linear(x, weight), schemes, ranges, **chain)  # type: ignore[arg-type]
    packed = joined(entry, *Steps(schemes, relu).packed())
    args = (x.contiguous(), weight.contiguous(), bias, other, alpha, protected, groups, ends_of(ranges))
    y: Tensor = learned_linear_operator(*args, *packed)
    return y

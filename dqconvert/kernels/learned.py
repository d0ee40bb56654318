"""Chains of grids whose ranges are learned: the values are those of :mod:`dqconvert.kernels.chain`, and there is a
gradient of the ends of the ranges, too.

The gradient is that of Esser et al., *Learned Step Size Quantization*, ICLR 2020, equations 1 to 3. With the code
before it is rounded, `v = x / scale + zero_point`: where `quant_min < v < quant_max`, the gradient of `x` passes, and
the value `(round(v) - zero_point) * scale` changes with the scale by `round(v) - v`; elsewhere the value is an end of
the range, and the gradient of `x` is zero. For the ends `lo` and `hi` that is, rounding being passed straight through,
`-+ (round(v) - v) / (quant_max - quant_min)` inside, and 1 for the end that a value is clipped to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme
from dqconvert.kernels._layout import along, check_rows, wide_dtype
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import CHAIN, Chain
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import of_rows, plain_quantize_chain
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import learned as _loops
from dqconvert.kernels.fake_quantize import plain_fake_quantize, qparams


def plain_learned_grad(
    grad: Tensor,
    x: Tensor,
    lo: Tensor,
    hi: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None,
    row_dim: int,
    channel_dim: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines the gradients of `x`, `lo` and `hi`, by that of the fake-quantized values, for one grid.

    The arguments are those of :func:`dqconvert.kernels.fake_quantize`; the grid is the affine one of the range. Rows
    that are protected give no gradient to the ends.
    """
    dtype = wide_dtype(x.dtype)
    scale, zero_point = (t.to(dtype) for t in qparams(lo, hi, quant_min, quant_max, False))
    if channel_dim is not None:
        scale, zero_point = along(scale, x, channel_dim), along(zero_point, x, channel_dim)
    code = x.to(dtype) / scale + zero_point
    below, above = code <= quant_min, code >= quant_max
    inside = ~(below | above)
    if protected is not None:
        rounded = ~along(protected, x, row_dim)
        below, above, inside = below & rounded, above & rounded, inside & rounded
    wide = grad.to(dtype)
    over = [dim for dim in range(x.dim()) if channel_dim is None or dim != channel_dim % x.dim()]

    def total(values: Tensor, where: Tensor) -> Tensor:
        chosen = torch.where(where, values, 0)
        return chosen.sum(over, dtype=torch.float64) if over else chosen.double()

    step = total(wide * (torch.round(code) - code), inside) / (quant_max - quant_min)
    to_lo, to_hi = total(wide, below) - step, total(wide, above) + step
    return torch.where(below | above, 0, grad), to_lo.to(lo.dtype), to_hi.to(hi.dtype)


# -- one grid, of any layout -------------------------------------------------------------------------------------


def plain_learned(
    x: Tensor,
    lo: Tensor,
    hi: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None,
    row_dim: int,
    channel_dim: int | None,
) -> Tensor:
    """Defines the values: those of :func:`dqconvert.kernels.fake_quantize`."""
    grid = qparams(lo, hi, quant_min, quant_max, False)
    return plain_fake_quantize(x, *grid, quant_min, quant_max, protected, row_dim, channel_dim)[0]


def _setup_one(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, lo, hi, ctx.quant_min, ctx.quant_max, protected, ctx.row_dim, ctx.channel_dim = inputs
    ctx.save_for_backward(x, lo, hi, protected)


def _backward_one(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, lo, hi, protected = ctx.saved_tensors
    ends = (ctx.quant_min, ctx.quant_max)
    return *plain_learned_grad(grad, x, lo, hi, *ends, protected, ctx.row_dim, ctx.channel_dim), *(None,) * 5


learned_operator = Operator(
    "learned_fake_quantize", plain_learned, fake=plain_learned, setup=_setup_one, backward=_backward_one
)


def learned_fake_quantize(
    x: Tensor,
    lo: Tensor,
    hi: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None = None,
    row_dim: int = 0,
    channel_dim: int | None = None,
) -> Tensor:
    """Rounds `x` to the affine grid of a range whose ends are learned.

    Args:
        x: Floating tensor of any shape.
        lo, hi: float32 `[]`, or `[x.size(channel_dim)]` with `channel_dim`; `lo <= 0 <= hi`.
        quant_min, quant_max, protected, row_dim, channel_dim: As in :func:`dqconvert.kernels.fake_quantize`.

    Returns:
        The values of :func:`dqconvert.kernels.fake_quantize`. Gradients reach `x`, `lo` and `hi`.

    Source: Esser et al., *Learned Step Size Quantization*, ICLR 2020, equations 1 to 3; of the ends, Bhalgat et al.,
    *LSQ+*, CVPR workshops 2020, equations 5 and 6.

    Example:
        >>> x = torch.tensor([0.3, 9.0], requires_grad=True)
        >>> lo, hi = (torch.tensor(end, requires_grad=True) for end in (-8.0, 7.0))  # scale 1, zero point 0
        >>> y = learned_fake_quantize(x, lo, hi, -8, 7)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist(), round(hi.grad.item(), 4)  # 1 of the clipped value, (0 - 0.3) / 15 of the other
        ([0.0, 7.0], [1.0, 0.0], 0.98)
    """
    wide_dtype(x.dtype)
    if protected is not None:
        check_rows(protected, x, row_dim, name="protected")
    rows = x.size(0) if x.dim() > 0 else 0
    if channel_dim == 0 and protected is None and 0 < rows <= _GROUPS:  # the loops know it as one group for each row
        scheme = Scheme(quant_min, quant_max, False, 0.0, -1.0, False, False)
        groups = torch.arange(rows, dtype=torch.uint8, device=x.device)
        return learned_chain(x, Chain.of((None, scheme, None), (lo, hi), groups=groups, learned=True))
    return learned_operator(x, lo, hi, quant_min, quant_max, protected, row_dim, channel_dim)


_GROUPS = 256
"""How many groups there can be."""


# -- chains of rows ----------------------------------------------------------------------------------------------


def plain_learned_chain(x: Tensor, chain: Chain) -> Tensor:
    """Defines the values: those of :func:`dqconvert.kernels.chain.plain_quantize_chain`."""
    return plain_quantize_chain(x, chain)[0]


def plain_learned_chain_grad(grad: Tensor, x: Tensor, chain: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of `x`, the bias, `other` (`[0]` where there is none), `alpha` and the ranges."""
    steps, (bias, other, alpha, protected, groups, ranges, *_) = chain.steps, chain
    pairs = ranges.view(-1, 2, *ranges.shape[1:]).unbind()
    ends = dict(zip([place for place in range(3) if steps.schemes[place]], pairs, strict=True))
    to_ends: dict[int, Sequence[Tensor]] = {}

    def forward(values: Tensor, place: int) -> Tensor:
        scheme = steps.schemes[place]
        if scheme is None:
            return values
        grid = of_rows(ends[place].unbind(), groups)  # type: ignore[arg-type]
        return plain_learned(values, *grid[:2], scheme.quant_min, scheme.quant_max, protected, 0, grid[2])

    def back(grad: Tensor, values: Tensor, place: int) -> Tensor:
        scheme = steps.schemes[place]
        if scheme is None:
            return grad
        grad, to_ends[place] = plain_grid_back(grad, values, ends[place], scheme, protected, groups)
        return grad

    total = forward(x, 0)
    if bias is not None:
        total = total + bias
    if other is not None:
        total = total + (other if alpha is None else alpha * other)
    behind = forward(total, 1)
    at = back(grad, behind.relu() if steps.relu else behind, 2)
    if steps.relu:
        at = torch.where(behind <= 0, 0, at)
    at = back(at, total, 1)
    to_x = back(at, x, 0)
    nothing, found = grad.new_empty(0), [end for place in sorted(to_ends) for end in to_ends[place]]
    return (
        to_x.clone(),
        nothing if bias is None else at.sum(tuple(range(at.dim() - 1))),
        nothing if other is None else at.clone() if alpha is None else at * alpha,
        nothing if other is None or alpha is None else (at * other).sum().reshape(1),
        torch.stack(found).float() if found else ranges.clone(),
    )


def plain_grid_back(
    grad: Tensor, x: Tensor, ends: Tensor, scheme: Scheme, protected: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Defines the gradients of rows on the way into a grid, and of the ends of its range, `[]` or `[groups]` each."""
    lo, hi, dim = of_rows((ends[0], ends[1]), groups)
    args = (lo, hi, scheme.quant_min, scheme.quant_max, protected, 0, dim)
    to_x, *to_ends = plain_learned_grad(grad, x, *args)
    if groups is not None:
        to_ends = [torch.zeros_like(ends[0]).index_add(0, groups.long(), end) for end in to_ends]
    return to_x, to_ends


def fake_of_added(grad: Tensor, chain: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns fakes of all gradients but that of `x`."""
    bias, other, alpha = chain.added
    nothing = grad.new_empty(0)
    return (
        nothing if bias is None else bias.new_empty(bias.shape),
        nothing if other is None else grad.new_empty(grad.shape),
        nothing if other is None or alpha is None else grad.new_empty(1),
        torch.empty_like(chain.ranges),
    )


learned_chain_grad = Operator(
    "learned_chain_grad",
    plain_learned_chain_grad,
    fake=lambda grad, x, chain: (torch.empty_like(x), *fake_of_added(grad, chain)),
    cpu=_loops.back,
    serves=lambda grad, x, chain: (
        grad.numel() > 0 and grad.dtype == x.dtype and _chain.serves(x.shape, x.dtype, chain.added)
    ),
    takes=Takes("learned_chain_grad", grad="real [rows, ...]", **{"x": "grad [=grad]"} | CHAIN),
)


def of_added(chain: Chain, to_bias: Tensor, to_other: Tensor, to_alpha: Tensor, to_ranges: Tensor) -> Any:
    """Returns the gradients of what a chain adds and of its ranges, `None` for what it does not add."""
    bias, other, alpha = chain.added
    return Chain.gradients(
        None if bias is None else to_bias,
        None if other is None else to_other,
        None if alpha is None else to_alpha.reshape(alpha.shape),
        to_ranges,
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, (*tensors, ints, floats) = inputs
    ctx.steps = ints, floats
    ctx.save_for_backward(x, *tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *tensors = ctx.saved_tensors
    chain = Chain(*tensors, *ctx.steps)
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_chain_grad if torch.is_grad_enabled() else learned_chain_grad
    to_x, *others = back(grad.contiguous(), x.contiguous(), chain)
    return to_x, of_added(chain, *others)


learned_chain_operator = Operator(
    "learned_chain",
    plain_learned_chain,
    fake=lambda x, chain: x.new_empty(x.shape),
    cpu=lambda x, chain: _chain.quantize(_chain.StoredRows(x), chain)[0],
    serves=lambda x, chain: _chain.serves(x.shape, x.dtype, chain.added),
    check=lambda x, chain: chain.check(x),
    takes=Takes("learned_chain", x="real [rows, ...]", **CHAIN),
    setup=_setup,
    backward=_backward,
)


def learned_chain(x: Tensor, chain: Chain) -> Tensor:
    """Passes rows through a chain of sums, grids and a ReLU, all of whose ranges are learned.

    Args:
        x: As for :func:`dqconvert.kernels.quantize_chain`.
        chain: Likewise; its schemes are affine and observe nothing.

    Returns:
        The values of that. Gradients reach `x`, `bias`, `other`, `alpha` and `ranges`.

    Source: see :func:`learned_fake_quantize`.

    Example:
        >>> from dqconvert.kernels import Scheme
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0, momentum=-1, observe=False, clip=False)
        >>> ends = (torch.tensor(-8.0), torch.tensor(7.0, requires_grad=True))
        >>> chain = Chain.of((None, scheme, None), ends, learned=True)
        >>> learned_chain(torch.tensor([[0.3], [9.0]]), chain).sum().backward()
        >>> round(ends[1].grad.item(), 4)
        0.98
    """
    return learned_chain_operator(x, chain)

"""A linear layer and what happens to its rows behind it, a few rows at a time: the product is never in memory.

    x -> entry -> linear -> grid 0 -> + bias | + alpha * other -> grid 1 -> ReLU -> grid 2

See :mod:`dqconvert.kernels.chain`; here even all of the chain may be left out. `entry` is a grid that the rows of `x`
are rounded to on the way in: they are rounded once more on the way back, so that a wide matrix of features is neither
copied nor kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid, Scheme, Steps, grid_of, joined, split
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import chain_gradients, ends_of, fake_results, masked, plain_quantize_chain
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import product_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, groups_of
from dqconvert.kernels.cpu.entry import Gate
from dqconvert.kernels.cpu.llvm.multiply import pack
from dqconvert.kernels.cpu.select import Rows
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import Caught, Chain
from dqconvert.kernels.linear_grad import (
    Entry,
    entered,
    is_large,
    let_in,
    matrix_of,
    ours,
    quantize_linear_grad,
    serves,
)


def plain_quantize_linear(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    groups: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to: the chain of the linear layer's result.

    The arguments are those of :func:`quantize_linear`; the last three, and what is returned, as in
    :func:`dqconvert.kernels.chain.plain_quantize_chain`, with the entry's scheme and range before the others.
    """
    entry, steps = split(ints, floats)
    if entry is None:
        y = torch.nn.functional.linear(x, weight, offset)
        return plain_quantize_chain(y, bias, other, alpha, protected, groups, ranges, *steps)
    alone = Steps((None, entry, None)).packed()
    rounded, range_, _ = plain_quantize_chain(x, None, None, None, protected, groups, ranges[:2], *alone)
    y = torch.nn.functional.linear(rounded, weight, offset)
    y, new, passes = plain_quantize_chain(y, bias, other, alpha, protected, groups, ranges[2:], *steps)
    return y, torch.cat([range_, new]), passes


class Product:
    """The rows of a product, made when they are wanted."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        entry: Grid | None = None,
        protected: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        self.shape, self.dtype = (*x.shape[:-1], weight.size(0)), x.dtype
        self._x = array(x).reshape(-1, x.size(-1))
        self._packed = pack(array(weight).T)
        self._offset = np.empty(0, self._x.dtype) if offset is None else array(offset)
        self._entry, self._skip = np.empty((0, 4), self._x.dtype), flags(protected)
        self._group = groups_of(groups)
        if entry is not None:
            _chain.observe(entry, Rows(self._x, self._skip if len(self._skip) else None))
            self._entry = entry.table(self._x.dtype.type)
        self._cuts = parts(len(self._x), len(self._x) * (weight.size(0) + weight.numel() // 16))

    @property
    def parts(self) -> int:
        return len(self._cuts)

    def go(self, y: NDArray[Any], chain: Chain, caught: Sequence[Caught]) -> None:
        args = (self._x, self._entry, self._skip, self._group, self._packed, self._offset, y, chain)
        run(lambda part, start, stop: loops.chain_products(*args, caught[part], start, stop), self._cuts)

    def holds(self) -> bool:
        return True

    def rows(self) -> NDArray[Any]:
        return _chain.rows_of(self)


def _on_cpu(x: Tensor, weight: Tensor, offset: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *added, ranges, ints, floats = rest
    entry, steps = split(ints, floats)
    grid = None if entry is None else grid_of(entry, *ranges[:2].tolist())
    if is_large(weight) or (entry is None and not ours(weight, *steps)):
        y = _by_library(x, weight, offset, grid, *added[3:])
        chain = Steps.unpacked(*steps)
        if not (entry or chain.grids or chain.relu or any(t is not None for t in added[:3])):
            return y, torch.empty_like(ranges), torch.empty(0, dtype=torch.uint8)
        product: _chain.Source = _chain.Memory(y)
    else:
        product = Product(x, weight, offset, grid, *added[3:])
    if grid is None:
        return _chain.quantize(product, _chain.Added(*added), ranges, *steps)
    y, new, passes = _chain.quantize(product, _chain.Added(*added), ranges[2:], *steps)
    ends = torch.tensor([grid.lo, grid.hi], dtype=torch.float32) if ranges.dim() == 1 else ranges[:2]
    return y, torch.cat([ends, new]), passes


def _by_library(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    grid: Grid | None,
    protected: Tensor | None,
    groups: Tensor | None,
) -> Tensor:
    """Returns torch's product; if there is a grid, it observes rows of `x`, and they are rounded first."""
    if grid is not None:
        skip = flags(protected)
        _chain.observe(grid, Rows(_chain.matrix(x), skip if len(skip) else None))
    y = empty((x.size(0), weight.size(0)), x.dtype)
    if grid is None:  # as it lies: of rows that lie otherwise the library's sums differ in the last bits
        return torch.mm(x, weight.t(), out=y) if offset is None else torch.addmm(offset, x, weight.t(), out=y)
    for first, last, rows in Gate(x, grid, protected, groups).chunks():
        to = y[first:last]
        torch.mm(rows, weight.t(), out=to) if offset is None else torch.addmm(offset, rows, weight.t(), out=to)
    return y


def _fake(x: Tensor, weight: Tensor, offset: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, ranges, ints, floats = rest
    _, steps = split(ints, floats)
    return fake_results(x, (*x.shape[:-1], weight.size(0)), ranges, *steps)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    x, weight, _, _, other, alpha, protected, groups, _, *ctx.numbers = inputs
    for_x, for_weight, _, _, _, for_alpha = ctx.needs_input_grad[:6]
    entry, steps = split(*ctx.numbers)
    ctx.apart = Steps.unpacked(*steps).schemes[0] is not None
    ctx.ours = entry is not None or ours(weight, *steps)
    keep_other = other if alpha is not None and for_alpha else None
    keep_weight = weight if for_x or (for_weight and ctx.ours) else None
    keep_x = x if for_weight or (for_x and entry is not None) else None
    range_ = None if entry is None else output[1][:2]
    which = (protected, groups) if entry else (None, None)
    ctx.save_for_backward(output[2], keep_x, keep_weight, alpha, keep_other, *which, range_)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 11
    passes, x, weight, alpha, other, *which = ctx.saved_tensors
    entry = Entry(*which, *ctx.numbers)
    for_x, for_weight, for_offset, for_bias, for_other, for_alpha = ctx.needs_input_grad[:6]
    if x is None or not ctx.ours or torch.is_grad_enabled():
        # Without `x` little is left to do; and a gradient of a gradient goes through torch's own operators.
        needed = (for_x or for_weight or for_offset, for_bias, for_other, for_alpha)
        back, *rest = chain_gradients(grad, passes, other, alpha, ctx.apart, needed)
        back = None if back is None else matrix_of(back)
        to_x = to_weight = to_offset = None
        if for_x and back is not None:
            to_x = (back @ weight).view(*grad.shape[:-1], weight.size(1))
            to_x = let_in(to_x, x, entry)
        if for_weight and back is not None:
            to_weight = back.t() @ matrix_of(entered(x, entry))
        if for_offset and back is not None:
            to_offset = back.sum(0)
        return to_x, to_weight, to_offset, *rest, *(None,) * 5
    wanted = [for_x, for_weight, for_offset, for_bias, for_other, for_alpha]
    found = quantize_linear_grad(grad, passes, x, weight, other, alpha, entry, ctx.apart, wanted)
    to_x, to_weight, to_offset, to_bias, to_other, to_alpha = (
        g if w else None for g, w in zip(found, wanted, strict=True)
    )
    to_alpha = None if to_alpha is None else to_alpha.reshape(alpha.shape)
    return to_x, to_weight, to_offset, to_bias, to_other, to_alpha, *(None,) * 5


quantize_linear_operator = Operator(
    "quantize_linear",
    plain_quantize_linear,
    fake=_fake,
    cpu=_on_cpu,
    serves=lambda x, weight, offset, bias, other, alpha, *_: serves(x, weight, offset, bias, other, alpha),
    takes=Takes(
        "quantize_linear",
        x="real [rows, depth]",
        weight="x [columns, depth]",
        offset="x? [columns]",
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


def quantize_linear(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
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
) -> tuple[Tensor, Tensor]:
    """Passes the rows of a linear layer's result through a chain, see :func:`dqconvert.kernels.quantize_chain`.

    Args:
        x: Floating `[..., in]`.
        weight: `[out, in]`.
        offset: `[out]`, the layer's own bias, or None.
        entry: The grid that `x` is rounded to first, but its protected rows; its range comes first in `ranges`, and in
            what is returned.
        schemes, ranges, bias, other, alpha, protected, relu, groups: As there, for the result `[..., out]`.

    Returns and raises what :func:`dqconvert.kernels.quantize_chain` does. Gradients reach `x`, `weight` and `offset`,
    too.

    Example:
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> x, weight = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.5, 0.2]]), torch.tensor([[3.0, 4.5]])
        >>> quantize_linear(x, weight, None, (None, scheme, None), never)
        (tensor([[12.],
                [-3.],
                [ 2.]]), tensor([-3., 12.]))
    """
    if protected is not None:
        check_rows(protected, x, 0, name="protected")
    if entry is None and not relu and not any(schemes):
        # As torch's own linear does: gradients of gradients of one call add up before they meet those of another.
        weight = weight.view_as(weight)
    packed = joined(entry, *masked(schemes, relu))
    args = (x, weight, offset, bias, other, alpha, protected, groups, ends_of(ranges))
    y, new, _ = quantize_linear_operator(*args, *packed)
    return y, new


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: the same values and gradients, in memory that is used again.

    Args:
        x: Floating `[..., in]`.
        weight: `[out, in]`.
        bias: `[out]`, all of one type.

    Returns:
        `[..., out]`.

    Example:
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
        >>> linear(x, weight)
        tensor([[11.]])
    """
    return quantize_linear(x, weight, bias, (None, None, None), ())[0]

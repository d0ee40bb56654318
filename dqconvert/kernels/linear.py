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
from dqconvert.kernels._grid import Grid
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import CHAIN, NO_CHAIN, OF_MATRIX, RANGED, Chain, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import chain_gradients, fake_results, plain_quantize_chain
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import product_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, groups_of
from dqconvert.kernels.cpu.entry import Gate
from dqconvert.kernels.cpu.llvm.multiply import pack
from dqconvert.kernels.cpu.select import Rows
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import Caught, ChainArrays
from dqconvert.kernels.linear_grad import (
    enter,
    is_large,
    let_in,
    matrix_of,
    ours,
    quantize_linear_grad,
    serves,
)


def plain_quantize_linear(
    x: Tensor, weight: Tensor, offset: Tensor | None, entry: Ranged | None, chain: Chain
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to: the chain of the linear layer's result.

    Returns:
        As :func:`dqconvert.kernels.chain.plain_quantize_chain`; and the new range of the entry, `[0]` without one.
    """
    rounded, range_ = enter(x, entry, chain.protected, chain.groups)
    return *plain_quantize_chain(torch.nn.functional.linear(rounded, weight, offset), chain), range_


_GREW: dict[tuple[Any, ...], bool] = {}
"""Of products of a kind, whether a range behind the latest grew, and its rows were wanted again: then those of the next
are kept. On new graphs ranges grow in every other step, and to make rows takes several times as long as to write them.
"""


class Product(_chain.Source):
    """The rows of a product, made when they are wanted; `kept`: where they are to stay, too.

    Attributes:
        again: Whether rows that had gone through the chain were wanted once more.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        entry: Grid | None = None,
        chain: Chain = NO_CHAIN,
        kept: Tensor | None = None,
    ) -> None:
        self._x = array(x).reshape(-1, x.size(-1))
        self._packed = pack(array(weight).T)
        self._offset = np.empty(0, self._x.dtype) if offset is None else array(offset)
        self._entry, self._skip = np.empty((0, 4), self._x.dtype), flags(chain.protected)
        self._group = groups_of(chain.groups)
        self._rows, self._gone, self.again = kept, False, False
        self._kept = np.empty((0, 0), self._x.dtype) if kept is None else array(kept)
        if entry is not None:
            _chain.observe(entry, Rows(self._x, self._skip if len(self._skip) else None))
            self._entry = entry.table(self._x.dtype.type)
        cuts = parts(len(self._x), len(self._x) * (weight.size(0) + weight.numel() // 16))
        super().__init__((*x.shape[:-1], weight.size(0)), x.dtype, cuts)

    def go(self, y: NDArray[Any], chain: ChainArrays, caught: Sequence[Caught]) -> None:
        made = (self._x, self._entry, self._skip, self._group, self._packed, self._offset, self._kept)
        run(lambda part, start, stop: loops.chain_products(*made, y, chain, caught[part], start, stop), self.cuts)
        self._gone = True

    def stored(self) -> _chain.StoredRows:
        self.again = self._gone
        return super().stored() if self._rows is None or not self._gone else _chain.StoredRows(self._rows)


def _on_cpu(
    x: Tensor, weight: Tensor, offset: Tensor | None, entry: Ranged | None, chain: Chain
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grid = None if entry is None else entry.grid()
    if is_large(weight) or (entry is None and not ours(weight, chain)):
        y = _by_library(x, weight, offset, grid, chain)
        if entry is None and not chain.acts:
            nothing = torch.empty(0)
            return y, torch.empty_like(chain.ranges), nothing.to(torch.uint8), nothing
        results = _chain.quantize(_chain.StoredRows(y), chain)
    else:
        kind = weight.shape, offset is None, chain.other is None
        kept = empty((x.size(0), weight.size(0)), x.dtype) if _GREW.get(kind) else None
        product = Product(x, weight, offset, grid, chain, kept)
        results = _chain.quantize(product, chain)
        _GREW[kind] = product.again
    return *results, torch.empty(0) if entry is None or grid is None else entry.of_grid(grid)


def _by_library(x: Tensor, weight: Tensor, offset: Tensor | None, grid: Grid | None, chain: Chain) -> Tensor:
    """Returns torch's product; if there is a grid, it observes rows of `x`, and they are rounded first."""
    y = empty((x.size(0), weight.size(0)), x.dtype)
    if grid is None:  # as it lies: of rows that lie otherwise the library's sums differ in the last bits
        return torch.mm(x, weight.t(), out=y) if offset is None else torch.addmm(offset, x, weight.t(), out=y)
    skip = flags(chain.protected)
    _chain.observe(grid, Rows(_chain.matrix(x), skip if len(skip) else None))
    for first, last, rows in Gate(x, grid, chain.protected, chain.groups).chunks():
        to = y[first:last]
        torch.mm(rows, weight.t(), out=to) if offset is None else torch.addmm(offset, rows, weight.t(), out=to)
    return y


def _fake(
    x: Tensor, weight: Tensor, offset: Tensor | None, entry: Ranged | None, chain: Chain
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    range_ = torch.empty(0) if entry is None else torch.empty_like(entry.range_)
    return *fake_results(x, (*x.shape[:-1], weight.size(0)), chain), range_


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    x, weight, _, entry, chain = inputs
    for_x, for_weight = ctx.needs_input_grad[:2]
    ctx.apart = chain.steps.schemes[0] is not None
    ctx.ours = entry is not None or ours(weight, chain)
    keep_other = chain.other if chain.alpha is not None and ctx.needs_input_grad[8] else None
    keep_weight = weight if for_x or (for_weight and ctx.ours) else None
    keep_x = x if for_weight or (for_x and entry is not None) else None
    which = (None, None, None) if entry is None else (output[3], chain.protected, chain.groups)
    ctx.scheme = None if entry is None else entry.frozen[1:]
    ctx.save_for_backward(output[2], keep_x, keep_weight, chain.alpha, keep_other, *which)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    passes, x, weight, alpha, other, range_, *which = ctx.saved_tensors
    entry = None if range_ is None else Ranged(range_, *ctx.scheme)
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 2, 6, 7, 8)]
    for_x, for_weight, for_offset, *for_added = wanted
    if x is None or not ctx.ours or torch.is_grad_enabled():
        # Without `x` little is left to do; and a gradient of a gradient goes through torch's own operators.
        needed = (for_x or for_weight or for_offset, *for_added)
        back, *added = chain_gradients(grad, passes, other, alpha, ctx.apart, needed)
        back = None if back is None else matrix_of(back)
        to_x = to_weight = to_offset = None
        if for_x and back is not None:
            to_x = (back @ weight).view(*grad.shape[:-1], weight.size(1))
            to_x = let_in(to_x, x, entry, *which)
        if for_weight and back is not None:
            to_weight = back.t() @ matrix_of(enter(x, entry, *which)[0])
        if for_offset and back is not None:
            to_offset = back.sum(0)
        return to_x, to_weight, to_offset, None, Chain.gradients(*added)
    found = quantize_linear_grad(grad, passes, x, weight, other, alpha, entry, *which, ctx.apart, wanted)
    to_x, to_weight, to_offset, *added = (g if w else None for g, w in zip(found, wanted, strict=True))
    if added[2] is not None:
        added[2] = added[2].reshape(alpha.shape)
    return to_x, to_weight, to_offset, None, Chain.gradients(*added)


quantize_linear_operator = Operator(
    "quantize_linear",
    plain_quantize_linear,
    fake=_fake,
    cpu=_on_cpu,
    serves=lambda x, weight, offset, entry, chain: serves(x, weight, offset, chain.added),
    check=lambda x, weight, offset, entry, chain: chain.check(x),
    takes=Takes(
        "quantize_linear",
        x="real [rows, depth]",
        weight="x [columns, depth]",
        offset="x? [columns]",
        **RANGED | {"range_": "float32? [2] | [2, groups]"},
        **CHAIN | OF_MATRIX,
    ),
    setup=_setup,
    backward=_backward,
)


def quantize_linear(
    x: Tensor, weight: Tensor, offset: Tensor | None, chain: Chain, entry: Ranged | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Passes the rows of a linear layer's result through a chain, see :func:`dqconvert.kernels.quantize_chain`.

    Args:
        x: Floating `[..., in]`.
        weight: `[out, in]`.
        offset: `[out]`, the layer's own bias, or None.
        chain: Of the result `[..., out]`.
        entry: What `x` is rounded to first, but its protected rows; None: it passes as it is.

    Returns and raises what :func:`dqconvert.kernels.quantize_chain` does; behind that comes the new range of the entry,
    `[0]` without one. Gradients reach `x`, `weight` and `offset`, too.

    Example:
        >>> from dqconvert.kernels import Scheme
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> x, weight = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.5, 0.2]]), torch.tensor([[3.0, 4.5]])
        >>> quantize_linear(x, weight, None, Chain.of((None, scheme, None), never))[:2]
        (tensor([[12.],
                [-3.],
                [ 2.]]), tensor([-3., 12.]))
    """
    if entry is None and not chain.acts:
        # As torch's own linear does: gradients of gradients of one call add up before they meet those of another.
        weight = weight.view_as(weight)
    y, ends, _, range_ = quantize_linear_operator(x, weight, offset, entry, chain)
    return y, ends, range_


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
    return quantize_linear(x, weight, bias, NO_CHAIN)[0]

"""A linear layer and what happens to its rows behind it, a few rows at a time: the product is never in memory.

    x -> linear -> grid 0 -> + bias | + alpha * other -> grid 1 -> ReLU -> grid 2

See :mod:`dqconvert.kernels.chain`; here even all of the chain may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels import _chain
from dqconvert.kernels import _product_loops as loops
from dqconvert.kernels._grid import Scheme, Steps
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._memory import empty
from dqconvert.kernels._multiply import MOST, pack
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._threads import parts, run
from dqconvert.kernels._tile import Caught, Chain
from dqconvert.kernels.chain import (
    chain_gradients,
    ends_of,
    fake_results,
    masked,
    plain_quantize_chain,
    plain_quantize_chain_grad,
)


def plain_quantize_linear(
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition that every implementation is held to: the chain of the linear layer's result.

    **Arguments**: those of :func:`quantize_linear`; the last three, and what is returned, as in
    :func:`dqconvert.kernels.chain.plain_quantize_chain`.
    """
    y = torch.nn.functional.linear(x, weight, offset)
    return plain_quantize_chain(y, bias, other, alpha, protected, ranges, ints, floats)


class Product:
    """The rows of a product, made when they are wanted."""

    def __init__(self, x: Tensor, weight: Tensor, offset: Tensor | None) -> None:
        self.shape, self.dtype = (*x.shape[:-1], weight.size(0)), x.dtype
        self._x = x.detach().contiguous().view(-1, x.size(-1)).numpy()
        self._packed = pack(weight.detach().numpy().T)
        self._offset = np.empty(0, self._x.dtype) if offset is None else offset.detach().contiguous().numpy()
        self._columns = weight.size(0)
        self._cuts = parts(len(self._x), len(self._x) * (weight.size(0) + weight.numel() // 16))

    @property
    def parts(self) -> int:
        return len(self._cuts)

    def go(self, y: NDArray[Any], chain: Chain, caught: Sequence[Caught]) -> None:
        args = (self._x, self._packed, self._offset, y, chain)
        run(lambda part, start, stop: loops.chain_products(*args, caught[part], start, stop), self._cuts)

    def holds(self) -> bool:
        return True

    def rows(self) -> NDArray[Any]:
        return _chain.rows_of(self)


def _on_cpu(x: Tensor, weight: Tensor, offset: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *added, ranges, ints, floats = rest
    if not _serves(x, weight, offset, *added[:3]):
        return plain_quantize_linear(x, weight, offset, *rest)
    if not _ours(weight, ints, floats):
        y = empty((x.size(0), weight.size(0)), x.dtype)
        torch.mm(x, weight.t(), out=y) if offset is None else torch.addmm(offset, x, weight.t(), out=y)
        steps = Steps.unpacked(ints, floats)
        if not (steps.grids or steps.relu or any(t is not None for t in added[:3])):
            return y, torch.empty_like(ranges), torch.empty(0, dtype=torch.uint8)
        return _chain.quantize(_chain.Memory(y), _chain.Added(*added), ranges, ints, floats)
    return _chain.quantize(Product(x, weight, offset), _chain.Added(*added), ranges, ints, floats)


def _ours(weight: Tensor, ints: Sequence[int], floats: Sequence[float]) -> bool:
    """Whether the product is made here: where nothing is rounded, it is torch's to the last bit."""
    return Steps.unpacked(ints, floats).grids > 0 and weight.numel() * weight.itemsize <= MOST


def _serves(x: Tensor, weight: Tensor, offset: Tensor | None, *added: Tensor | None) -> bool:
    """Whether the loops can do it: matrices in one type that they know."""
    alike = all(t is None or t.dtype == x.dtype for t in (weight, offset, *added))
    bias, other, _ = added
    fits = other is None or other.shape == (x.size(0), weight.size(0))
    return alike and _chain.has_loops(x.dtype) and x.dim() == 2 and fits and (bias is None or bias.dim() == 1)


def _fake(x: Tensor, weight: Tensor, offset: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, ranges, ints, floats = rest
    return fake_results(x, (*x.shape[:-1], weight.size(0)), ranges, ints, floats)


def plain_quantize_linear_grad(
    grad: Tensor,
    passes: Tensor,
    x: Tensor,
    weight: Tensor,
    other: Tensor | None,
    alpha: Tensor | None,
    apart: bool,
) -> tuple[Tensor, ...]:
    """The definition of the gradients of `x`, `weight`, `offset`, the bias, `other` and `alpha`.

    **Arguments**: as in :func:`dqconvert.kernels.chain.plain_quantize_chain_grad`.
    """
    _, at_product, *rest = plain_quantize_chain_grad(grad, passes, other, alpha, apart)
    rows = _rows(at_product)
    to_weight = rows.t() @ _rows(x)
    return at_product @ weight, to_weight, rows.sum(0), *rest


def _rows(t: Tensor) -> Tensor:
    """As a matrix, whatever the dimensions before the last one are."""
    return t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


def _grad(
    grad: Tensor,
    passes: Tensor,
    x: Tensor,
    weight: Tensor,
    other: Tensor | None,
    alpha: Tensor | None,
    apart: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of the six gradients that are wanted; `[0]` for the others."""
    found = plain_quantize_linear_grad(grad, passes, x, weight, other, alpha, apart)
    return tuple(g.clone() if w else grad.new_empty(0) for g, w in zip(found, wanted, strict=True))  # type: ignore[return-value]


def _grad_on_cpu(
    grad: Tensor,
    passes: Tensor,
    x: Tensor,
    weight: Tensor,
    other: Tensor | None,
    alpha: Tensor | None,
    apart: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    large = weight.numel() * weight.itemsize > MOST
    if large or not _serves(x, weight, None, None, None, None) or grad.dtype != x.dtype:
        return _grad(grad, passes, x, weight, other, alpha, apart, wanted)
    rows, columns, depth = x.size(0), weight.size(0), weight.size(1)
    to_x, to_other = (
        empty(shape if w else (0, 0), x.dtype) for shape, w in ((x.shape, wanted[0]), (grad.shape, wanted[4]))
    )
    cuts = parts(rows, rows * (columns + weight.numel() // 8))
    wide = loops.padded(depth, x.itemsize)
    to_weight = torch.zeros((len(cuts), columns, wide) if wanted[1] else (len(cuts), 0, 0), dtype=x.dtype)
    sums = torch.zeros((len(cuts), 2, columns), dtype=x.dtype)
    nothing = to_weight.new_empty(0).numpy()
    packed = pack(weight.detach().numpy()) if wanted[0] else nothing
    bits = passes.reshape(-1, columns).numpy()
    partner = matrix_or_nothing(other if wanted[5] else None, x)
    factor = packed.dtype.type(1 if alpha is None else float(alpha))
    args = (_chain.matrix(grad), bits, _chain.matrix(x), packed, apart, factor, partner, to_x.numpy())

    def task(part: int, start: int, stop: int) -> float:
        offset, bias = (sums[part, i].numpy() if w else nothing for i, w in ((0, wanted[2]), (1, wanted[3])))
        total: float = loops.products_back(*args, to_weight[part].numpy(), offset, bias, to_other.numpy(), start, stop)
        return total

    dots = run(task, cuts)
    found = (
        to_x,
        to_weight.sum(0)[:, :depth].contiguous() if wanted[1] else to_weight,
        sums[:, 0].sum(0),
        sums[:, 1].sum(0),
        to_other,
        torch.tensor([sum(dots)], dtype=x.dtype),
    )
    return tuple(g if w else x.new_empty(0) for g, w in zip(found, wanted, strict=True))  # type: ignore[return-value]


def matrix_or_nothing(t: Tensor | None, like: Tensor) -> NDArray[Any]:
    return like.new_empty((0, 0)).numpy() if t is None else _chain.matrix(t)


def _fake_grad(grad: Tensor, passes: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    columns = (weight.size(0),)
    shapes = (x.shape, weight.shape, columns, columns, grad.shape, (1,))
    return tuple(grad.new_empty(s if w else (0,)) for s, w in zip(shapes, rest[-1], strict=True))


quantize_linear_grad = Operator("quantize_linear_grad", _grad, fake=_fake_grad, cpu=_grad_on_cpu)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    x, weight, _, _, other, alpha, _, _, ints, floats = inputs
    for_x, for_weight, _, _, _, for_alpha = ctx.needs_input_grad[:6]
    ctx.apart = Steps.unpacked(ints, floats).schemes[0] is not None
    ctx.ours = _ours(weight, ints, floats)
    keep_other = other if alpha is not None and for_alpha else None
    ctx.save_for_backward(
        output[2], x if for_weight else None, weight if for_x or (for_weight and ctx.ours) else None, alpha, keep_other
    )


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    passes, x, weight, alpha, other = ctx.saved_tensors
    for_x, for_weight, for_offset, for_bias, for_other, for_alpha = ctx.needs_input_grad[:6]
    if x is None or not ctx.ours or torch.is_grad_enabled():
        # Without `x` little is left to do; and a gradient of a gradient goes through torch's own operators.
        needed = (for_x or for_weight or for_offset, for_bias, for_other, for_alpha)
        back, *rest = chain_gradients(grad, passes, other, alpha, ctx.apart, needed)
        rows = None if back is None else _rows(back)
        to_x = back @ weight if for_x and back is not None else None
        to_weight = rows.t() @ _rows(x) if for_weight and rows is not None else None
        to_offset = rows.sum(0) if for_offset and rows is not None else None
        return to_x, to_weight, to_offset, *rest, *(None,) * 4
    wanted = [for_x, for_weight, for_offset, for_bias, for_other, for_alpha]
    found = quantize_linear_grad(grad, passes, x, weight, other, alpha, ctx.apart, wanted)
    to_x, to_weight, to_offset, to_bias, to_other, to_alpha = (
        g if w else None for g, w in zip(found, wanted, strict=True)
    )
    to_alpha = None if to_alpha is None else to_alpha.reshape(alpha.shape)
    return to_x, to_weight, to_offset, to_bias, to_other, to_alpha, *(None,) * 4


quantize_linear_operator = Operator(
    "quantize_linear", plain_quantize_linear, fake=_fake, cpu=_on_cpu, setup=_setup, backward=_backward
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
) -> tuple[Tensor, Tensor]:
    """Passes the rows of a linear layer's result through a chain, see :func:`dqconvert.kernels.quantize_chain`.

    **Arguments**

    - `x`: floating `[..., in]`; `weight`: `[out, in]`; `offset`: `[out]`, the layer's own bias, or None.
    - the others: as there, for the result `[..., out]`.

    **Returns** and **raises** what :func:`dqconvert.kernels.quantize_chain` does. Gradients reach `x`, `weight` and
    `offset`, too.

    ```python
    >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
    >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
    >>> x, weight = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.5, 0.2]]), torch.tensor([[3.0, 4.5]])
    >>> quantize_linear(x, weight, None, (None, scheme, None), never)
    (tensor([[12.],
            [-3.],
            [ 2.]]), tensor([-3., 12.]))

    ```
    """
    if protected is not None:
        check_rows(protected, x, 0, name="protected")
    packed = masked(schemes, relu)
    y, new, _ = quantize_linear_operator(x, weight, offset, bias, other, alpha, protected, ends_of(ranges), *packed)
    return y, new


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: the same values and gradients, in memory that is used again.

    **Arguments**

    - `x`: floating `[..., in]`; `weight`: `[out, in]`; `bias = None`: `[out]`, all of one type.

    **Returns** `[..., out]`.

    ```python
    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    >>> linear(x, weight)
    tensor([[11.]])

    ```
    """
    return quantize_linear(x, weight, bias, (None, None, None), ())[0]

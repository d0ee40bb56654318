"""The gradients of :mod:`dqconvert.kernels.linear`, and what both directions ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import RANGED, Chain, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import (
    chain_gradients,
    of_rows,
    plain_quantize_chain,
    plain_quantize_chain_grad,
    round_rows,
)
from dqconvert.kernels.cpu import product_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, groups_of, matrix
from dqconvert.kernels.cpu.chain import serves as rows_serve
from dqconvert.kernels.cpu.entry import Gate
from dqconvert.kernels.cpu.llvm.multiply import MOST, pack
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.fake_quantize import scheme_qparams


def enter(
    x: Tensor, entry: Ranged | None, protected: Tensor | None = None, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the rows that a product is made of, and the new range of its entry, `[0]` if there is none."""
    if entry is None:
        return x, torch.empty(0)
    rounded, range_, _ = plain_quantize_chain(x, entry.chain(protected, groups))
    return rounded, range_


def let_in(
    grad: Tensor, x: Tensor | None, entry: Ranged | None, protected: Tensor | None, groups: Tensor | None
) -> Tensor:
    """Returns the gradient of `x`, by that of the rows behind the entry: zero where it clipped, if its scheme clips."""
    if entry is None or x is None or not entry.scheme.clip:
        return grad
    grid = of_rows(scheme_qparams(entry.scheme, *entry.range_), groups)
    return torch.where(round_rows(x, grid, entry.scheme, protected)[1], 0, grad)


def ours(weight: Tensor, chain: Chain) -> bool:
    """True if the product is made here: where nothing is rounded, it is torch's to the last bit."""
    return chain.steps.grids > 0 and not is_large(weight)


def is_large(weight: Tensor) -> bool:
    """True if a weight leaves the second cache while the rows pass: then the library's products are faster."""
    return weight.numel() * weight.itemsize > MOST


def serves(x: Tensor, weight: Tensor, offset: Tensor | None, added: Sequence[Tensor | None]) -> bool:
    """True if the loops can do it: matrices in one type that they know."""
    if x.dim() != 2 or weight.dim() != 2 or any(t is not None and t.dtype != x.dtype for t in (weight, offset)):
        return False
    rows, columns = x.size(0), weight.size(0)
    fits = offset is None or offset.shape == (columns,)
    return fits and rows_serve((rows, columns), x.dtype, added)


def plain_quantize_linear_grad(
    grad: Tensor,
    passes: Tensor,
    x: Tensor,
    weight: Tensor,
    other: Tensor | None,
    alpha: Tensor | None,
    entry: Ranged | None,
    protected: Tensor | None,
    groups: Tensor | None,
    apart: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines the gradients of `x`, `weight`, `offset`, the bias, `other` and `alpha`.

    Arguments are as in :func:`dqconvert.kernels.chain.plain_quantize_chain_grad`. `entry`, `protected`, `groups`: how
    rows of `x` were rounded. `wanted`: which of the six, `[0]` for the others; each of the first three is as much work
    as the layer itself.
    """
    _, at_product, *rest = plain_quantize_chain_grad(grad, passes, other, alpha, apart)
    rows, to_x, to_weight = matrix_of(at_product), None, None
    if wanted[0]:
        to_x = let_in(at_product @ weight, x, entry, protected, groups)
    if wanted[1]:
        to_weight = rows.t() @ matrix_of(enter(x, entry, protected, groups)[0])
    found = (to_x, to_weight, rows.sum(0) if wanted[2] else None, *rest)
    return _those(wanted, [None if g is None else g.clone() for g in found], grad)


def matrix_of(t: Tensor) -> Tensor:
    """As a matrix, whatever the dimensions before the last one are."""
    return t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


def _those(
    wanted: Sequence[bool], found: Sequence[Tensor | None], like: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients that are wanted, and `[0]` for the others."""
    given = [g if w and g is not None else like.new_empty(0) for g, w in zip(found, wanted, strict=True)]
    return given[0], given[1], given[2], given[3], given[4], given[5]


def _grad_on_cpu(
    grad: Tensor,
    passes: Tensor,
    x: Tensor,
    weight: Tensor,
    other: Tensor | None,
    alpha: Tensor | None,
    entry: Ranged | None,
    protected: Tensor | None,
    groups: Tensor | None,
    apart: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grid = None if entry is None else entry.grid()
    if is_large(weight):
        gate = Gate(x, grid, protected, groups)
        return _those(wanted, _by_library(grad, passes, gate, weight, other, alpha, apart, wanted), x)
    rows, columns, depth = x.size(0), weight.size(0), weight.size(1)
    to_x, to_other = (
        empty(shape if w else (0, 0), x.dtype) for shape, w in ((x.shape, wanted[0]), (grad.shape, wanted[4]))
    )
    cuts = parts(rows, rows * (columns + weight.numel() // 8))
    wide = loops.padded(depth, x.itemsize)
    to_weight = torch.zeros((len(cuts), columns, wide) if wanted[1] else (len(cuts), 0, 0), dtype=x.dtype)
    sums = torch.zeros((len(cuts), 2, columns), dtype=x.dtype)
    nothing = array(to_weight.new_empty(0))
    packed = pack(array(weight)) if wanted[0] else nothing
    bits = array(passes).reshape(-1, columns)
    partner = matrix_or_nothing(other if wanted[5] else None, x)
    factor = packed.dtype.type(1 if alpha is None else float(alpha))
    entry_grid = nothing.reshape(0, 4) if grid is None else grid.table(nothing.dtype.type)
    clip = grid is not None and grid.scheme.clip
    through = (matrix(x), entry_grid, clip, flags(protected), groups_of(groups))
    args = (matrix(grad), bits, *through, packed, apart, factor, partner, array(to_x))

    def task(part: int, start: int, stop: int) -> float:
        offset, bias = (array(sums[part, i]) if w else nothing for i, w in ((0, wanted[2]), (1, wanted[3])))
        return loops.linear_back(*args, array(to_weight[part]), offset, bias, array(to_other), start, stop)

    dots = run(task, cuts)
    found = (
        to_x,
        to_weight.sum(0)[:, :depth].contiguous() if wanted[1] else to_weight,
        sums[:, 0].sum(0),
        sums[:, 1].sum(0),
        to_other,
        torch.tensor([sum(dots)], dtype=x.dtype),
    )
    return _those(wanted, found, x)


def _by_library(
    grad: Tensor,
    passes: Tensor,
    gate: Gate,
    weight: Tensor,
    other: Tensor | None,
    alpha: Tensor | None,
    apart: bool,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Returns the six gradients where the weight is too large for the loops: the products are torch's."""
    needed = (any(wanted[:3]), *wanted[3:])
    back, to_bias, to_other, to_alpha = chain_gradients(grad, passes, other, alpha, apart, needed)
    to_x = to_weight = to_offset = None
    if back is not None and wanted[0]:
        to_x = empty((back.size(0), weight.size(1)), back.dtype)
        torch.mm(back, weight, out=to_x)
        gate.stop(to_x)
    if back is not None and wanted[1]:
        to_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        for first, last, rows in gate.chunks():
            to_weight.addmm_(back[first:last].t(), rows)
    if back is not None and wanted[2]:
        to_offset = back.sum(0)
    # An operator returns nothing that it was given.
    return [to_x, to_weight, to_offset, to_bias, to_other.clone() if to_other is grad else to_other, to_alpha]


def matrix_or_nothing(t: Tensor | None, like: Tensor) -> NDArray[Any]:
    return array(like.new_empty((0, 0))) if t is None else matrix(t)


def _fake_grad(grad: Tensor, passes: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    columns = (weight.size(0),)
    shapes = (x.shape, weight.shape, columns, columns, grad.shape, (1,))
    return tuple(grad.new_empty(s if w else (0,)) for s, w in zip(shapes, rest[-1], strict=True))


def _serves_grad(
    grad: Tensor, passes: Tensor, x: Tensor, weight: Tensor, other: Tensor | None, alpha: Tensor | None, *_: Any
) -> bool:
    return weight.size(0) > 0 and grad.dtype == x.dtype and serves(x, weight, None, (None, other, alpha))


quantize_linear_grad = Operator(
    "quantize_linear_grad",
    plain_quantize_linear_grad,
    fake=_fake_grad,
    cpu=_grad_on_cpu,
    serves=_serves_grad,
    takes=Takes(
        "quantize_linear_grad",
        grad="real [rows, columns]",
        passes="uint8 [0] | [=grad]",
        x="grad [rows, depth]",
        weight="grad [columns, depth]",
        other="grad? [=grad]",
        alpha="grad?",
        **RANGED | {"range_": "float32? [2] | [2, groups]"},
        protected="bool? [rows]",
        groups="uint8? [rows]",
        apart="free",
        wanted="free",
    ),
)

"""Loops of :mod:`dqconvert.kernels.learned_linear`: products are made again on the way back, by a few rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.learned import Learned, tile_back
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.multiply import groups_of, multiply, pack
from dqconvert.kernels.cpu.product_loops import BACK, gap, multiply_back, padded, product_rows, product_tile
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import copy_values


def back(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.learned_linear.plain_learned_linear_grad`."""
    *chain_of, for_x = rest
    rows, (columns, depth) = matrix(x), weight.shape
    chain = Learned.of(rows.dtype.type, bias, other, alpha, *chain_of)
    cuts = parts(len(rows), len(rows) * (columns + weight.numel() // 8))
    to_x = empty(x.shape if for_x else (0, 0), x.dtype)
    to_other = empty(grad.shape if other is not None else (0, 0), x.dtype)
    to_bias = torch.zeros((len(cuts), 0 if bias is None else columns), dtype=x.dtype)
    to_weight = torch.zeros((len(cuts), columns, padded(depth, x.itemsize)), dtype=x.dtype)
    sums = np.zeros((len(cuts), 3, 3))
    wide, whole = pack(array(weight).T), pack(array(weight))
    args = (matrix(grad), rows, wide, whole, chain, array(to_x), array(to_other))

    def task(part: int, start: int, stop: int) -> float:
        own = (array(to_weight[part]), array(to_bias[part]), sums[part])
        total: float = products_back(*args, *own, start, stop)
        return total

    dots = run(task, cuts)
    asked = other is not None and alpha is not None
    return (
        to_x,
        to_weight.sum(0)[:, :depth].contiguous(),
        to_bias.sum(0),
        to_other if other is not None else x.new_empty(0),
        torch.tensor([sum(dots)] if asked else [], dtype=x.dtype),
        chain.to_ends(sums),
    )


@loop
def products_back(  # type: ignore[no-untyped-def]
    grad, x, wide, whole, chain, to_x, to_other, to_weight, to_bias, sums, start, stop
):
    """Computes the gradients of everything, of rows `start` to `stop`; what is not wanted is empty.

    `wide`, `whole`: the weight, packed for the product and for its gradient. Returns that of `alpha`.
    """
    columns, depth = grad.shape[1], x.shape[1]
    step = product_rows(max(columns, depth), BACK)
    wide_depth = padded(depth, x.itemsize)
    groups = groups_of(depth, x.itemsize)
    made = np.empty((step, columns), x.dtype)
    spare = np.empty(step * max(wide_depth, padded(columns, x.itemsize)), x.dtype)
    at = np.empty(step * columns, x.dtype)
    total, behind = np.empty_like(at), np.empty_like(at)
    apart_x, apart_grad = wide_depth + gap(wide_depth, x.itemsize), columns + gap(columns, x.itemsize)
    copied = apart_x != depth  # rows that are not in memory as they are needed
    rows_of_x = np.zeros((step if copied else 0, apart_x), x.dtype)
    spaced = np.empty(step * apart_grad if apart_grad != columns else 0, x.dtype)
    flat_x, flat_weight, flat_made = x.reshape(-1), to_weight.reshape(-1), made.reshape(-1)
    product = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = last - first
        product_tile(x[first:last], made[:rows], wide, spare)
        product += tile_back(flat_made, 0, grad, chain, at, total, behind, to_other, to_bias, sums, first, last)
        if to_x.size > 0:
            multiply_back(at, columns, rows, whole, groups, to_x, first, spare)
        if copied:
            for r in range(rows):
                copy_values(pointer(x, (first + r) * depth), pointer(rows_of_x, r * apart_x), depth)
        source = rows_of_x.reshape(-1) if copied else flat_x[first * depth :]
        if spaced.size > 0:
            for r in range(rows):
                copy_values(pointer(at, r * columns), pointer(spaced, r * apart_grad), columns)
        factors = spaced if spaced.size > 0 else at
        multiply(factors, 0, 1, apart_grad, columns, rows, source, apart_x, groups, flat_weight, 0, wide_depth, False)
    return product

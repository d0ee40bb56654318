"""Loops of :mod:`dqconvert.kernels.learned_linear`, on the way back: a few rows at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._steps import Chain, Ranged
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.learned import (
    chain_ends_back,
    ends_back,
    learned_arrays,
    room_for_sums,
    tile_back,
)
from dqconvert.kernels.cpu.llvm.learned_span import LANES, grid_back_span
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.multiply import multiply, pack, vectors_of
from dqconvert.kernels.cpu.product_loops import (
    BACK,
    gap,
    leave,
    multiply_back,
    padded,
    product_rows,
    round_rows,
)
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import add_values, copy_values, group_of


def back(
    grad: Tensor,
    product: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    entry: Ranged | None,
    given: Chain,
    for_x: bool,
) -> tuple[Tensor, ...]:
    """See :func:`dqconvert.kernels.learned_linear.plain_learned_linear_grad`."""
    rows, (columns, depth), (bias, other, alpha) = matrix(x), weight.shape, given.added
    dtype = rows.dtype.type
    chain = learned_arrays(given, rows)
    grids = np.empty((0, 4), dtype) if entry is None else entry.grid().table(dtype)
    cuts = parts(len(rows), len(rows) * (columns + weight.numel() // 8))
    to_x = empty(x.shape if for_x else (0, 0), x.dtype)
    to_other = empty(grad.shape if other is not None else (0, 0), x.dtype)
    to_offset, to_bias = (
        torch.zeros((len(cuts), 0 if added is None else columns), dtype=x.dtype) for added in (offset, bias)
    )
    to_weight = torch.zeros((len(cuts), columns, padded(depth, x.itemsize)), dtype=x.dtype)
    sums, at_entry = room_for_sums(chain, len(cuts)), np.zeros((len(cuts), len(grids), 3, LANES))
    args = (matrix(grad), matrix(product), rows, grids, pack(array(weight)), chain, array(to_x), array(to_other))

    def task(part: int, start: int, stop: int) -> float:
        found = (array(to_weight[part]), array(to_offset[part]), array(to_bias[part]), at_entry[part], sums[part])
        return learned_linear_back(*args, *found, start, stop)

    dots = run(task, cuts)
    asked = other is not None and alpha is not None
    to_range = torch.empty(0)
    if entry is not None:
        to_range = ends_back(at_entry.sum((0, -1))[:, None], grids[:, None], entry.range_)
    return (
        to_x,
        to_weight.sum(0)[:, :depth].contiguous(),
        to_offset.sum(0),
        to_range,
        to_bias.sum(0),
        to_other if other is not None else x.new_empty(0),
        torch.tensor([sum(dots)] if asked else [], dtype=x.dtype),
        chain_ends_back(chain, sums, given.ranges),
    )


@loop
def learned_linear_back(  # type: ignore[no-untyped-def]
    grad, made, x, entry, packed, chain, to_x, to_other, to_weight, to_offset, to_bias, at_entry, sums, start, stop
):
    """Computes the gradients of everything, of rows `start` to `stop`; what is not wanted is empty.

    `made`: the product. `entry`: the grids `[groups, 4]` that rows of `x` are rounded to, or empty; `at_entry`:
    `[groups, 3, LANES]`, what :func:`grid_back_span` adds up there. Returns the gradient of `alpha`.
    """
    columns, depth, skip, group = grad.shape[1], x.shape[1], chain.skip, chain.group
    step = product_rows(max(columns, depth), BACK)
    wide_depth = padded(depth, x.itemsize)
    groups = vectors_of(depth, x.itemsize)
    rounded, spare = np.empty((step if entry.size > 0 else 0, depth), x.dtype), np.empty(step * wide_depth, x.dtype)
    at = np.empty(step * columns, x.dtype)
    at_sum, biases = np.empty_like(at), np.empty_like(at)
    apart_x, apart_grad = wide_depth + gap(wide_depth, x.itemsize), columns + gap(columns, x.itemsize)
    copied = apart_x != depth  # rows that are not in memory as they are needed
    rows_of_x = np.zeros((step if copied else 0, apart_x), x.dtype)
    spaced = np.empty(step * apart_grad if apart_grad != columns else 0, x.dtype)
    flat_weight, flat_made = to_weight.reshape(-1), made.reshape(-1)
    product = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = last - first
        given = x[first:last]
        if entry.size > 0:
            round_rows(x, first, last, entry, skip, group, rounded)
            given = rounded[:rows]
        rest = (to_other, to_bias, sums, first, last)
        product += tile_back(flat_made, first * columns, grad, chain, at_sum, biases, at, 0, *rest)
        if to_offset.size > 0:
            for r in range(rows):
                add_values(pointer(at, r * columns), pointer(to_offset, 0), columns)
        if entry.size > 0:
            multiply(at, 0, columns, 1, rows, columns, packed, 0, groups, spare, 0, wide_depth, True)
            for r in range(rows):
                if not (skip.size > 0 and skip[first + r]):
                    own = group_of(group, first + r, entry.shape[0])
                    from_, to, found = pointer(x, (first + r) * depth), r * wide_depth, 3 * LANES * own
                    grid_back_span(from_, pointer(entry, 4 * own), pointer(spare, to), depth, pointer(at_entry, found))
            if to_x.size > 0:
                leave(spare, rows, wide_depth, to_x, first)
        elif to_x.size > 0:
            multiply_back(at, columns, rows, packed, groups, to_x, first, spare)
        if copied:
            for r in range(rows):
                copy_values(pointer(given, r * depth), pointer(rows_of_x, r * apart_x), depth)
        source = rows_of_x.reshape(-1) if copied else given.reshape(-1)
        if spaced.size > 0:
            for r in range(rows):
                copy_values(pointer(at, r * columns), pointer(spaced, r * apart_grad), columns)
        factors = spaced if spaced.size > 0 else at
        multiply(factors, 0, 1, apart_grad, columns, rows, source, apart_x, groups, flat_weight, 0, wide_depth, False)
    return product

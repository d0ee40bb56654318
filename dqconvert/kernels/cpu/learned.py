"""Loops of :mod:`dqconvert.kernels.learned`: a tile of rows goes through its chain once more, and its gradient back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._steps import Chain
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import arrays_of, grids_of, matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.learned_span import LANES, learned_span
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, room_before, stream
from dqconvert.kernels.cpu.narrow import is_narrow, narrow_back
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.cpu.tile import (
    ChainArrays,
    add_values,
    copy_values,
    dot,
    group_of,
    run_of,
    scale_values,
    tile_rows,
)


def learned_arrays(chain: Chain, rows: NDArray[Any]) -> ChainArrays:
    """Returns the chain that an operator is given, as the loops take it for such rows."""
    return arrays_of(chain, grids_of(chain), chain.steps.relu, rows, None, {})


def room_for_sums(chain: ChainArrays, parts: int) -> NDArray[np.float64]:
    """Returns where parts add up what :func:`learned_span` finds, for each group and grid."""
    return np.zeros((parts, len(chain.grids), 3, 3, LANES))


def chain_ends_back(chain: ChainArrays, sums: NDArray[np.float64], ranges: Tensor) -> Tensor:
    """Returns the gradients of the ranges of a chain, by what was added up in each part."""
    there = chain.kinds > 0
    return ends_back(sums.sum((0, -1))[:, there], chain.grids[:, there], ranges)


def ends_back(sums: NDArray[np.float64], grids: NDArray[Any], ranges: Tensor) -> Tensor:
    """Returns the gradients of ranges `[2 * grids]` or `[2 * grids, groups]`.

    Args:
        sums: `[groups, grids, 3]`, of :func:`learned_span`.
        grids: `[groups, grids, 4]`.
    """
    step = sums[..., 0] / (grids[..., 3] - grids[..., 2])
    ends = np.stack([sums[..., 1] - step, sums[..., 2] + step], 2).reshape(len(sums), -1)
    return torch.from_numpy(ends.T.copy()).float().reshape(ranges.shape)


def back(grad: Tensor, x: Tensor, given: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.learned.plain_learned_chain_grad`."""
    rows, (bias, other, alpha) = matrix(x), given.added
    chain = learned_arrays(given, rows)
    cuts = parts(len(rows), rows.size)
    to_x = empty(x.shape, x.dtype)
    to_other = empty(x.shape if other is not None else (0,), x.dtype)
    to_bias = torch.zeros((len(cuts), 0 if bias is None else rows.shape[1]), dtype=x.dtype)
    sums = room_for_sums(chain, len(cuts))
    out = (array(to_x).reshape(rows.shape), rows[:0] if other is None else matrix(to_other))
    narrow = is_narrow(chain, rows.shape[1])

    def task(part: int, start: int, stop: int) -> float:
        if narrow:
            narrow_back(matrix(grad), rows, chain.group, chain.grids, out[0], sums[part], start, stop)
            return 0.0
        return chain_back(matrix(grad), rows, chain, *out, array(to_bias[part]), sums[part], start, stop)

    dots = run(task, cuts)
    asked = other is not None and alpha is not None
    to_alpha = torch.tensor([sum(dots)] if asked else [], dtype=x.dtype)
    return to_x, to_bias.sum(0), to_other, to_alpha, chain_ends_back(chain, sums, given.ranges)


@loop
def chain_back(grad, x, chain, to_x, to_other, to_bias, sums, start, stop):  # type: ignore[no-untyped-def]
    """Computes the gradients of rows `start` to `stop`; returns that of `alpha`, if it is asked for.

    What is left out is empty. `sums`: float64 `[groups, 3, 3, LANES]`, for each grid what :func:`learned_span` adds up.
    """
    columns = x.shape[1]
    step = tile_rows(columns)
    at, spare = np.empty(step * columns, x.dtype), np.empty(step * columns, x.dtype)
    far, flat_x, room = is_far(to_x), x.reshape(-1), room_before(to_x, step)
    to = room.reshape(-1) if far else to_x.reshape(-1)
    product = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        a, size = first * columns, (last - first) * columns
        into = 0 if far else a
        product += tile_back(flat_x, a, grad, chain, at, spare, to, into, to_other, to_bias, sums, first, last)
        if far:
            stream(room, 0, to_x, a, size)
    return product


@loop
def tile_back(x, place, grad, chain, at, spare, to, into, to_other, to_bias, sums, first, last):  # type: ignore[no-untyped-def]
    """The same of a few rows, which lie in `x`, flat, from `place` on; their gradients go to `to`, from `into` on.

    `at`, `spare`: memory to work with, for as many values.
    """
    columns = grad.shape[1]
    bias, other, skip, group, grids = chain.bias, chain.other, chain.skip, chain.group, chain.grids
    flat_grad, flat_other, flat_to_other = grad.reshape(-1), other.reshape(-1), to_other.reshape(-1)
    asked, none, flags = chain.scaled and other.size > 0, np.zeros(3, np.uint8), np.empty(4, np.uint8)
    flags[0], flags[1], flags[2] = bias.size > 0, other.size > 0, chain.relu
    flags[3] = to_other.size > 0 or to_bias.size > 0 or asked
    if bias.size > 0:
        for r in range(last - first):
            copy_values(pointer(bias, 0), pointer(spare, r * columns), columns)
    begin = first
    while begin < last:
        skipped, end = skip.size > 0 and skip[begin], run_of(skip, group, begin, last)
        own, b, c = group_of(group, begin, grids.shape[0]), begin * columns, (begin - first) * columns
        learned_span(
            pointer(x, place + c),
            pointer(flat_grad, b),
            pointer(spare, c if bias.size > 0 else 0),
            pointer(flat_other, b if other.size > 0 else 0),
            pointer(at, c),
            pointer(to, into + c),
            (end - begin) * columns,
            chain.alpha,
            pointer(flags, 0),
            pointer(none if skipped else chain.kinds, 0),
            pointer(grids, 12 * own),
            pointer(sums, 9 * LANES * own),
        )
        begin = end
    a, size = first * columns, (last - first) * columns
    if to_other.size > 0:
        scale_values(pointer(at, 0), chain.alpha, pointer(flat_to_other, a), size)
    if to_bias.size > 0:
        for r in range(last - first):
            add_values(pointer(at, r * columns), pointer(to_bias, 0), columns)
    return dot(at[:size], flat_other[a : a + size]) if asked else 0.0

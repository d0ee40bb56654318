"""Loops of :mod:`dqconvert.kernels.learned_propagate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._steps import Ranged
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, groups_of, matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.learned import ends_back
from dqconvert.kernels.cpu.llvm.learned_span import LANES, grid_back_span, message_back_span
from dqconvert.kernels.cpu.llvm.memory import AHEAD, is_far, pointer, prefetch, stream
from dqconvert.kernels.cpu.propagate import extremes_of
from dqconvert.kernels.cpu.propagate_loops import fetch_row, pass_shares
from dqconvert.kernels.cpu.threads import balanced, parts, run
from dqconvert.kernels.cpu.tile import add_scaled, add_values, clear, dot, group_of, numbers_of
from dqconvert.kernels.messages import Sent


def propagate_back(
    grad: Tensor, sent: Sent, out: Tensor, messages: Ranged, mean: bool, groups: Tensor | None, for_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.learned_propagate.plain_learned_propagate_grad`; `out`: the sums."""
    x, weight = sent[:2]
    grads, rows, skip = matrix(grad), matrix(x), flags(sent.protected)
    if mean:
        shares = array(empty(grad.shape, grad.dtype))
        sharing = (grads, np.empty((0, 0), np.uint8), np.uint8(0), array(sent.by_receiver[0]), mean, shares)
        run(lambda _, start, stop: pass_shares(*sharing, start, stop), parts(len(grads), grads.size))
        grads = shares
    to_x = empty(x.shape if for_x else (0, 0), x.dtype)
    ptr, edges, receivers = map(array, sent.by_sender)
    grids = messages.grid().table(rows.dtype.type)
    cuts = balanced(ptr, x.size(1))
    sums = np.zeros((len(cuts), len(grids), 3, LANES))
    if weight is None:
        args: tuple[Any, ...] = (grads, rows, receivers, ptr, skip, grids[0], array(to_x))
        run(lambda part, start, stop: learned_sum_back(*args, sums[part], start, stop), cuts)
        return to_x, x.new_empty((0, 0)), ends_back(sums.sum((0, -1))[:, None], grids[:, None], messages.range_)
    to_weight = torch.empty(weight.shape, dtype=x.dtype)
    least, most = array(extremes_of(rows, weight.size(1)))
    group = groups_of(groups)
    args = (grads, rows, array(weight), receivers, ptr, edges, skip, group, grids, least, most, array(to_x))
    run(lambda part, start, stop: learned_weighted_back(*args, array(to_weight), sums[part], start, stop), cuts)
    # The sums are homogeneous in x and the grid: x times its gradient, and what the grid has, add up to the sums
    # times theirs. So nobody has to look at how each message was rounded.
    known, whole = sums.sum((0, -1)), np.zeros((len(cuts), len(grids)))
    both = matrix(grad), matrix(out)
    run(lambda part, start, stop: dot_rows(*both, group, whole[part], start, stop), parts(len(out), out.numel()))
    scale, zero_point, low, high = grids.astype(np.float64).T
    by_x, below, above = known.T
    known[:, 0] = (whole.sum(0) - by_x) / scale - (low - zero_point) * below - (high - zero_point) * above
    return to_x, to_weight, ends_back(known[:, None], grids[:, None], messages.range_)


@loop
def dot_rows(a, b, group, found, start, stop):  # type: ignore[no-untyped-def]
    """Adds the inner product of rows of two matrices to that of their group."""
    for r in range(start, stop):
        found[group_of(group, r, found.size)] += dot(a[r], b[r])


@loop
def learned_sum_back(grad, x, receivers, ptr, skip, grid, to_x, sums, start, stop):  # type: ignore[no-untyped-def]
    """Computes the gradients of the rows that were sent, if there is room for them; `sums`: what
    :func:`grid_back_span` adds up."""
    columns = x.shape[1]
    end, far, near = ptr[stop] - AHEAD, is_far(to_x), to_x.size > 0 and not is_far(to_x)
    room = np.empty(columns, x.dtype)
    for s in range(start, stop):
        row = pointer(to_x, s * columns) if near else pointer(room, 0)
        clear(row, columns)
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
            add_values(pointer(grad, receivers[place] * columns), row, columns)
        if not (skip.size > 0 and skip[s]):
            grid_back_span(pointer(x, s * columns), pointer(grid, 0), row, columns, pointer(sums, 0))
        if far:
            stream(room, 0, to_x, s * columns, columns)


@loop
def learned_weighted_back(  # type: ignore[no-untyped-def]
    grad, x, weight, receivers, ptr, edges, skip, group, grids, least, most, to_x, to_weight, sums, start, stop
):
    """Computes the gradients of the rows that were sent, and of the weights.

    `grids`: `[groups, 4]`, by the group of the node that receives; `sums`: `[groups, 3, LANES]`, of the messages that
    are not clipped their gradients times themselves; the gradients of those below; above.
    """
    columns, heads = x.shape[1], weight.shape[1]
    channels = columns // heads
    # Within these no value is clipped, however it is rounded on the way.
    inside, margin = np.empty((grids.shape[0], 2), x.dtype), x.dtype.type(0.01)
    for g in range(grids.shape[0]):
        scale, zero_point, low, high = numbers_of(grids[g])
        inside[g, 0], inside[g, 1] = (low + margin - zero_point) * scale, (high - margin - zero_point) * scale
    end, far = ptr[stop] - AHEAD, is_far(to_x)
    near, room = to_x.size > 0 and not far, np.empty((1, columns), x.dtype)
    for s in range(start, stop):
        to, at = (to_x, s * columns) if near else (room, 0)
        clear(pointer(to, at), columns)
        exact = skip.size > 0 and skip[s]
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
                prefetch(weight, edges[place + AHEAD] * heads)
            t, e = receivers[place], edges[place]
            own = group_of(group, t, grids.shape[0])
            for h in range(heads):
                w = weight[e, h]
                a, b = h * channels, (h + 1) * channels
                one, two = w * least[s, h], w * most[s, h]
                if exact or (min(one, two) > inside[own, 0] and max(one, two) < inside[own, 1]):
                    add_scaled(pointer(grad, t * columns + a), w, pointer(to, at + a), channels)
                    to_weight[e, h] = dot(grad[t, a:b], x[s, a:b])
                else:
                    from_, here, of_grid = pointer(x, s * columns + a), pointer(grad, t * columns + a), 4 * own
                    ends, into = pointer(sums, (3 * own + 1) * LANES), pointer(to, at + a)
                    to_weight[e, h] = message_back_span(from_, here, w, pointer(grids, of_grid), into, channels, ends)
                sums[own, 0, 0] += w * to_weight[e, h]
        if far:
            stream(room, 0, to_x, s * columns, columns)

"""Loops of :mod:`dqconvert.kernels.learned_propagate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, matrix
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.learned import grid_back
from dqconvert.kernels.cpu.llvm.memory import AHEAD, is_far, pointer, prefetch, room_before, stream
from dqconvert.kernels.cpu.propagate import extremes_of
from dqconvert.kernels.cpu.propagate_loops import fetch_row, pass_shares
from dqconvert.kernels.cpu.threads import balanced, parts, run
from dqconvert.kernels.cpu.tile import add_scaled, add_values, clear, dot, numbers_of
from dqconvert.kernels.messages import Sent


def propagate_back(grad: Tensor, sent: Sent, out: Tensor, grid: Grid, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.learned_propagate.plain_learned_propagate_grad`; `out`: the sums."""
    x, weight = sent[:2]
    grads, rows, skip = matrix(grad), matrix(x), flags(sent.protected)
    if mean:
        shares = array(empty(grad.shape, grad.dtype))
        sharing = (grads, np.empty((0, 0), np.uint8), np.uint8(0), array(sent.by_receiver[0]), mean, shares)
        run(lambda _, start, stop: pass_shares(*sharing, start, stop), parts(len(grads), grads.size))
        grads = shares
    to_x = empty(x.shape, x.dtype)
    ptr, edges, receivers = map(array, sent.by_sender)
    parameters = grid.parameters(rows.dtype.type)
    cuts = balanced(ptr, x.size(1))
    sums = np.zeros((len(cuts), 3))
    if weight is None:
        args: tuple[Any, ...] = (grads, rows, receivers, ptr, skip, parameters, array(to_x))
        run(lambda part, start, stop: sum_back(*args, sums[part], start, stop), cuts)
        inside, below, above = sums.sum(0)
        to_weight = x.new_empty((0, 0))
    else:
        to_weight = torch.empty(weight.shape, dtype=x.dtype)
        least, most = array(extremes_of(rows, weight.size(1)))
        args = (grads, rows, array(weight), receivers, ptr, edges, skip, parameters, least, most, array(to_x))
        run(lambda part, start, stop: products_back(*args, array(to_weight), sums[part], start, stop), cuts)
        _, below, above = sums.sum(0)
        # The sums are homogeneous in x and the grid: x times its gradient, and what the grid has, add up to the sums
        # times theirs. So nobody has to look at how each message was rounded.
        whole = inner(matrix(grad), matrix(out)) - inner(rows, array(to_x))
        scale, zero_point, low, high = map(float, parameters)
        inside = whole / scale - (low - zero_point) * below - (high - zero_point) * above
    step = inside / (parameters[3] - parameters[2])
    return to_x, to_weight, torch.tensor([below - step, above + step], dtype=torch.float32)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the inner product of two matrices, in double precision from row to row."""
    return float(sum(run(lambda _, start, stop: dot_rows(a, b, start, stop), parts(len(a), a.size))))


@loop
def dot_rows(a, b, start, stop):  # type: ignore[no-untyped-def]
    total = 0.0
    for r in range(start, stop):
        total += dot(a[r], b[r])
    return total


@loop
def sum_back(grad, x, receivers, ptr, skip, grid, to_x, sums, start, stop):  # type: ignore[no-untyped-def]
    """Computes the gradients of the rows that were sent; `sums`: what :func:`grid_back` adds up."""
    columns = x.shape[1]
    numbers = numbers_of(grid)
    end, far = ptr[stop] - AHEAD, is_far(to_x)
    room = room_before(to_x, 1)
    for s in range(start, stop):
        row = pointer(room, 0) if far else pointer(to_x, s * columns)
        clear(row, columns)
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
            add_values(pointer(grad, receivers[place] * columns), row, columns)
        if not (skip.size > 0 and skip[s]):
            grid_back(pointer(x, s * columns), numbers, row, columns, sums)
        if far:
            stream(room, 0, to_x, s * columns, columns)


@loop
def products_back(  # type: ignore[no-untyped-def]
    grad, x, weight, receivers, ptr, edges, skip, grid, least, most, to_x, to_weight, sums, start, stop
):
    """Computes the gradients of the rows that were sent, and of the weights; `sums[1:]`: those below and above."""
    columns, heads = x.shape[1], weight.shape[1]
    channels = columns // heads
    numbers = numbers_of(grid)
    scale, zero_point, low, high = numbers
    # Within these no value is clipped, however it is rounded on the way.
    margin = x.dtype.type(0.01)
    inside_low, inside_high = (low + margin - zero_point) * scale, (high - margin - zero_point) * scale
    end, far = ptr[stop] - AHEAD, is_far(to_x)
    room = room_before(to_x, 1)
    for s in range(start, stop):
        to, at = (room, 0) if far else (to_x, s * columns)
        clear(pointer(to, at), columns)
        exact = skip.size > 0 and skip[s]
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
                prefetch(weight, edges[place + AHEAD] * heads)
            t, e = receivers[place], edges[place]
            for h in range(heads):
                w = weight[e, h]
                a, b = h * channels, (h + 1) * channels
                one, two = w * least[s, h], w * most[s, h]
                if exact or (min(one, two) > inside_low and max(one, two) < inside_high):
                    add_scaled(pointer(grad, t * columns + a), w, pointer(to, at + a), channels)
                    to_weight[e, h] = dot(grad[t, a:b], x[s, a:b])
                else:
                    from_, here = pointer(x, s * columns + a), pointer(grad, t * columns + a)
                    found = clipped_back(from_, here, w, numbers, pointer(to, at + a), channels)
                    to_weight[e, h] = found[0]
                    sums[1] += found[1]
                    sums[2] += found[2]
        if far:
            stream(room, 0, to_x, s * columns, columns)


@loop(fastmath={"reassoc", "nsz"})
def clipped_back(x, grad, w, numbers, to_x, count):  # type: ignore[no-untyped-def]
    """Adds the gradient of one message's row, some of which is clipped; returns that of its weight, below and above."""
    scale, zero_point, low, high = numbers
    zero = scale - scale
    total, below, above = zero, zero, zero
    for c in range(count):
        code = w * x[c] / scale + zero_point
        g = grad[c]
        under, over = code <= low, code >= high
        below += g if under else zero
        above += g if over else zero
        g = zero if under | over else g
        to_x[c] += w * g
        total += g * x[c]
    return total, below, above

"""The largest message to each node, on the CPU, see :mod:`dqconvert.kernels.propagate`: loops over its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, matrix, observe
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import AHEAD
from dqconvert.kernels.cpu.propagate import message_values
from dqconvert.kernels.cpu.propagate_loops import fetch_row
from dqconvert.kernels.cpu.threads import balanced, parts, run
from dqconvert.kernels.cpu.tile import back_values, copy_values, round_values, scale_values
from dqconvert.kernels.messages import Sent, fake_messages_back


def largest(sent: Sent, grid: Grid) -> tuple[Tensor, Tensor]:
    """Returns the largest messages, and how many are as large, `[1, num_nodes, columns]`; the grid observes them."""
    observe(grid, message_values(sent))
    rows, shape = matrix(sent.x), (sent.num_nodes, sent.x.size(1))
    y, ties = empty(shape, sent.x.dtype), empty((1, *shape), sent.x.dtype)
    ptr, edges, senders = map(array, sent.by_receiver)
    graph = (senders, ptr, edges, flags(sent.protected), grid.parameters(rows.dtype.type))
    args = (rows, _weights(sent), *graph, array(y), array(ties)[0])
    run(lambda _, start, stop: max_rows(*args, start, stop), balanced(ptr, rows.shape[1]))
    return y, ties


def _weights(sent: Sent) -> Any:
    return array(sent.x.new_empty((0, 0)) if sent.weight is None else sent.weight)


def largest_back(
    grad: Tensor, y: Tensor, ties: Tensor, sent: Sent, grid: Grid, for_weight: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`dqconvert.kernels.propagate_grad.plain_propagate_grad`; `grid`: as it was rounded with."""
    x = sent.x
    rows, to_weight = matrix(x), fake_messages_back(sent, for_weight)[1]
    share, to_x = empty(y.shape, y.dtype), empty(x.shape, x.dtype)
    whole = (matrix(grad), matrix(y), array(ties)[0], array(share))
    run(lambda _, start, stop: shares(*whole, start, stop), parts(y.size(0), y.numel()))
    ptr, edges, receivers = map(array, sent.by_sender)
    graph = (receivers, ptr, edges, flags(sent.protected), grid.parameters(rows.dtype.type), grid.scheme.clip)
    args = (array(share), matrix(y), rows, _weights(sent), *graph, array(to_x), array(to_weight))
    run(lambda _, start, stop: max_back(*args, start, stop), balanced(ptr, x.size(1)))
    return to_x, to_weight


@loop
def make_message(x, s, weight, e, exact, grid, codes, message):  # type: ignore[no-untyped-def]
    """Computes the quantized message of an edge, and its codes before they are clamped."""
    heads = max(1, weight.shape[1])
    channels = message.size // heads
    if weight.size > 0:
        for h in range(heads):
            a, b = h * channels, (h + 1) * channels
            scale_values(x[s, a:b], weight[e, h], message[a:b], channels)
    else:
        copy_values(x[s], message, message.size)
    if not exact:
        round_values(message, grid, codes, message.size)
        back_values(codes, grid, message, message.size)


@loop
def max_rows(x, weight, senders, ptr, edges, skip, grid, y, ties, start, stop):  # type: ignore[no-untyped-def]
    """Computes the largest message to each node, by column, and how many are as large; 0 where there is none."""
    columns = x.shape[1]
    codes, message = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
    end = ptr[stop] - AHEAD
    for t in range(start, stop):
        row, count = y[t], ties[t]
        row[:] = 0 if ptr[t] == ptr[t + 1] else -np.inf
        count[:] = 0
        for place in range(ptr[t], ptr[t + 1]):
            if place < end:
                fetch_row(x, senders[place + AHEAD])
            s = senders[place]
            exact = skip.size > 0 and skip[s]
            make_message(x, s, weight, edges[place], exact, grid, codes, message)
            keep_largest(message, row, count)


@loop
def keep_largest(message, row, count):  # type: ignore[no-untyped-def]
    zero, one = row.dtype.type(0), row.dtype.type(1)
    for c in range(row.size):
        v, most = message[c], row[c]
        count[c] = one if (v > most) | (v != v) else count[c] + (one if v == most else zero)
        row[c] = v if (v > most) | (v != v) else most


@loop
def shares(grad, y, ties, share, start, stop):  # type: ignore[no-untyped-def]
    """Shares the gradient out among the largest messages, as torch does: a zero counts itself, too."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    for t in range(start, stop):
        for c in range(y.shape[1]):
            share[t, c] = grad[t, c] / (ties[t, c] + (one if y[t, c] == zero else zero))


@loop
def max_back(  # type: ignore[no-untyped-def]
    share, y, x, weight, receivers, ptr, edges, skip, grid, clip, to_x, to_weight, start, stop
):
    """Computes the gradients of the rows that were sent, and of the weights of their edges."""
    columns, heads = x.shape[1], max(1, weight.shape[1])
    channels = columns // heads
    codes, message = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
    low, high, zero, one = grid[2], grid[3], x.dtype.type(0), x.dtype.type(1)
    end = ptr[stop] - AHEAD
    for s in range(start, stop):
        row = to_x[s]
        row[:] = 0
        exact = skip.size > 0 and skip[s]
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(share, receivers[place + AHEAD])
                fetch_row(y, receivers[place + AHEAD])
            t, e = receivers[place], edges[place]
            if weight.size > 0 or place == ptr[s]:  # without weights every message of a node is the same
                make_message(x, s, weight, e, exact, grid, codes, message)
            for h in range(heads):
                w = weight[e, h] if weight.size > 0 else one
                total = zero
                for c in range(h * channels, (h + 1) * channels):
                    largest = (message[c] == y[t, c]) | (y[t, c] != y[t, c])
                    clipped = clip and not exact and ((codes[c] <= low) | (codes[c] >= high))
                    part = share[t, c] if largest and not clipped else zero
                    row[c] += w * part
                    total += part * x[s, c]
                if to_weight.size > 0:
                    to_weight[e, h] = total

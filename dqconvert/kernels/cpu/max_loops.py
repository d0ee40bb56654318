"""The loops of :mod:`dqconvert.kernels.propagate_max`, over the edges of each node."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import AHEAD
from dqconvert.kernels.cpu.propagate_loops import fetch_row
from dqconvert.kernels.cpu.tile import back_values, copy_values, round_values, scale_values


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

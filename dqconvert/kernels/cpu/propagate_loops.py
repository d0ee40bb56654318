"""The loops of :mod:`dqconvert.kernels.propagate`, over the edges of each node."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.chain_span import pass_span
from dqconvert.kernels.cpu.llvm.edges import add_coded_rows, room_for
from dqconvert.kernels.cpu.llvm.memory import AHEAD, LINE, is_far, pointer, prefetch, room_before, stream
from dqconvert.kernels.cpu.select_loops import collect_messages
from dqconvert.kernels.cpu.tile import (
    add_scaled,
    add_values,
    chain_tile,
    clear,
    copy_values,
    divide_values,
    dot,
    group_of,
    numbers_of,
    scratch,
    stop_clipped,
    tile_rows,
)


@loop
def pass_shares(grad, passes, bit, ptr, mean, y, start, stop):  # type: ignore[no-untyped-def]
    """Copies each row where the bits, if there are any, let it through; divided by its number of edges for a mean."""
    columns = y.shape[1]
    step = tile_rows(columns)
    flat_grad, flat_passes, flat = grad.reshape(-1), passes.reshape(-1), y.reshape(-1)
    far = is_far(y)
    room = np.empty(step * columns if far else 0, y.dtype)
    for first in range(start, stop, step):
        at, count = first * columns, (min(first + step, stop) - first) * columns
        to = pointer(room, 0) if far else pointer(flat, at)
        if passes.size > 0:
            pass_span(pointer(flat_grad, at), pointer(flat_passes, at), bit, to, count)
        else:
            copy_values(pointer(flat_grad, at), to, count)
        for r in range(first, min(first + step, stop)):
            if mean and ptr[r + 1] - ptr[r] > 1:
                row = pointer(room, (r - first) * columns) if far else pointer(flat, r * columns)
                divide_values(row, y.dtype.type(ptr[r + 1] - ptr[r]), columns)
        if far:
            stream(room, 0, flat, at, count)


@loop
def fetch_row(x, row):  # type: ignore[no-untyped-def]
    """Prefetches a row that will be needed soon."""
    columns = x.shape[1]
    for c in range(0, columns, LINE // x.itemsize):
        prefetch(x, row * columns + c)


@loop
def sum_rows(sent, senders, ptr, mean, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """Adds up the rows that are sent to each node, and sends the sums through the chain."""
    columns = y.shape[1]
    step = tile_rows(columns)
    spare, room = scratch(y, step), room_before(y, step)
    made = room if is_far(y) else y
    end = ptr[stop] - AHEAD
    for first in range(start, stop, step):
        last = min(first + step, stop)
        base = first if is_far(y) else 0
        for t in range(first, last):
            row = pointer(made, (t - base) * columns)
            clear(row, columns)
            for place in range(ptr[t], ptr[t + 1]):
                if place < end:
                    fetch_row(sent, senders[place + AHEAD])
                add_values(pointer(sent, senders[place] * columns), row, columns)
            if mean and ptr[t + 1] - ptr[t] > 1:
                divide_values(row, made.dtype.type(ptr[t + 1] - ptr[t]), columns)
        chain_tile(y, first, last, chain, caught, spare, room)


@loop
def sum_codes(codes, x, skip, grid, senders, ptr, mean, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """Like `sum_rows`, where the rows that are not skipped are sent as codes above the smallest.

    `codes`: uint8, flat, see :func:`dqconvert.kernels.cpu.llvm.edges.add_coded_rows`.
    """
    columns = y.shape[1]
    step = tile_rows(columns)
    spare, room = scratch(y, step), room_before(y, step)
    made = room if is_far(y) else y
    sums = np.empty(room_for(columns, y.itemsize), y.dtype)
    offset, scale = grid[2] - grid[1], grid[0]
    end = ptr[stop]
    for first in range(start, stop, step):
        last = min(first + step, stop)
        base = first if is_far(y) else 0
        for t in range(first, last):
            sums[:] = 0
            place, until = ptr[t], ptr[t + 1]
            while place < until:
                begin = place
                while place < until and not (skip.size > 0 and skip[senders[place]]):
                    place += 1
                add_coded_rows(codes, columns, senders, begin, place, end, offset, scale, sums)
                while place < until and skip.size > 0 and skip[senders[place]]:
                    add_values(pointer(x, senders[place] * columns), pointer(sums, 0), columns)
                    place += 1
            row = pointer(made, (t - base) * columns)
            copy_values(pointer(sums, 0), row, columns)
            if mean and until - ptr[t] > 1:
                divide_values(row, y.dtype.type(until - ptr[t]), columns)
        chain_tile(y, first, last, chain, caught, spare, room)


@loop
def sum_products(  # type: ignore[no-untyped-def]
    x,
    weight,
    senders,
    ptr,
    edges,
    skip,
    group,
    grid,
    least,
    most,
    catch,
    lo,
    hi,
    noted,
    mean,
    y,
    chain,
    caught,
    start,
    stop,
):
    """Adds up the quantized products that are sent to each node, and sends the sums through the chain.

    `grid`: `[groups, 4]`, by the group of the node that receives.

    If `catch`, notes the products outside of `lo` and `hi` in `noted`, `(under, over)`. Returns how many there are on
    either side, how many are not finite, and whether the room ran out.
    """
    columns, heads = y.shape[1], weight.shape[1]
    channels = columns // heads
    step = tile_rows(columns)
    spare, room = scratch(y, step), room_before(y, step)
    made = room if is_far(y) else y
    end = ptr[stop] - AHEAD
    below, above = noted
    n, m, odd, full = 0, 0, 0, False
    for first in range(start, stop, step):
        last = min(first + step, stop)
        base = first if is_far(y) else 0
        for t in range(first, last):
            at, numbers = (t - base) * columns, numbers_of(grid[group_of(group, t, grid.shape[0])])
            clear(pointer(made, at), columns)
            for place in range(ptr[t], ptr[t + 1]):
                if place < end:
                    fetch_row(x, senders[place + AHEAD])
                    prefetch(weight, edges[place + AHEAD] * heads)
                s, e = senders[place], edges[place]
                exact = skip.size > 0 and skip[s]
                for h in range(heads):
                    from_, to = pointer(x, s * columns + h * channels), pointer(made, at + h * channels)
                    if exact:
                        add_scaled(from_, weight[e, h], to, channels)
                    else:
                        add_rounded(from_, weight[e, h], numbers, to, channels)
            if mean and ptr[t + 1] - ptr[t] > 1:
                divide_values(pointer(made, at), made.dtype.type(ptr[t + 1] - ptr[t]), columns)
        if catch and not full:  # the rows that were sent are still in the cache
            found = collect_messages(
                x, weight, edges, senders, skip, least, most, ptr[first], ptr[last], lo, hi, below[n:], above[m:]
            )
            n, m, odd, full = n + found[0], m + found[1], odd + found[2], found[3]
        chain_tile(y, first, last, chain, caught, spare, room)
    return n, m, odd, full


@loop
def sum_back(grad, x, receivers, ptr, skip, grid, clip, plus, to_x, start, stop):  # type: ignore[no-untyped-def]
    """Computes the gradients of the rows that were sent: zero where the row was clipped; and adds `plus` (or empty)."""
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
        if clip and not (skip.size > 0 and skip[s]):
            stop_clipped(pointer(x, s * columns), numbers, row, columns)
        if plus.size > 0:
            add_values(pointer(plus, s * columns), row, columns)
        if far:
            stream(room, 0, to_x, s * columns, columns)


@loop
def weighted_back(  # type: ignore[no-untyped-def]
    grad, x, weight, receivers, ptr, edges, skip, group, grid, clip, least, most, to_x, to_weight, start, stop
):
    """Computes the gradients of the rows that were sent, and of the weights of their edges."""
    columns, heads = x.shape[1], weight.shape[1]
    channels = columns // heads
    low, high = grid[0, 2], grid[0, 3]
    # Within these no value is clipped, so no row is whose extreme products are.
    inside = np.empty((grid.shape[0], 2), x.dtype)
    for g in range(grid.shape[0]):
        inside[g, 0], inside[g, 1] = (low + 1 - grid[g, 1]) * grid[g, 0], (high - 1 - grid[g, 1]) * grid[g, 0]
    end, far = ptr[stop] - AHEAD, is_far(to_x)
    room = room_before(to_x, 1)
    for s in range(start, stop):
        to, at = (room, 0) if far else (to_x, s * columns)
        row = to.reshape(-1)[at : at + columns]
        row[:] = 0
        exact = not clip or (skip.size > 0 and skip[s])
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
                prefetch(weight, edges[place + AHEAD] * heads)
            t, e = receivers[place], edges[place]
            g = group_of(group, t, grid.shape[0])
            scale, zero_point, inside_low, inside_high = grid[g, 0], grid[g, 1], inside[g, 0], inside[g, 1]
            for h in range(heads):
                w = weight[e, h]
                a, b = h * channels, (h + 1) * channels
                one, two = w * least[s, h], w * most[s, h]
                if exact or (min(one, two) > inside_low and max(one, two) < inside_high):
                    add_scaled(pointer(grad, t * columns + a), w, pointer(to, at + a), channels)
                    if to_weight.size > 0:
                        to_weight[e, h] = dot(grad[t, a:b], x[s, a:b])
                else:
                    total = x.dtype.type(0)
                    for c in range(a, b):
                        q = np.rint(w * x[s, c] / scale + zero_point)
                        if not (q <= low or q >= high):
                            row[c] += w * grad[t, c]
                            total += grad[t, c] * x[s, c]
                    if to_weight.size > 0:
                        to_weight[e, h] = total
        if far:
            stream(room, 0, to_x, s * columns, columns)


@loop
def add_rounded(x, w, numbers, out, count):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = numbers
    for c in range(count):
        q = np.rint(w * x[c] / scale + zero_point)
        q = low if q < low else q
        q = high if q > high else q
        out[c] += (q - zero_point) * scale

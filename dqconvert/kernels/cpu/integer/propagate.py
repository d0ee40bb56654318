"""Loops over nodes for :mod:`dqconvert.kernels.integer.propagate`: from the rows of their senders to a row of codes."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.finish import finish_row, pointed
from dqconvert.kernels.cpu.integer.lines import message_of
from dqconvert.kernels.cpu.llvm.edges import LEAST, MADE, MOST, reduce_edges
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.messages import SUM
from dqconvert.kernels.cpu.tile import group_of


@loop
def plan_strips(all_size, row_size, heads, summed, widest):  # type: ignore[no-untyped-def]
    """Cuts the first `all_size` bytes of a row into strips that do not reach beyond its `row_size` bytes.

    `row_size` is at least `LEAST`. `summed`: whether there are strips for sums. `widest`: the most bytes of a
    strip. The result: int64 `[strips, 5]`, the head, the byte where the strip begins, its size, how many of its first
    bytes belong to another, and how many of those behind them count.
    """
    head_size = all_size // heads
    plan = np.empty((heads * (head_size // LEAST + 1), 5), np.int64)
    count = 0
    for head in range(heads):
        done = 0
        while done < head_size:
            left = head_size - done
            size = strip_size(left, row_size, summed, widest)
            at = head * head_size + done
            # A strip reads whole vectors, so the last one of a row begins earlier and leaves out its first bytes.
            begin = min(at, row_size - size)
            skip = at - begin
            take = min(size - skip, left)
            plan[count] = head, begin, size, skip, take
            count += 1
            done += take
    return plan[:count]


@loop
def strip_size(left, row_size, summed, widest):  # type: ignore[no-untyped-def]
    """Returns the size of a strip for the first of `left` bytes: one that is a quarter too wide rather than two."""
    size = widest
    while size > LEAST and (4 * left <= 3 * size or size > row_size):
        size //= 2
    if summed and size < left:  # two at once
        for half in (8, 16, 32):
            both = size + half
            if half < size and left <= both <= min(row_size, widest):
                return both
    return size


@loop
def propagate_rows(  # type: ignore[no-untyped-def]
    x,
    ptr,
    senders,
    weights,
    table,
    per_byte,
    numbers,
    reduce,
    mean,
    block,
    most,
    size,
    columns,
    finish,
    out,
    start,
    stop,
):
    """Reduces the messages to each of the nodes `start` to `stop`, and requantizes the sums.

    `table`: see :mod:`dqconvert.kernels.cpu.llvm.edges`. `per_byte`: columns in a byte of the rows. `numbers`:
    zeros of the rows and of the messages, lowest and highest message, as the strips take them, and by how much each
    message comes out too large. `block`: how many edges a strip can sum up; `most`: how many int32 can. `size`: the
    bytes of a row that hold its columns.
    """
    zero, middle, low, high = np.int32(numbers[0]), np.int32(numbers[1]), np.int32(numbers[2]), np.int32(numbers[3])
    offset = numbers[4]
    heads, row_size = weights.shape[1], x.shape[1]
    apart = heads if weights.shape[0] > 1 else 0
    widest = MOST if table.itemsize == 2 else MADE  # the messages are the codes, or made of them
    plan = plan_strips(size, row_size, heads, reduce == SUM, widest)
    width = 0  # of the sums: whole bytes
    for part in range(plan.shape[0]):
        width += plan[part, 4] * per_byte
    found = np.empty(MOST * per_byte, np.int32)
    sums, totals = np.empty(width, np.int32), np.empty(width, np.int64)
    codes, one, ends = np.empty(columns, np.uint8), np.float32(1), pointed(finish, columns)
    last = senders.size - 1
    for row in range(start, stop):
        first, end, to_row = ptr[row], ptr[row + 1], pointer(out, row * out.shape[1])
        own = group_of(finish.group, row, finish.number)
        if first == end:  # a node without edges: its sum is zero, and so is its largest and smallest message
            sums[:] = 0
            finish_row(pointer(sums, 0), row, own, one, ends, pointer(codes, 0), to_row)
            continue
        # More edges than int32 can sum up: in blocks of `most`, whose sums are added up in int64.
        wide = end - first > most
        if wide:
            totals[:] = 0
        for begin in range(first, end, most):
            until = min(begin + most, end)
            to = 0
            for part in range(plan.shape[0]):
                # Strip by strip, all edges: its sums stay in registers. Of bytes, 16 bits hold `block` edges.
                head, at, length, skip, take = plan[part]
                for edge in range(begin, until, block):
                    edges = min(block, until - edge)
                    reduce_edges(
                        length,
                        reduce,
                        pointer(x, at),
                        row_size,
                        pointer(senders, 0),
                        edge,
                        edge + edges,
                        last,
                        pointer(weights, head),
                        apart,
                        pointer(table, 0),
                        zero,
                        middle,
                        low,
                        high,
                        pointer(found, 0),
                    )
                    beyond = offset * edges if reduce == SUM else offset
                    take_over(
                        pointer(found, skip * per_byte), take * per_byte, beyond, edge == begin, pointer(sums, to)
                    )
                to += take * per_byte
            if wide:
                for c in range(width):
                    totals[c] += sums[c]
        share = one / np.float32(end - first) if mean else one
        if wide:
            finish_row(pointer(totals, 0), row, own, share, ends, pointer(codes, 0), to_row)
        else:
            finish_row(pointer(sums, 0), row, own, share, ends, pointer(codes, 0), to_row)


@loop
def propagate_groups(  # type: ignore[no-untyped-def]
    x,
    ptr,
    senders,
    own,
    weights,
    tables,
    zeros,
    numbers,
    mean,
    most,
    columns,
    finish,
    out,
    start,
    stop,
):
    """Does what `propagate_rows` does, with messages on the grid of the receiver's group, of rows on the sender's.

    `own`: uint8, the group of each row of `x`, or empty. `tables`: float32 `[groups of receivers, groups of senders,
    256]`. `zeros`: of each group of senders. `numbers`: of each group of receivers, see `propagate_rows`: the zero of
    its messages, the lowest and the highest, and by how much each comes out too large. The rest as there.
    """
    heads, row_size, kinds = weights.shape[1], x.shape[1], tables.shape[1]
    plan = plan_strips(columns, row_size, heads, True, MADE)
    width = 0
    for part in range(plan.shape[0]):
        width += plan[part, 4]
    found, sums, totals = np.empty(MOST, np.int32), np.empty(width, np.int32), np.empty(width, np.int64)
    codes, one, last, ends = np.empty(columns, np.uint8), np.float32(1), senders.size - 1, pointed(finish, columns)
    for row in range(start, stop):
        first, end, group = ptr[row], ptr[row + 1], group_of(finish.group, row, tables.shape[0])
        middle, low, high = np.int32(numbers[group, 0]), np.int32(numbers[group, 1]), np.int32(numbers[group, 2])
        wide = end - first > most
        totals[:] = 0
        sums[:] = 0
        for begin in range(first, end, most):
            edge, until = begin, min(begin + most, end)
            sums[:] = 0
            while edge < until:
                # Rows on one grid at a time.
                kind, next_ = group_of(own, senders[edge], kinds), edge + 1
                while next_ < until and group_of(own, senders[next_], kinds) == kind:
                    next_ += 1
                to, table = 0, pointer(tables, (group * kinds + kind) * 256)
                for part in range(plan.shape[0]):
                    head, at, length, skip, take = plan[part]
                    reduce_edges(
                        length,
                        SUM,
                        pointer(x, at),
                        row_size,
                        pointer(senders, 0),
                        edge,
                        next_,
                        last,
                        pointer(weights, head),
                        heads,
                        table,
                        np.int32(zeros[kind]),
                        middle,
                        low,
                        high,
                        pointer(found, 0),
                    )
                    beyond = numbers[group, 3] * (next_ - edge)
                    take_over(pointer(found, skip), take, beyond, False, pointer(sums, to))
                    to += take
                edge = next_
            if wide:
                for c in range(width):
                    totals[c] += sums[c]
        share = one / np.float32(end - first) if mean and end > first else one
        ends_as, to_row = group_of(finish.group, row, finish.number), pointer(out, row * out.shape[1])
        if wide:
            finish_row(pointer(totals, 0), row, ends_as, share, ends, pointer(codes, 0), to_row)
        else:
            finish_row(pointer(sums, 0), row, ends_as, share, ends, pointer(codes, 0), to_row)


@loop
def take_over(found, count, beyond, fresh, sums):  # type: ignore[no-untyped-def]
    """Adds the sums of a block of edges, less the `beyond` by which they are too large, modulo 2^32."""
    # Messages come out too large by a constant each. Sums may wrap around on the way: differences to 2^32 are right.
    less = np.int32(np.uint32(beyond & 0xFFFFFFFF))
    if fresh:
        for c in range(count):
            sums[c] = np.int32(found[c] - less)
    else:
        for c in range(count):
            sums[c] = np.int32(sums[c] + found[c] - less)


@loop
def messages_of_codes(multipliers, zero, middle, low, high):  # type: ignore[no-untyped-def]
    """Returns the message of a weight's code and a code below 16, above the lowest message: uint8 `[256, 16]`.

    `middle`, `low`, `high`: the message of nothing, the lowest and the highest, as training counts them.
    """
    messages = np.empty((multipliers.size, 16), np.uint8)
    for weight in range(multipliers.size):
        for code in range(16):
            messages[weight, code] = message_of(code, np.float64(multipliers[weight]), zero, middle, low, high - low)
    return messages

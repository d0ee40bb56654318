"""The loops of :mod:`dqconvert.kernels.linear`: products whose rows go on through a chain, and their gradients."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.chain_span import pass_span, round_span
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, room_before, stream
from dqconvert.kernels.cpu.llvm.multiply import multiply, vectors_of
from dqconvert.kernels.cpu.llvm.vectors import VECTOR
from dqconvert.kernels.cpu.tile import (
    add_values,
    chain_tile,
    copy_values,
    dot,
    group_of,
    numbers_of,
    scale_values,
    scratch,
    stop_clipped,
)

FORWARD, BACK = 1 << 14, 12 << 10
"""Values of a tile: measured best. On the way back there are three beside each other, and the weight's gradient."""


@loop
def product_rows(columns, most):  # type: ignore[no-untyped-def]
    """Returns how many rows make a tile of `most` values at most: a multiple of the strips of every height."""
    return max(12, min(96, most // max(1, columns) // 12 * 12))


@loop
def product_tile(x, y, packed, spare):  # type: ignore[no-untyped-def]
    """Multiplies the first rows of `x`, as many as `y` has, with what is packed."""
    depth, (rows, columns) = x.shape[1], y.shape
    groups = vectors_of(columns, x.itemsize)
    wide = groups * (VECTOR // x.itemsize)
    if wide == columns:
        multiply(x.reshape(-1), 0, depth, 1, rows, depth, packed, 0, groups, y.reshape(-1), 0, wide, True)
    else:
        multiply(x.reshape(-1), 0, depth, 1, rows, depth, packed, 0, groups, spare, 0, wide, True)
        for r in range(rows):
            copy_values(pointer(spare, r * wide), pointer(y, r * columns), columns)


@loop
def padded(columns, itemsize):  # type: ignore[no-untyped-def]
    """Returns the columns of whole vectors that hold so many."""
    return vectors_of(columns, itemsize) * (VECTOR // itemsize)


@loop
def gap(columns, itemsize):  # type: ignore[no-untyped-def]
    """Returns how many values to leave between rows that are read column by column.

    At some distances all rows share a few of the places in the cache.
    """
    return 64 // itemsize if columns * itemsize % 512 == 0 else 0


@loop
def round_rows(x, first, last, entry, skip, group, rows):  # type: ignore[no-untyped-def]
    """Copies rows `first` to `last` of `x` to `rows`, rounded to the grid `entry` of their group unless skipped."""
    depth, wide = x.shape[1], rows.shape[1]
    for r in range(last - first):
        copy_values(pointer(x, (first + r) * depth), pointer(rows, r * wide), depth)
        if not (skip.size > 0 and skip[first + r]):
            own = group_of(group, first + r, entry.shape[0])
            round_span(pointer(rows, r * wide), depth, pointer(entry, 4 * own))


@loop
def stop_rows(x, entry, skip, group, grad, start, stop):  # type: ignore[no-untyped-def]
    """Sets the gradient of values that the grid clips to zero, in rows that are not skipped."""
    depth = x.shape[1]
    for r in range(start, stop):
        if not (skip.size > 0 and skip[r]):
            numbers = numbers_of(entry[group_of(group, r, entry.shape[0])])
            stop_clipped(pointer(x, r * depth), numbers, pointer(grad, r * depth), depth)


@loop
def chain_products(x, entry, skip, group, packed, offset, kept, y, chain, caught, start, stop):  # type: ignore[no-untyped-def]
    """Sends the rows of the product of `x` and what is packed, plus `offset` (or empty), through the chain.

    `entry`: the grids `[groups, 4]` that rows of `x` are rounded to first, but those in `skip`; empty: none. `kept`:
    where the product goes, too; or empty.
    """
    columns, depth = y.shape[1], x.shape[1]
    step = product_rows(columns, FORWARD)
    spare, product = scratch(y, step), np.empty(step * padded(columns, x.itemsize), x.dtype)
    room = room_before(y, step)
    made = room if is_far(y) else y
    rows = np.empty((step if entry.size > 0 else 0, depth), x.dtype)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        base = first if is_far(y) else 0
        to = made[first - base : last - base]
        if entry.size > 0:
            round_rows(x, first, last, entry, skip, group, rows)
            product_tile(rows, to, packed, product)
        else:
            product_tile(x[first:last], to, packed, product)
        if offset.size > 0:
            for r in range(last - first):
                add_values(pointer(offset, 0), pointer(to, r * columns), columns)
        if kept.size > 0:
            leave(to.reshape(-1), last - first, columns, kept, first)
        chain_tile(y, first, last, chain, caught, spare, room)


@loop
def linear_back(  # type: ignore[no-untyped-def]
    grad,
    bits,
    x,
    entry,
    clip,
    skip,
    group,
    packed,
    apart,
    alpha,
    other,
    to_x,
    to_weight,
    to_offset,
    to_bias,
    to_other,
    start,
    stop,
):
    """Computes the gradients of everything, of rows `start` to `stop`; what is not wanted is empty.

    `entry`: the grids `[groups, 4]` that rows of `x` were rounded to, but those in `skip`; empty: none. `clip`: whether
    it lets no gradient of clipped values through. `packed`: the weight, `[columns, depth]`. `apart`: whether the
    gradient of the product differs from that of the sum. `to_weight`: `[columns, padded depth]`, and `to_offset` and
    `to_bias` are added to. Returns the product of the gradient of the sum with `other`, added up.
    """
    columns, depth = grad.shape[1], x.shape[1]
    step = product_rows(max(columns, depth), BACK)
    wide = padded(depth, x.itemsize)
    groups = vectors_of(depth, x.itemsize)
    at_sum, at_product = np.empty((step, columns), grad.dtype), np.empty((step, columns), grad.dtype)
    product = np.empty(step * wide, grad.dtype)
    apart_x, apart_grad = wide + gap(wide, x.itemsize), columns + gap(columns, x.itemsize)
    copied = entry.size > 0 or apart_x != depth  # rows that are not in memory as they are needed
    rows_of_x = np.zeros((step if copied else 0, apart_x), x.dtype)
    spaced = np.empty(step * apart_grad if apart_grad != columns else 0, grad.dtype)
    flat_sum, flat_product, flat_x = at_sum.reshape(-1), at_product.reshape(-1), x.reshape(-1)
    flat_grad, flat_bits, flat_other, flat_partner = (
        grad.reshape(-1),
        bits.reshape(-1),
        to_other.reshape(-1),
        other.reshape(-1),
    )
    flat_weight = to_weight.reshape(-1)
    total = 0.0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = last - first
        a, b = first * columns, last * columns
        size = b - a
        if bits.size > 0:
            pass_span(pointer(flat_grad, a), pointer(flat_bits, a), np.uint8(1), pointer(flat_sum, 0), size)
        else:
            copy_values(pointer(flat_grad, a), pointer(flat_sum, 0), size)
        if to_other.size > 0 and is_far(to_other):
            scale_values(flat_sum, alpha, flat_product, size)
            stream(flat_product, 0, flat_other, a, size)
        elif to_other.size > 0:
            scale_values(flat_sum, alpha, flat_other[a:b], size)
        if other.size > 0:
            total += dot(flat_sum[:size], flat_partner[a:b])
        if to_bias.size > 0:
            for r in range(rows):
                add_values(pointer(at_sum, r * columns), pointer(to_bias, 0), columns)
        back, flat_back = at_sum, flat_sum
        if apart and bits.size > 0:
            pass_span(pointer(flat_grad, a), pointer(flat_bits, a), np.uint8(2), pointer(flat_product, 0), size)
            back, flat_back = at_product, flat_product
        if to_offset.size > 0:
            for r in range(rows):
                add_values(pointer(back, r * columns), pointer(to_offset, 0), columns)
        if to_x.size > 0:
            if clip:
                multiply(flat_back, 0, columns, 1, rows, columns, packed, 0, groups, product, 0, wide, True)
                for r in range(rows):
                    if not (skip.size > 0 and skip[first + r]):
                        numbers = numbers_of(entry[group_of(group, first + r, entry.shape[0])])
                        stop_clipped(pointer(x, (first + r) * depth), numbers, pointer(product, r * wide), depth)
                leave(product, rows, wide, to_x, first)
            else:
                multiply_back(flat_back, columns, rows, packed, groups, to_x, first, product)
        if to_weight.size > 0:
            if entry.size > 0:
                round_rows(x, first, last, entry, skip, group, rows_of_x)
            elif copied:
                for r in range(rows):
                    copy_values(pointer(x, (first + r) * depth), pointer(rows_of_x, r * apart_x), depth)
            source = rows_of_x.reshape(-1) if copied else flat_x[first * depth :]
            if spaced.size > 0:
                for r in range(rows):
                    copy_values(pointer(back, r * columns), pointer(spaced, r * apart_grad), columns)
            factors = spaced if spaced.size > 0 else flat_back
            multiply(factors, 0, 1, apart_grad, columns, rows, source, apart_x, groups, flat_weight, 0, wide, False)
    return total


@loop
def multiply_back(back, columns, rows, packed, groups, to_x, first, spare):  # type: ignore[no-untyped-def]
    depth = to_x.shape[1]
    wide = groups * (VECTOR // back.itemsize)
    if wide == depth and not is_far(to_x):
        multiply(back, 0, columns, 1, rows, columns, packed, 0, groups, to_x.reshape(-1), first * depth, depth, True)
    else:
        multiply(back, 0, columns, 1, rows, columns, packed, 0, groups, spare, 0, wide, True)
        leave(spare, rows, wide, to_x, first)


@loop
def leave(rows_there, rows, wide, to, first):  # type: ignore[no-untyped-def]
    """Copies rows of `wide` values to row `first` of a matrix and on."""
    columns = to.shape[1]
    if wide == columns and is_far(to):
        stream(rows_there, 0, to, first * columns, rows * columns)
    else:
        for r in range(rows):
            copy_values(pointer(rows_there, r * wide), pointer(to, (first + r) * columns), columns)

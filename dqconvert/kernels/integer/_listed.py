"""Products with rows of values most of which are zero, as bags of words are: of the others alone.

Zeros are seen to be zeros without any arithmetic; all that is not zero is listed, and multiplied one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels._pointer import pointer
from dqconvert.kernels._threads import loop
from dqconvert.kernels.integer._strips import FACTORS, GROUP, LANES, SUMS, add_products
from dqconvert.kernels.integer.codes import code_of_value

RUN = 32
"""Values that are looked at together."""

SPARSE = 16
"""Of so many values, one that is not zero at most: it takes as long as some that are multiplied in strips."""


@intrinsic
def _not_zero(typing_context: Any, values: Any) -> Any:
    """Of `RUN` float32 values, a bit for each, the first the lowest: whether any of its own bits is set."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.IntType(32), RUN)
        found = builder.load(builder.bitcast(args[0], kind.as_pointer()))
        found.align = 4
        flags = builder.icmp_unsigned("!=", found, ir.Constant(kind, None))
        return builder.bitcast(flags, ir.IntType(RUN))

    return types.uint32(values), write


@intrinsic
def _lowest(typing_context: Any, mask: Any) -> Any:
    """The place of the lowest bit that is set; there is one."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.cttz(args[0], ir.IntType(1)(1)), ir.IntType(64))

    return types.intp(types.uint32), write


@loop
def list_values(x, at, count, grid, places, factors, to):  # type: ignore[no-untyped-def]
    """Lists which of `count` float32 values, from `at` on, are not zero, and their codes less the grid's zero.

    They are listed from `to` on; places are counted from `at`. How many there are, or -1 for too many; whether one of
    them is NaN.
    """
    values, most, listed, missing = pointer(x, at), count // SPARSE, 0, False
    for start in range(0, count, RUN):
        if start + RUN <= count:
            mask = _not_zero(pointer(x, at + start))
        else:
            mask = np.uint32(0)
            for k in range(start, count):
                mask |= np.uint32(values[k] != 0) << np.uint32(k - start)
        while mask != 0:
            if listed == most:
                return -1, missing
            k = start + _lowest(mask)
            mask &= mask - np.uint32(1)
            value = values[k]
            missing |= value != value
            places[to + listed] = k
            factors[to + listed] = np.int32(code_of_value(value, grid) - grid[1])
            listed += 1
    return listed, missing


@intrinsic
def _add_row(typing_context: Any, sums: Any, pair: Any, packed: Any) -> Any:
    """To the sums of a group of columns, the products of a pair of factors with a pair of the weight's rows."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, pair, packed = args
        nothing = ir.Constant(SUMS, ir.Undefined)
        one = builder.insert_element(nothing, pair, ir.IntType(32)(0))
        both = builder.bitcast(builder.shuffle_vector(one, nothing, ir.Constant(SUMS, [0] * LANES)), FACTORS)

        def place(of: Any, kind: Any, number: int) -> Any:
            return builder.gep(builder.bitcast(of, kind.as_pointer()), [ir.IntType(32)(number)])

        for number in range(GROUP // LANES):
            weight = builder.load(place(packed, FACTORS, number))
            weight.align = 2
            before = builder.load(place(sums, SUMS, number))
            before.align = 4
            after = builder.store(builder.add(before, add_products(builder, both, weight)), place(sums, SUMS, number))
            after.align = 4
        return context.get_dummy_value()

    return types.void(sums, types.int32, packed), write


@loop
def multiply_listed(places, factors, counts, apart, b, b_at, b_group, rows, c, columns, fresh):  # type: ignore[no-untyped-def]
    """`c = a @ b`, or `c += a @ b` unless `fresh`, as :func:`dqconvert.kernels.integer._strips.multiply` does it.

    `a`: the values of each row that are listed, `counts` of them, rows `apart` from each other.
    """
    groups = (columns + GROUP - 1) // GROUP
    for row in range(rows):
        place, factor = pointer(places, row * apart), pointer(factors, row * apart)
        for group in range(groups):
            to = pointer(c, (row * groups + group) * GROUP)
            if fresh:
                for column in range(GROUP):
                    to[column] = 0
            for n in range(counts[row]):
                k = place[n]
                pair = factor[n] << 16 if k % 2 == 1 else factor[n] & 0xFFFF
                _add_row(to, np.int32(pair), pointer(b, b_at + group * b_group + k // 2 * 2 * GROUP))

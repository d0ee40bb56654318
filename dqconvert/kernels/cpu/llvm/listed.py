"""Products with rows of values most of which are zero, as bags of words are: of the others alone.

Zeros are seen to be zeros without any arithmetic; all that is not zero is listed, and multiplied one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.integer.codes import code_of_value
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.multiply import FACTORS, GROUP, LANES, SUMS, add_products
from dqconvert.kernels.cpu.llvm.vectors import BIT, INT, LONG, carry, everywhere, load, store

RUN = 32
"""Values that are looked at together."""

SPARSE = 16
"""Of so many values, one that is not zero at most: it takes as long as some that are multiplied in strips."""


@intrinsic
def _not_zero(typing_context: Any, values: Any) -> Any:
    """Of `RUN` float32 values, a bit for each, the first the lowest: whether any of its own bits is set."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(INT, RUN)
        flags = builder.icmp_unsigned("!=", load(builder, args[0], kind, 4), ir.Constant(kind, None))
        return builder.bitcast(flags, ir.IntType(RUN))

    return types.uint32(values), write


@intrinsic
def _lowest(typing_context: Any, mask: Any) -> Any:
    """Returns the place of the lowest bit that is set; of none, a number beyond all places."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.cttz(args[0], BIT(0)), LONG)

    return types.intp(types.uint32), write


@intrinsic
def _bits(typing_context: Any, mask: Any) -> Any:
    """Returns how many bits are set."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.ctpop(args[0]), LONG)

    return types.intp(types.uint32), write


@loop
def list_values(x, at, count, grid, places, factors, to):  # type: ignore[no-untyped-def]
    """Lists which of `count` float32 values, from `at` on, are not zero, and their codes less the grid's zero.

    They are listed from `to` on, where there is room for `count`; places are counted from `at`. How many there are, or
    -1 for too many; whether one of them is NaN.
    """
    values, listing, codes = pointer(x, at), pointer(places, to), pointer(factors, to)
    most, listed, missing = count // SPARSE, 0, False
    for start in range(0, count - RUN + 1, RUN):
        mask = _not_zero(pointer(x, at + start))
        bits = _bits(mask)
        if listed + bits > most:
            return -1, missing
        # Two are put down, whether they are there or not: a branch for each could not be foreseen.
        rest = mask & (mask - np.uint32(1))
        listing[listed], listing[listed + 1] = start + _lowest(mask), start + _lowest(rest)
        for n in range(2, bits):
            rest &= rest - np.uint32(1)
            listing[listed + n] = start + _lowest(rest)
        listed += bits
    for k in range(count // RUN * RUN, count):
        if values[k] != 0:
            if listed == most:
                return -1, missing
            listing[listed] = k
            listed += 1
    for n in range(listed):
        value = values[listing[n]]
        codes[n] = np.int32(code_of_value(value, grid) - grid.zero)
        missing |= value != value
    return listed, missing


@intrinsic
def _add_listed(typing_context, places, factors, count, packed, sums, fresh):  # type: ignore[no-untyped-def]
    """Adds up a group of columns: `count` factors, each times the row of the weight that it is listed for."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, factors, count, packed, sums, fresh = args
        index, vectors = count.type, range(GROUP // LANES)

        def place(of: Any, kind: Any, number: int) -> Any:
            return builder.gep(builder.bitcast(of, kind.as_pointer()), [INT(number)])

        def turn(k: Any, totals: list[Any]) -> list[Any]:
            row = builder.zext(builder.load(builder.gep(places, [k])), index)
            # Of the pair of rows that are multiplied at once, the other one is multiplied with zero.
            shift = builder.shl(builder.trunc(builder.and_(row, index(1)), INT), INT(4))
            factor = builder.and_(builder.load(builder.gep(factors, [k])), INT(0xFFFF))
            both = builder.bitcast(everywhere(builder, builder.shl(factor, shift), LANES), FACTORS)
            at = builder.gep(packed, [builder.mul(builder.lshr(row, index(1)), index(2 * GROUP))])
            weights = [load(builder, place(at, FACTORS, n), FACTORS, 2) for n in vectors]
            return [add_products(builder, both, w, total) for w, total in zip(weights, totals, strict=True)]

        cells = [place(sums, SUMS, n) for n in vectors]
        before = [builder.select(fresh, ir.Constant(SUMS, None), load(builder, cell, SUMS, 4)) for cell in cells]
        for total, cell in zip(carry(builder, index(0), count, before, turn), cells, strict=True):
            store(builder, total, cell, 4)
        return context.get_dummy_value()

    return types.void(places, factors, types.intp, packed, sums, types.boolean), write


@loop
def multiply_listed(places, factors, counts, apart, b, b_at, b_group, rows, c, columns, fresh):  # type: ignore[no-untyped-def]
    """Computes `c = a @ b`, or `c += a @ b` unless `fresh`, as :func:`.multiply.multiply_pairs` does it.

    `a`: the values of each row that are listed, `counts` of them, rows `apart` from each other.
    """
    groups = (columns + GROUP - 1) // GROUP
    for row in range(rows):
        place, factor = pointer(places, row * apart), pointer(factors, row * apart)
        for group in range(groups):
            to = pointer(c, (row * groups + group) * GROUP)
            _add_listed(place, factor, counts[row], pointer(b, b_at + group * b_group), to, fresh)

"""Products of matrices, a few rows at a time, for loops that go on with the rows while they are in the cache.

A strip of a few rows of the product stays in registers while the loop runs along the depth: of floats, and of int16,
of which processors multiply pairs and add the two products up in one step. Against the libraries' products of large
matrices that spares a pass over memory, and with the narrow matrices of graph neural networks (a million rows, a
hundred columns) it is faster by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.llvm.vectors import (
    AVX2,
    INT,
    SHORT,
    VECTOR,
    carry,
    choose,
    everywhere,
    function,
    load,
    size_of,
    store,
)

MOST = 1 << 18
"""Bytes of a matrix that is worth having here: it stays in the second cache while the rows pass."""

LANES = 8
"""Sums of integers in a vector."""

GROUP = 2 * LANES
"""Columns of an integer weight that are packed together."""

HEIGHT = 6
"""Rows of a strip of integers: as many sums as fit into sixteen registers, beside the factors."""

SUMS, FACTORS = ir.VectorType(INT, LANES), ir.VectorType(SHORT, 2 * LANES)


def _strip(
    builder: Any,
    rows: int,
    vectors: int,
    kind: tuple[Any, int],
    depth: Any,
    fresh: Any,
    place: Callable[[int, int], Any],
    values: Callable[[Any, int], Any],
    factors: Callable[[Any, int], Any],
    add: Callable[[Any, Any, Any], Any],
) -> None:
    """Writes a loop over the depth for some rows and vectors of columns: `c = a @ b`, or `c += a @ b`.

    Args:
        builder: Where to write.
        rows, vectors: Of the strip; all of its sums are in registers.
        kind: Of a vector of sums, and the bytes that it is aligned to.
        depth: How many turns.
        fresh: If true, what is in `c` does not count.
        place: Returns where a vector of `c` is, given row and vector.
        values: Returns what a row has at a depth, in all lanes.
        factors: Returns a vector of `b` at a depth.
        add: Returns `sum + value * factor`, given value, factor and sum.
    """
    vector, align = kind
    cells = [place(row, column) for row in range(rows) for column in range(vectors)]
    zero = ir.Constant(vector, None)
    before = [builder.select(fresh, zero, load(builder, cell, vector, align)) for cell in cells]

    def turn(k: Any, sums: list[Any]) -> list[Any]:
        shared, after = [factors(k, column) for column in range(vectors)], []
        for row in range(rows):
            value = values(k, row)
            mine = sums[row * vectors : (row + 1) * vectors]
            after += [add(value, factor, total) for factor, total in zip(shared, mine, strict=True)]
        return after

    for total, cell in zip(carry(builder, depth.type(0), depth, before, turn), cells, strict=True):
        store(builder, total, cell, align)


# -- floats ----------------------------------------------------------------------------------------------------------

_SHAPES = {1: (6, 1), 2: (6, 5, 4, 3, 2, 1), 3: (4, 3, 2, 1)}
"""Heights of strips, by how many vectors wide they are: as many sums as fit into sixteen registers, beside the
factors. A column of single vectors is rare, and its remainder is done row by row."""


@intrinsic
def _float_strip(typing_context, rows, vectors, a, a_row, a_step, b, b_step, c, c_row, depth, fresh):  # type: ignore[no-untyped-def]
    """Multiplies a strip of `rows` rows and `vectors` vectors, one of `_SHAPES`; `a`, `b`, `c` point to its begin."""
    number = types.intp
    signature = types.void(number, number, a, number, number, b, number, c, number, number, types.boolean)

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, vectors, a, a_row, a_step, b, b_step, c, c_row, depth, fresh = args
        scalar = context.get_data_type(signature.args[2].dtype)
        size, index = size_of(scalar), depth.type
        lanes = VECTOR // size
        vector = ir.VectorType(scalar, lanes)
        multiply_add = function(builder, f"llvm.fmuladd.v{lanes}f{8 * size}", vector, vector, vector, vector)

        def place(row: int, column: int) -> Any:
            return builder.gep(c, [builder.add(builder.mul(c_row, index(row)), index(column * lanes))])

        def value(k: Any, row: int) -> Any:
            at = builder.add(builder.mul(a_row, index(row)), builder.mul(k, a_step))
            return everywhere(builder, builder.load(builder.gep(a, [at])), lanes)

        def factor(k: Any, column: int) -> Any:
            at = builder.add(builder.mul(k, b_step), index(column * lanes))
            return load(builder, builder.gep(b, [at]), vector, size)

        def add(value: Any, factor: Any, total: Any) -> Any:
            return builder.call(multiply_add, [value, factor, total])

        def strip(rows: int, vectors: int) -> Callable[[], None]:
            return lambda: _strip(builder, rows, vectors, (vector, size), depth, fresh, place, value, factor, add)

        def of_width(width: int) -> Callable[[], None]:
            return lambda: choose(builder, rows, {height: strip(height, width) for height in _SHAPES[width]})

        choose(builder, vectors, {width: of_width(width) for width in (2, 3, 1)})
        return context.get_dummy_value()

    return signature, write


@loop
def vectors_of(columns, itemsize):  # type: ignore[no-untyped-def]
    """Returns how many vectors hold a row of so many columns."""
    lanes = VECTOR // itemsize
    return (columns + lanes - 1) // lanes


@loop
def width_of(left):  # type: ignore[no-untyped-def]
    """Returns how many of the vectors that are left make a strip: two, but for a last one or the last three."""
    return left if left == 1 or left == 3 else 2


@loop
def multiply(a, a_at, a_row, a_step, rows, depth, b, b_row, groups, c, c_at, c_row, fresh):  # type: ignore[no-untyped-def]
    """Computes `c = a @ b`, or `c += a @ b` unless `fresh`, of flat arrays.

    Row `i` of `a` begins at `a_at + i * a_row` and goes on in steps of `a_step`. `b`: packed, see `pack`; or, with
    `b_row > 0`, a matrix whose rows are `b_row` apart and may be read up to whole vectors. Row `i` of `c`, of
    `groups` vectors, begins at `c_at + i * c_row`.
    """
    lanes = VECTOR // a.itemsize
    group = 0
    while group < groups:
        width = width_of(groups - group)
        from_ = pointer(b, group * lanes if b_row > 0 else group * lanes * depth)
        step = b_row if b_row > 0 else width * lanes
        most, row = 4 if width == 3 else 6, 0
        while row < rows:
            height = min(most, rows - row)
            if width == 1 and height < most:
                height = 1
            first, to = pointer(a, a_at + row * a_row), pointer(c, c_at + group * lanes + row * c_row)
            _float_strip(height, width, first, a_row, a_step, from_, step, to, c_row, depth, fresh)
            row += height
        group += width


@loop
def pack(b):  # type: ignore[no-untyped-def]
    """Returns a matrix `[depth, columns]` in the order in which `multiply` reads it, filled up with zeros."""
    depth, columns = b.shape
    lanes = VECTOR // b.itemsize
    groups = vectors_of(columns, b.itemsize)
    packed = np.zeros(groups * lanes * depth, b.dtype)
    group = 0
    while group < groups:
        width = width_of(groups - group) * lanes
        at = group * lanes * depth
        for k in range(depth):
            for j in range(min(width, columns - group * lanes)):
                packed[at + k * width + j] = b[k, group * lanes + j]
        group += width // lanes
    return packed


# -- pairs of int16 --------------------------------------------------------------------------------------------------


def add_products(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """Returns `total` and, of each pair of factors, the sum of the two products."""
    if AVX2:  # which LLVM does not see in the products below once it has moved them about
        multiply_pairs = function(builder, "llvm.x86.avx2.pmadd.wd", SUMS, FACTORS, FACTORS)
        return builder.add(total, builder.call(multiply_pairs, [a, b]))

    def half(pairs: Any, first: int) -> Any:
        lanes = ir.Constant(SUMS, list(range(first, 2 * LANES, 2)))
        return builder.sext(builder.shuffle_vector(pairs, ir.Constant(FACTORS, ir.Undefined), lanes), SUMS)

    products = (builder.mul(half(a, first), half(b, first)) for first in (0, 1))
    return builder.add(total, builder.add(*products))


@intrinsic
def integer_strip(typing_context, wide, a, a_row, b, c, c_row, pairs, fresh):  # type: ignore[no-untyped-def]
    """Multiplies a strip of `HEIGHT` rows and one vector of columns, two if it is `wide`; pointers to its begin."""
    number = types.intp
    signature = types.void(types.boolean, a, number, b, c, number, number, types.boolean)

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, a, a_row, b, c, c_row, pairs, fresh = args
        index = a_row.type
        rows = [builder.gep(a, [builder.mul(a_row, index(row))]) for row in range(HEIGHT)]

        def place(row: int, column: int) -> Any:
            return builder.gep(c, [builder.add(builder.mul(c_row, index(row)), index(column * LANES))])

        def value(k: Any, row: int) -> Any:
            pair = load(builder, builder.gep(rows[row], [builder.mul(k, index(2))]), INT, 2)
            return builder.bitcast(everywhere(builder, pair, LANES), FACTORS)

        def factor(k: Any, column: int) -> Any:
            at = builder.add(builder.mul(k, index(2 * GROUP)), index(2 * column * LANES))
            return load(builder, builder.gep(b, [at]), FACTORS, 2)

        def add(value: Any, factor: Any, total: Any) -> Any:
            return add_products(builder, value, factor, total)

        with builder.if_else(wide) as (two, one):
            for branch, vectors in ((two, 2), (one, 1)):
                with branch:
                    _strip(builder, HEIGHT, vectors, (SUMS, 4), pairs, fresh, place, value, factor, add)
        return context.get_dummy_value()

    return signature, write


@loop
def multiply_pairs(a, a_at, a_row, rows, b, b_at, b_group, c, columns, pairs, fresh):  # type: ignore[no-untyped-def]
    """Computes `c = a @ b`, or `c += a @ b` unless `fresh`.

    `a`: int16, from `a_at` on, rows `a_row` apart; `c`: int32, rows of whole groups; both with room for a multiple of
    `HEIGHT` rows. `b`: packed, of which `pairs` are taken; group `g` of them begins at `b_at + g * b_group`.
    """
    groups = (columns + GROUP - 1) // GROUP
    c_row = groups * GROUP
    for group in range(groups):
        from_, wide = pointer(b, b_at + group * b_group), columns - group * GROUP > LANES
        for row in range(0, rows, HEIGHT):
            first, to = pointer(a, a_at + row * a_row), pointer(c, row * c_row + group * GROUP)
            integer_strip(wide, first, a_row, from_, to, c_row, pairs, fresh)

"""Products of matrices, a few rows at a time, for loops that go on with the rows while they are in the cache.

A strip of a few rows of the product stays in registers while the loop runs along the depth. Against the libraries'
products of large matrices that spares a pass over memory, and with the narrow matrices of graph neural networks (a
million rows, a hundred columns) it is faster by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.vectors import everywhere, load

_WIDE = binding.get_host_cpu_features().get("avx512f", False)
VECTOR = 64 if _WIDE else 32
"""Bytes of the processor's vectors (of which it may make two or four, where they are shorter)."""

MOST = 1 << 18
"""Bytes of a matrix that is worth having here: it stays in the second cache while the rows pass."""


def _strip(rows: int, vectors: int) -> Any:
    """A loop over the depth for `rows` rows and `vectors` vectors of columns: `c = a @ b`, or `c += a @ b`."""

    @intrinsic
    def strip(typing_context, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, depth, fresh):  # type: ignore[no-untyped-def]
        number = types.intp
        signature = types.void(a, number, number, number, b, number, number, c, number, number, number, types.boolean)

        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a_array, a_at, a_row, a_step, b_array, b_at, b_step, c_array, c_at, c_row, depth, fresh = args

            def start(position: int, array: Any, at: Any) -> Any:
                data = arrayobj.make_array(signature.args[position])(context, builder, array).data
                return builder.gep(data, [at])

            a_start, b_start, c_start = start(0, a_array, a_at), start(4, b_array, b_at), start(7, c_array, c_at)
            scalar = context.get_data_type(signature.args[0].dtype)
            size = 4 if isinstance(scalar, ir.FloatType) else 8
            lanes = VECTOR // size
            vector, index = ir.VectorType(scalar, lanes), a_at.type
            kind = ir.FunctionType(vector, [vector] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f{8 * size}")

            cells = [(row, column) for row in range(rows) for column in range(vectors)]
            offsets = [builder.mul(a_row, index(row)) for row in range(rows)]
            places = {
                (row, column): builder.gep(
                    c_start, [builder.add(builder.mul(c_row, index(row)), index(column * lanes))]
                )
                for row, column in cells
            }
            zero = ir.Constant(vector, None)
            before = {
                cell: builder.select(fresh, zero, load(builder, place, vector, size)) for cell, place in places.items()
            }
            entry = builder.block
            body, done = builder.append_basic_block("depth"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed(">", depth, index(0)), body, done)

            builder.position_at_end(body)
            k = builder.phi(index)
            sums = {cell: builder.phi(vector) for cell in cells}
            b_row = builder.mul(k, b_step)
            factors = [
                load(builder, builder.gep(b_start, [builder.add(b_row, index(column * lanes))]), vector, size)
                for column in range(vectors)
            ]
            a_depth = builder.mul(k, a_step)
            after = {}
            for row in range(rows):
                value = builder.load(builder.gep(a_start, [builder.add(offsets[row], a_depth)]))
                value = everywhere(builder, value, lanes)
                for column in range(vectors):
                    after[row, column] = builder.call(multiply_add, [value, factors[column], sums[row, column]])
            following = builder.add(k, index(1))
            builder.cbranch(builder.icmp_signed("<", following, depth), body, done)
            k.add_incoming(index(0), entry)
            k.add_incoming(following, body)
            for cell in cells:
                sums[cell].add_incoming(before[cell], entry)
                sums[cell].add_incoming(after[cell], body)

            builder.position_at_end(done)
            totals = {cell: builder.phi(vector) for cell in cells}
            for cell in cells:
                totals[cell].add_incoming(before[cell], entry)
                totals[cell].add_incoming(after[cell], body)
            for cell in cells:
                stored = builder.store(totals[cell], builder.bitcast(places[cell], vector.as_pointer()))
                stored.align = size
            return context.get_dummy_value()

        return signature, write

    return strip


# As many sums as fit into sixteen registers, beside the factors.
_11, _61 = _strip(1, 1), _strip(6, 1)
_12, _22, _32, _42, _52, _62 = (_strip(rows, 2) for rows in range(1, 7))
_13, _23, _33, _43 = (_strip(rows, 3) for rows in range(1, 5))


@loop
def groups_of(columns, itemsize):  # type: ignore[no-untyped-def]
    """How many vectors hold a row of so many columns."""
    lanes = VECTOR // itemsize
    return (columns + lanes - 1) // lanes


@loop
def multiply(a, a_at, a_row, a_step, rows, depth, b, b_row, groups, c, c_at, c_row, fresh):  # type: ignore[no-untyped-def]
    """`c = a @ b`, or `c += a @ b` unless `fresh`, of flat arrays.

    Row `i` of `a` begins at `a_at + i * a_row` and goes on in steps of `a_step`. `b`: packed, see `pack`; or, with
    `b_row > 0`, a matrix whose rows are `b_row` apart and may be read up to whole vectors. Row `i` of `c`, of
    `groups` vectors, begins at `c_at + i * c_row`.
    """
    lanes = VECTOR // a.itemsize
    group = 0
    while group < groups:
        left = groups - group
        width = left if left == 1 or left == 3 else 2
        at = group * lanes if b_row > 0 else group * lanes * depth
        step = b_row if b_row > 0 else width * lanes
        to = c_at + group * lanes
        r = 0
        if width == 2:
            while rows - r >= 6:
                _62(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
                r += 6
            if rows - r == 5:
                _52(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
            elif rows - r == 4:
                _42(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
            elif rows - r == 3:
                _32(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
            elif rows - r == 2:
                _22(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
            elif rows - r == 1:
                _12(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
        elif width == 3:
            while rows - r >= 4:
                _43(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
                r += 4
            if rows - r == 3:
                _33(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
            elif rows - r == 2:
                _23(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
            elif rows - r == 1:
                _13(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
        else:
            while rows - r >= 6:
                _61(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
                r += 6
            while r < rows:
                _11(a, a_at + r * a_row, a_row, a_step, b, at, step, c, to + r * c_row, c_row, depth, fresh)
                r += 1
        group += width


@loop
def pack(b):  # type: ignore[no-untyped-def]
    """A matrix `[depth, columns]` in the order in which `multiply` reads it, filled up with zeros."""
    depth, columns = b.shape
    lanes = VECTOR // b.itemsize
    groups = groups_of(columns, b.itemsize)
    packed = np.zeros(groups * lanes * depth, b.dtype)
    group = 0
    while group < groups:
        left = groups - group
        width = (left if left == 1 or left == 3 else 2) * lanes
        at = group * lanes * depth
        for k in range(depth):
            for j in range(min(width, columns - group * lanes)):
                packed[at + k * width + j] = b[k, group * lanes + j]
        group += width // lanes
    return packed

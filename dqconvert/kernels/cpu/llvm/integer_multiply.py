"""Products of matrices of small integers, a few rows at a time, for loops that go on with the rows.

As :mod:`dqconvert.kernels.cpu.llvm.multiply` does it for floats, of int16 factors: processors multiply pairs of them,
and add the two products up, in one step.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.pointer import pointer
from dqconvert.kernels.cpu.llvm.vectors import everywhere, load

LANES = 8
"""Sums in a vector."""

GROUP = 2 * LANES
"""Columns that are packed together."""

HEIGHT = 6
"""Rows of a strip: as many sums as fit into sixteen registers, beside the factors."""

_PAIRS = 2 * GROUP
"""Numbers of a group for each pair of the depth."""


SUMS, FACTORS = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), 2 * LANES)
_IN_ONE_STEP = binding.get_host_cpu_features().get("avx2", False)


def add_products(builder: Any, a: Any, b: Any) -> Any:
    """Of each pair of factors, the sum of the two products."""
    if _IN_ONE_STEP:  # which LLVM does not see in the products below once it has moved them about
        kind = ir.FunctionType(SUMS, [FACTORS, FACTORS])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        return builder.call(function, [a, b])

    def half(pairs: Any, first: int) -> Any:
        lanes = ir.Constant(SUMS, list(range(first, 2 * LANES, 2)))
        return builder.sext(builder.shuffle_vector(pairs, ir.Constant(FACTORS, ir.Undefined), lanes), SUMS)

    return builder.add(builder.mul(half(a, 0), half(b, 0)), builder.mul(half(a, 1), half(b, 1)))


def _strip(vectors: int) -> Any:
    """A loop over the depth for `HEIGHT` rows and `vectors` vectors of columns: `c = a @ b`, or `c += a @ b`."""

    @intrinsic
    def strip(typing_context, a, a_row, b, c, c_row, pairs, fresh):  # type: ignore[no-untyped-def]
        number = types.intp
        signature = types.void(a, number, b, c, number, number, types.boolean)

        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            a, a_row, b, c, c_row, pairs, fresh = args
            index, integer = a_row.type, ir.IntType(32)

            cells = [(row, column) for row in range(HEIGHT) for column in range(vectors)]
            rows = [builder.gep(a, [builder.mul(a_row, index(row))]) for row in range(HEIGHT)]
            places = {
                (row, column): builder.gep(c, [builder.add(builder.mul(c_row, index(row)), index(column * LANES))])
                for row, column in cells
            }
            zero = ir.Constant(SUMS, None)
            before = {
                cell: builder.select(fresh, zero, load(builder, place, SUMS, 4)) for cell, place in places.items()
            }
            entry = builder.block
            body, done = builder.append_basic_block("depth"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed(">", pairs, index(0)), body, done)

            builder.position_at_end(body)
            k = builder.phi(index)
            sums = {cell: builder.phi(SUMS) for cell in cells}
            b_row = builder.mul(k, index(_PAIRS))
            factors = [
                load(builder, builder.gep(b, [builder.add(b_row, index(2 * column * LANES))]), FACTORS, 2)
                for column in range(vectors)
            ]
            after = {}
            for row in range(HEIGHT):
                pair = load(builder, builder.gep(rows[row], [builder.mul(k, index(2))]), integer, 2)
                value = builder.bitcast(everywhere(builder, pair, LANES), FACTORS)
                for column in range(vectors):
                    product = add_products(builder, value, factors[column])
                    after[row, column] = builder.add(sums[row, column], product)
            following = builder.add(k, index(1))
            builder.cbranch(builder.icmp_signed("<", following, pairs), body, done)
            k.add_incoming(index(0), entry)
            k.add_incoming(following, body)
            for cell in cells:
                sums[cell].add_incoming(before[cell], entry)
                sums[cell].add_incoming(after[cell], body)

            builder.position_at_end(done)
            totals = {cell: builder.phi(SUMS) for cell in cells}
            for cell in cells:
                totals[cell].add_incoming(before[cell], entry)
                totals[cell].add_incoming(after[cell], body)
            for cell in cells:
                stored = builder.store(totals[cell], builder.bitcast(places[cell], SUMS.as_pointer()))
                stored.align = 4
            return context.get_dummy_value()

        return signature, write

    return strip


_61, _62 = _strip(1), _strip(2)


@loop
def multiply(a, a_at, a_row, rows, b, b_at, b_group, c, columns, pairs, fresh):  # type: ignore[no-untyped-def]
    """`c = a @ b`, or `c += a @ b` unless `fresh`.

    `a`: int16, from `a_at` on, rows `a_row` apart; `c`: int32, rows of whole groups; both with room for a multiple of
    `HEIGHT` rows. `b`: packed, of which `pairs` are taken; group `g` of them begins at `b_at + g * b_group`.
    """
    groups = (columns + GROUP - 1) // GROUP
    c_row = groups * GROUP
    for group in range(groups):
        from_ = pointer(b, b_at + group * b_group)
        for row in range(0, rows, HEIGHT):
            first, to = pointer(a, a_at + row * a_row), pointer(c, row * c_row + group * GROUP)
            if columns - group * GROUP > LANES:
                _62(first, a_row, from_, to, c_row, pairs, fresh)
            else:
                _61(first, a_row, from_, to, c_row, pairs, fresh)

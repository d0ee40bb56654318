"""The way back of a chain whose ranges are learned, in one pass: what it made of a value is made again in a register,
and the gradient goes back through it there. See :mod:`.chain_span` for the way forward, and
:mod:`dqconvert.kernels.learned` for the gradients.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.llvm.chain_span import GRID
from dqconvert.kernels.cpu.llvm.vectors import INT, VECTOR, function
from dqconvert.kernels.cpu.llvm.writer import GridVectors, Writer

LANES = 16
"""Numbers that each sum is added up in, float64, as many as there are lanes at most; the sum is theirs."""

_DOUBLE = ir.DoubleType()


class _BackWriter(Writer):
    """Writes the way back through grids, of the variable `grad`."""

    def __init__(self, context: Any, builder: Any, value_type: Any) -> None:
        super().__init__(context, builder, value_type, vectors=1)
        self.zero = ir.Constant(self.vector, None)

    def variables(self, count: int) -> list[Any]:
        """Returns so many, which are zero."""
        made = [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]
        for one in made:
            self.builder.store(self.zero, one)
        return made

    def steps(self, grid: GridVectors, value: Any) -> Any:
        """Returns what is rounded to a code."""
        return self.builder.fadd(self.builder.fdiv(value, grid.scale), grid.zero_point)

    def back(self, grid: GridVectors, code: Any, grad: Any, sums: list[Any]) -> None:
        """Zeroes the gradient of values at the ends of a grid or beyond. Adds up, of the gradient: that of values
        inside times how far they were rounded, in steps; that below; that above."""
        builder, given = self.builder, self.builder.load(grad)
        under = builder.fcmp_ordered("<=", code, grid.low)
        over = builder.fcmp_ordered(">=", code, grid.high)
        clipped = builder.or_(under, over)
        moved = builder.fmul(given, builder.fsub(self.rint(code), code))
        found = builder.select(clipped, self.zero, moved), *(builder.select(x, given, self.zero) for x in (under, over))
        for variable, more in zip(sums, found, strict=True):
            self.change(variable, partial(builder.fadd, more))
        builder.store(builder.select(clipped, self.zero, given), grad)

    def added_up(self, values: Any) -> Any:
        """Returns the sum of a vector, in any order."""
        name = f"llvm.vector.reduce.fadd.{self.suffix}"
        add = function(self.builder, name, self.scalar, self.scalar, self.vector)
        return self.builder.call(add, [ir.Constant(self.scalar, 0.0), values], fastmath=("reassoc",))

    def flush(self, sums: list[Any], place: Any) -> None:
        """Adds up in float64, `[LANES]` for each variable, from a pointer on."""
        builder, wide = self.builder, ir.VectorType(_DOUBLE, self.lanes)
        for number, variable in enumerate(sums):
            to = builder.bitcast(builder.gep(place, [INT(number * LANES)]), wide.as_pointer())
            before = builder.load(to)
            before.align = 8
            found = builder.load(variable)
            builder.store(builder.fadd(before, builder.fpext(found, wide) if self.size < 8 else found), to).align = 8


assert VECTOR // 4 <= LANES


@intrinsic
def learned_span(  # type: ignore[no-untyped-def]
    typing_context, x, grad, bias, other, at_sum, out, count, alpha, flags, kinds, grids, sums
):
    """The gradients of `count` values by those of what a chain made of them.

    All but the numbers are pointers (:func:`.memory.pointer`): `x`, `grad`, `bias` and `other` to as many values,
    `at_sum` and `out` to where the gradients go of the sum, and of the values; `flags` to four bytes, whether there is
    a bias, another value, a ReLU, and `at_sum`; `kinds` and `grids` as for :func:`.chain_span.chain_span`; `sums` to
    float64 `[3, 3, LANES]`, of each grid what :meth:`_BackWriter.back` adds up.
    """
    arguments = (x, grad, bias, other, at_sum, out, types.intp, alpha, flags, kinds, grids, sums)
    return types.void(*arguments), _write_span


def _write_span(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    x, grad, bias, other, at_sum, out, count, alpha, flags, kinds, grids, sums = args
    writer = _BackWriter(context, builder, signature.args[0].dtype)
    index, size = count.type, writer.size

    def flag(array: Any, place: int, bit: int = 1) -> Any:
        byte = builder.zext(builder.load(builder.gep(array, [index(place)])), INT)
        return builder.icmp_unsigned("!=", builder.and_(byte, INT(bit)), INT(0))

    has_bias, has_other, relu, keeps_sum = (flag(flags, place) for place in range(4))
    there = [flag(kinds, place, GRID) for place in range(3)]
    grid = [writer.grid(builder.gep(grids, [index(4 * place)])) for place in range(3)]
    found = [writer.variables(3) for _ in range(3)]
    factor, (value, before, at, code_0, code_1) = writer.everywhere(alpha), writer.variables(5)

    def step(start: Any, mask: Any) -> None:
        def given(array: Any) -> Any:
            return writer.load(builder.gep(array, [start]), writer.vector, size, mask)

        def rounded(place: int, code: Any) -> None:
            builder.store(writer.steps(grid[place], builder.load(value)), code)
            builder.store(writer.value(grid[place], writer.rint(builder.load(code))), value)

        builder.store(given(x), value)
        builder.store(given(grad), at)
        with builder.if_then(there[0]):
            rounded(0, code_0)
        with builder.if_then(has_bias):
            writer.change(value, lambda old: builder.fadd(old, given(bias)))
        with builder.if_then(has_other):
            writer.change(value, lambda old: builder.fadd(old, builder.fmul(factor, given(other))))
        with builder.if_then(there[1]):
            rounded(1, code_1)
        builder.store(builder.load(value), before)
        with builder.if_then(relu):
            negative = builder.fcmp_ordered("<=", builder.load(value), writer.zero)
            writer.change(value, lambda old: builder.select(negative, writer.zero, old))
        with builder.if_then(there[2]):
            writer.back(grid[2], writer.steps(grid[2], builder.load(value)), at, found[2])
        with builder.if_then(relu):
            negative = builder.fcmp_ordered("<=", builder.load(before), writer.zero)
            writer.change(at, lambda old: builder.select(negative, writer.zero, old))
        with builder.if_then(there[1]):
            writer.back(grid[1], builder.load(code_1), at, found[1])
        with builder.if_then(keeps_sum):
            writer.store(builder.load(at), builder.gep(at_sum, [start]), size, mask)
        with builder.if_then(there[0]):
            writer.back(grid[0], builder.load(code_0), at, found[0])
        writer.store(builder.load(at), builder.gep(out, [start]), size, mask)

    writer.each(count, step)
    for place in range(3):
        with builder.if_then(there[place]):
            writer.flush(found[place], builder.gep(sums, [index(3 * LANES * place)]))
    return context.get_dummy_value()


@intrinsic
def grid_back_span(typing_context, x, grid, grad, count, sums):  # type: ignore[no-untyped-def]
    """The same of one grid, of `grad` in place: `grid` points to `[4]`, and `sums` to float64 `[3, LANES]`."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, grid, grad, count, sums = args
        writer = _BackWriter(context, builder, signature.args[0].dtype)
        numbers, found, (at,) = writer.grid(grid), writer.variables(3), writer.variables(1)

        def step(start: Any, mask: Any) -> None:
            here = builder.gep(grad, [start])
            builder.store(writer.load(here, writer.vector, writer.size, mask), at)
            value = writer.load(builder.gep(x, [start]), writer.vector, writer.size, mask)
            writer.back(numbers, writer.steps(numbers, value), at, found)
            writer.store(builder.load(at), here, writer.size, mask)

        writer.each(count, step)
        writer.flush(found, sums)
        return context.get_dummy_value()

    return types.void(x, grid, grad, types.intp, sums), write


@intrinsic
def message_back_span(typing_context, x, grad, weight, grid, to_x, count, sums):  # type: ignore[no-untyped-def]
    """Adds to `to_x` the gradients of `count` values by those of the messages that `weight` makes of them.

    `grid` points to `[4]`, and `sums` to float64 `[2, LANES]`: what is added up of values below the grid, and above.
    Returns the gradient of the weight.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, grad, weight, grid, to_x, count, sums = args
        writer = _BackWriter(context, builder, signature.args[0].dtype)
        numbers, factor, found = writer.grid(grid), writer.everywhere(weight), writer.variables(2)
        (total,) = writer.variables(1)

        def step(start: Any, mask: Any) -> None:
            value, given = (writer.load(builder.gep(t, [start]), writer.vector, writer.size, mask) for t in (x, grad))
            code = writer.steps(numbers, builder.fmul(factor, value))
            under = builder.fcmp_ordered("<=", code, numbers.low)
            over = builder.fcmp_ordered(">=", code, numbers.high)
            for variable, where in zip(found, (under, over), strict=True):
                more = builder.select(where, given, writer.zero)
                writer.change(variable, partial(builder.fadd, more))
            passed = builder.select(builder.or_(under, over), writer.zero, given)
            here = builder.gep(to_x, [start])
            before = writer.load(here, writer.vector, writer.size, mask)
            writer.store(builder.fadd(before, builder.fmul(factor, passed)), here, writer.size, mask)
            writer.change(total, lambda old: builder.fadd(old, builder.fmul(passed, value)))

        writer.each(count, step)
        writer.flush(found, sums)
        return writer.added_up(builder.load(total))

    return x.dtype(x, grad, weight, grid, to_x, types.intp, sums), write

"""Loops over values that lie in a row, written in vectors: whole ones first, then with a mask what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from dqconvert.kernels.cpu.llvm.vectors import (
    BYTE,
    INT,
    LONG,
    VECTOR,
    constant,
    everywhere,
    function,
    load,
    size_of,
    store,
)


class GridVectors(NamedTuple):
    """A grid in vectors."""

    scale: Any
    zero_point: Any
    low: Any
    high: Any


class Writer:
    """Writes a loop over values of one type, several of the processor's `vectors` at a time: that spares branches."""

    def __init__(self, context: Any, builder: Any, value_type: Any, vectors: int = 4) -> None:
        self.context, self.builder, self.value_type = context, builder, value_type
        self.scalar = scalar = context.get_data_type(value_type)
        self.size = size_of(scalar)
        self.lanes = vectors * VECTOR // self.size
        self.vector = ir.VectorType(scalar, self.lanes)
        self.bytes = ir.VectorType(BYTE, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.size}"

    def everywhere(self, value: Any) -> Any:
        return everywhere(self.builder, value, self.lanes)

    def same(self, number: float, kind: Any = None) -> Any:
        return constant(number, kind or self.vector)

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Calls a function of LLVM's own."""
        return self.builder.call(function(self.builder, name, result, *(arg.type for arg in args)), args)

    def numbers(self, array: Any, count: int = 4) -> list[Any]:
        """Returns the first numbers behind a pointer, each in all lanes."""
        return [self.everywhere(self.builder.load(self.builder.gep(array, [LONG(i)]))) for i in range(count)]

    def grid(self, array: Any) -> GridVectors:
        """Returns the grid behind a pointer to `[4]`."""
        return GridVectors(*self.numbers(array))

    def suffix_of(self, kind: Any) -> str:
        """Returns LLVM's name of a vector, of these floats or of integers."""
        return self.suffix if kind == self.vector else f"v{self.lanes}i{kind.element.width}"

    def load(self, place: Any, kind: Any, align: int, mask: Any) -> Any:
        """Returns a vector of a type; with a mask, zero in lanes that it leaves out."""
        if mask is None:
            return load(self.builder, place, kind, align)
        place, name = self.builder.bitcast(place, kind.as_pointer()), f"llvm.masked.load.{self.suffix_of(kind)}.p0"
        return self.call(name, kind, place, INT(align), mask, ir.Constant(kind, None))

    def store(self, value: Any, place: Any, align: int, mask: Any) -> None:
        if mask is None:
            store(self.builder, value, place, align)
            return
        place = self.builder.bitcast(place, value.type.as_pointer())
        self.call(f"llvm.masked.store.{self.suffix_of(value.type)}.p0", ir.VoidType(), value, place, INT(align), mask)

    def change(self, variable: Any, by: Callable[[Any], Any]) -> None:
        self.builder.store(by(self.builder.load(variable)), variable)

    def code(self, grid: GridVectors, value: Any) -> Any:
        """Returns the number of steps, which may lie beyond the grid's ends."""
        return self.rint(self.builder.fadd(self.builder.fdiv(value, grid.scale), grid.zero_point))

    def rint(self, value: Any) -> Any:
        """Returns values rounded, halves to even."""
        return self.call(f"llvm.rint.{self.suffix}", self.vector, value)

    def value(self, grid: GridVectors, code: Any) -> Any:
        """Returns the value on the grid."""
        code = self.clamped(code, grid.low, grid.high)
        return self.builder.fmul(self.builder.fsub(code, grid.zero_point), grid.scale)

    def clamped(self, value: Any, low: Any, high: Any) -> Any:
        """Clamps values between two vectors; NaN stays NaN."""
        value = self.builder.select(self.builder.fcmp_ordered("<", value, low), low, value)
        return self.builder.select(self.builder.fcmp_ordered(">", value, high), high, value)

    @staticmethod
    def wide_then_narrow(
        context: Any, builder: Any, value_type: Any, count: Any, step_of: Callable[[Writer], Callable[[Any, Any], None]]
    ) -> None:
        """Writes a loop of four vectors at a time, and one of single vectors for narrow rows and what is left."""
        wide, narrow = (Writer(context, builder, value_type, vectors) for vectors in (4, 1))
        narrow_from = wide.each_whole(count.type(0), count, step_of(wide))
        narrow.each(count, step_of(narrow), narrow_from)

    def each(self, count: Any, step: Callable[[Any, Any], None], start: Any = None) -> None:
        """Calls `step` for whole vectors (from `start` on), and with a mask for the values that are left."""
        builder = self.builder
        whole = self.each_whole(count.type(0) if start is None else start, count, step)
        left = builder.sub(count, whole)
        with builder.if_then(builder.icmp_signed(">", left, count.type(0))):
            numbers = ir.Constant(ir.VectorType(LONG, self.lanes), list(range(self.lanes)))
            step(whole, builder.icmp_signed("<", numbers, self.everywhere(left)))

    def each_whole(self, start: Any, stop: Any, step: Callable[[Any, Any], None]) -> Any:
        """Calls `step` for whole vectors alone; returns where they end."""
        builder, index = self.builder, stop.type
        end = builder.add(start, builder.and_(builder.sub(stop, start), index(-self.lanes)))
        with cgutils.for_range_slice(builder, start, end, index(self.lanes), index, inc=True) as (at, _):
            step(at, None)
        return end

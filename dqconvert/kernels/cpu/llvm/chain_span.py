"""A chain over values that lie in a row, in one pass: what happens to a value happens while it is in a register.

    value -> grid 0 -> + bias -> + alpha * other -> grid 1 -> ReLU -> grid 2

The processor's vectors hold several values, and the loop is written in vectors: a compiler does not make them out of a
loop that stores bytes beside floats and notes values on the way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.llvm.vectors import INT, LONG
from dqconvert.kernels.cpu.llvm.writer import GridVectors, Writer

GRID, CLIP, NOTE = 1, 2, 4
"""Bits of a place's `kind`: there is a grid; gradients of clipped values do not pass; values outside are noted."""

SUM_BIT, BOTH_BITS = 1, 3
"""What is left of a value's bits where its gradient passes to the sum alone; to the sum and to what came before."""

_LARGEST = float(np.finfo(np.float32).max)  # ranges are float32


def _note(values, lanes, lo, hi, counts, below, above, room):  # type: ignore[no-untyped-def]
    """Keeps the values outside of the bounds; counts them by side, those that are not finite, and a lack of room."""
    if counts[0] + lanes > room or counts[1] + lanes > room:
        counts[3] = 1
        return
    for lane in range(lanes):
        v = values[lane]
        if v < lo:
            if v >= -_LARGEST:
                below[counts[0]] = v
                counts[0] += 1
            else:
                counts[2] += 1
        elif not (v <= hi):
            if v <= _LARGEST:
                above[counts[1]] = v
                counts[1] += 1
            else:
                counts[2] += 1


class _Place(NamedTuple):
    """One of the three grids, as the loop holds it.

    Attributes:
        there, clip, note: What its kind says.
        grid: Its numbers.
        lo, hi: The bounds; `lowest`, `highest`: the same, in vectors.
        counts, below, above: Where it notes.
    """

    there: Any
    clip: Any
    note: Any
    grid: GridVectors
    lo: Any
    hi: Any
    lowest: Any
    highest: Any
    counts: Any
    below: Any
    above: Any


class _ChainWriter(Writer):
    """Writes the grids of a chain; `room`: how many values each place may note on either side."""

    def __init__(self, context: Any, builder: Any, value_type: Any, room: Any) -> None:
        super().__init__(context, builder, value_type)
        self.room = room

    def round(self, place: _Place, value: Any, bits: Any, has_bits: Any, left: int, mask: Any) -> None:
        """One grid, of the variables `value` and `bits`."""
        builder = self.builder
        with builder.if_then(place.there):
            with builder.if_then(place.note):
                self.note(place, builder.load(value), mask)
            code = self.code(place.grid, builder.load(value))
            with builder.if_then(builder.and_(has_bits, place.clip)):
                clipped = builder.or_(
                    builder.fcmp_ordered("<=", code, place.grid.low),
                    builder.fcmp_ordered(">=", code, place.grid.high),
                )
                kept = builder.select(clipped, self.same(left, self.bytes), self.same(BOTH_BITS, self.bytes))
                self.change(bits, lambda old: builder.and_(old, kept))
            builder.store(self.value(place.grid, code), value)

    def note(self, place: _Place, value: Any, mask: Any) -> None:
        """Notes values outside of the bounds, which few are."""
        builder = self.builder
        inside = builder.and_(
            builder.fcmp_ordered(">=", value, place.lowest), builder.fcmp_ordered("<=", value, place.highest)
        )
        outside = builder.not_(inside)
        if mask is not None:
            outside = builder.and_(outside, mask)
        whole = builder.bitcast(outside, ir.IntType(self.lanes))
        with builder.if_then(builder.icmp_unsigned("!=", whole, ir.Constant(whole.type, 0)), likely=False):
            # Lanes that do not count stand within the bounds.
            counted = builder.select(outside, value, place.highest)
            buffer = cgutils.alloca_once(builder, self.vector)
            builder.store(counted, buffer)
            pointer, count = types.CPointer(self.value_type), types.CPointer(types.int64)
            signature = types.void(
                pointer, types.intp, self.value_type, self.value_type, count, pointer, pointer, types.intp
            )
            first = builder.bitcast(buffer, self.scalar.as_pointer())
            args = (first, LONG(self.lanes), place.lo, place.hi, place.counts, place.below, place.above, self.room)
            self.context.compile_internal(builder, _note, signature, args)


@intrinsic
def chain_span(  # type: ignore[no-untyped-def]
    typing_context, values, count, bits, bias, other, alpha, flags, kinds, grids, bounds, counts, noted, room
):
    """Passes `count` values through the chain, in place.

    All but the numbers are pointers (:func:`.pointer.pointer`): `values`, `bias` and `other` to as
    many values; `bits` to as many bytes; `flags` to four bytes, whether there are bits, a bias, another value, and
    whether there is a ReLU; `kinds` to three bytes; `grids` to `[3, 4]`, scale, zero point, lowest and highest code;
    `bounds` to `[3, 2]`; `counts` to int64 `[3, 4]`; `noted` to `[3, 2, room]`.
    """
    number = types.intp
    arguments = (values, number, bits, bias, other, alpha, flags, kinds, grids, bounds, counts, noted, number)
    return types.void(*arguments), _write_span


def _write_span(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    values, count, bits, bias, other, alpha, flags, kinds, grids, bounds, counts, noted, room = args
    value_type = signature.args[0].dtype
    writer = _ChainWriter(context, builder, value_type, room)
    index = count.type

    def at(array: Any, place: int) -> Any:
        return builder.load(builder.gep(array, [index(place)]))

    def flag(array: Any, place: int, bit: int = 1) -> Any:
        byte = builder.zext(at(array, place), INT)
        return builder.icmp_unsigned("!=", builder.and_(byte, INT(bit)), INT(0))

    has_bits, has_bias, has_other, relu = (flag(flags, place) for place in range(4))
    places = []
    for place in range(3):
        lo, hi = at(bounds, 2 * place), at(bounds, 2 * place + 1)
        below, above = (builder.gep(noted, [builder.mul(room, index(2 * place + side))]) for side in (0, 1))
        places.append(
            _Place(
                there=flag(kinds, place, GRID),
                clip=flag(kinds, place, CLIP),
                note=flag(kinds, place, NOTE),
                grid=writer.grid(builder.gep(grids, [index(4 * place)])),
                lo=lo,
                hi=hi,
                lowest=writer.everywhere(lo),
                highest=writer.everywhere(hi),
                counts=builder.gep(counts, [index(4 * place)]),
                below=below,
                above=above,
            )
        )
    factor, nothing = writer.everywhere(alpha), ir.Constant(writer.vector, None)
    value, bit = cgutils.alloca_once(builder, writer.vector), cgutils.alloca_once(builder, writer.bytes)

    def step(start: Any, mask: Any) -> None:
        here = builder.gep(values, [start])
        builder.store(writer.load(here, writer.vector, writer.size, mask), value)
        builder.store(writer.same(BOTH_BITS, writer.bytes), bit)
        writer.round(places[0], value, bit, has_bits, SUM_BIT, mask)
        with builder.if_then(has_bias):
            more = writer.load(builder.gep(bias, [start]), writer.vector, writer.size, mask)
            writer.change(value, lambda old: builder.fadd(old, more))
        with builder.if_then(has_other):
            added = writer.load(builder.gep(other, [start]), writer.vector, writer.size, mask)
            writer.change(value, lambda old: builder.fadd(old, builder.fmul(factor, added)))
        writer.round(places[1], value, bit, has_bits, 0, mask)
        with builder.if_then(relu):
            negative = builder.fcmp_ordered("<=", builder.load(value), nothing)
            writer.change(bit, lambda old: builder.select(negative, ir.Constant(writer.bytes, None), old))
            writer.change(value, lambda old: builder.select(negative, nothing, old))
        writer.round(places[2], value, bit, has_bits, 0, mask)
        writer.store(builder.load(value), here, writer.size, mask)
        with builder.if_then(has_bits):
            writer.store(builder.load(bit), builder.gep(bits, [start]), 1, mask)

    writer.each(count, step)
    return context.get_dummy_value()


@intrinsic
def round_span(typing_context, values, count, grid):  # type: ignore[no-untyped-def]
    """Rounds `count` values to a grid, in place; pointers to the values and to `[4]`, as in :func:`chain_span`."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, count, grid = args
        writer = Writer(context, builder, signature.args[0].dtype)
        numbers = writer.grid(grid)

        def step(start: Any, mask: Any) -> None:
            here = builder.gep(values, [start])
            value = writer.load(here, writer.vector, writer.size, mask)
            writer.store(writer.value(numbers, writer.code(numbers, value)), here, writer.size, mask)

        writer.each(count, step)
        return context.get_dummy_value()

    return types.void(values, types.intp, grid), write


@intrinsic
def pass_span(typing_context, grad, passes, bit, out, count):  # type: ignore[no-untyped-def]
    """Copies `count` values of `grad` to `out` where `passes` has the bit, else zero; pointers but for the numbers."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        grad, passes, bit, out, count = args
        writer = Writer(context, builder, signature.args[0].dtype, vectors=1)
        wanted, none = writer.everywhere(bit), ir.Constant(writer.bytes, None)

        def step(start: Any, mask: Any) -> None:
            value = writer.load(builder.gep(grad, [start]), writer.vector, writer.size, mask)
            found = builder.and_(writer.load(builder.gep(passes, [start]), writer.bytes, 1, mask), wanted)
            kept = builder.select(builder.icmp_unsigned("!=", found, none), value, ir.Constant(writer.vector, None))
            writer.store(kept, builder.gep(out, [start]), writer.size, mask)

        writer.each(count, step)
        return context.get_dummy_value()

    return types.void(grad, passes, types.uint8, out, types.intp), write

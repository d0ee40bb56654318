"""Requantization by vectors: from values, from sums of integers and from sums of values to codes, bytes.

Processors round as they make integers of floats, and saturate as they make integers shorter. What LLVM makes of such
a loop, written with comparisons, takes half as long again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.llvm.vectors import AVX2, BIT, BYTE, FLOAT, INT, LONG, SHORT, everywhere, pick
from dqconvert.kernels.cpu.llvm.writer import Writer

_LANES = 8
"""Of a vector of the processor's that holds float32."""

_FAR = float(1 << 14)
"""Beyond the ends of every grid; with it, nothing overflows in 16 bits."""


class Bytes:
    """Writes how floats become bytes: rounded, halves to even, counted from `low` on, and clamped to `top`."""

    def __init__(self, writer: Writer, low: Any, top: Any) -> None:
        self.writer, self.builder = writer, writer.builder
        # As floats, as shorts, and as bytes: whichever is used, the compiler drops the others.
        self.low, self.top = (writer.everywhere(self.builder.sitofp(end, writer.scalar)) for end in (low, top))
        self.less = everywhere(self.builder, self.builder.trunc(low, SHORT), 2 * _LANES)
        self.most = everywhere(self.builder, self.builder.trunc(top, BYTE), 4 * _LANES)

    def of(self, value: Any) -> Any:
        if AVX2 and self.writer.size == 4 and self.writer.lanes == 4 * _LANES:
            return self._packed(value)
        builder, writer = self.builder, self.writer
        value = builder.fsub(writer.rint(value), self.low)
        value = builder.select(builder.fcmp_ordered("<", value, writer.same(0)), writer.same(0), value)
        value = builder.select(builder.fcmp_ordered(">", value, self.top), self.top, value)
        return builder.trunc(builder.fptosi(value, ir.VectorType(INT, writer.lanes)), writer.bytes)

    def _packed(self, value: Any) -> Any:
        builder = self.builder
        value = builder.select(builder.fcmp_ordered(">", value, self.writer.same(_FAR)), self.writer.same(_FAR), value)
        ints = ir.VectorType(INT, _LANES)
        shorts, whole = ir.VectorType(SHORT, 2 * _LANES), ir.VectorType(BYTE, 4 * _LANES)
        parts = [
            self.writer.call("llvm.x86.avx.cvt.ps2dq.256", ints, pick(builder, value, None, range(k, k + _LANES)))
            for k in range(0, 4 * _LANES, _LANES)
        ]
        halves = [self.writer.call("llvm.x86.avx2.packssdw", shorts, *parts[k : k + 2]) for k in (0, 2)]
        halves = [self.writer.call("llvm.ssub.sat.v16i16", shorts, half, self.less) for half in halves]
        found = self.writer.call("llvm.x86.avx2.packuswb", whole, *halves)
        # They pack each half of a vector by itself.
        found = builder.bitcast(found, ints)
        found = builder.bitcast(pick(builder, found, None, (0, 4, 1, 5, 2, 6, 3, 7)), whole)
        return self.writer.call("llvm.umin.v32i8", whole, found, self.most)


@intrinsic
def quantize_span(typing_context, values, count, scale, middle, low, top, codes):  # type: ignore[no-untyped-def]
    """Quantizes `count` values: `clamp(round(value / scale + middle), low, top) - low`; True if one is NaN.

    `values`: a pointer to float32 or float64; all other numbers of that type. `codes`: a pointer to uint8. The code of
    NaN is that of zero.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, count, scale, middle, low, top, codes = args
        found = cgutils.alloca_once_value(builder, BIT(0))

        def step_of(writer: Writer) -> Any:
            bytes_ = Bytes(writer, builder.fptosi(low, INT), builder.fptosi(builder.fsub(top, low), INT))
            numbers = writer.everywhere(scale), writer.everywhere(middle)
            return _quantize(writer, values, *numbers, bytes_, codes, found)

        Writer.wide_then_narrow(context, builder, signature.args[0].dtype, count, step_of)
        return builder.load(found)

    def nothing(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return BIT(0)

    kind = values.dtype
    # Loops over values or codes are compiled for codes, too, with what they do to values.
    written = write if isinstance(kind, types.Float) else nothing
    return types.boolean(values, types.intp, kind, kind, kind, kind, codes), written


def steps_of(builder: Any, value: Any, scale: Any, middle: Any) -> tuple[Any, Any]:
    """Writes how values become steps of a grid, as :class:`Bytes` takes them; and which are NaN, and have zero's."""
    missing = builder.fcmp_unordered("uno", value, value)
    return builder.select(missing, middle, builder.fadd(builder.fdiv(value, scale), middle)), missing


def _quantize(writer: Writer, values: Any, scale: Any, middle: Any, bytes_: Bytes, codes: Any, found: Any) -> Any:
    builder = writer.builder

    def step(start: Any, mask: Any) -> None:
        value = writer.load(builder.gep(values, [start]), writer.vector, writer.size, mask)
        steps, missing = steps_of(builder, value, scale, middle)
        writer.store(bytes_.of(steps), builder.gep(codes, [start]), 1, mask)
        some = builder.bitcast(missing, ir.IntType(writer.lanes))
        some = builder.icmp_unsigned("!=", some, some.type(0))
        writer.change(found, lambda before: builder.or_(before, some))

    return step


@intrinsic
def ramp_span(typing_context, codes, count, ramp, apart, found):  # type: ignore[no-untyped-def]
    """Applies ramps to `count` codes, see :mod:`dqconvert.kernels.integer.ramp`.

    Pointers: `codes` and `found` to uint8, `ramp` to the first of as many columns, whose four numbers lie `apart`.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        codes, count, ramp, apart, found = args

        def step_of(writer: Writer) -> Any:
            return _climb(writer, codes, ramp, apart, Bytes(writer, INT(0), INT(255)), found)

        Writer.wide_then_narrow(context, builder, types.float32, count, step_of)
        return context.get_dummy_value()

    return types.void(codes, types.intp, ramp, types.intp, found), write


def _climb(writer: Writer, codes: Any, ramp: Any, apart: Any, bytes_: Bytes, found: Any) -> Any:
    builder = writer.builder
    parts = [builder.gep(ramp, [builder.mul(apart, apart.type(i))]) for i in range(4)]

    def step(start: Any, mask: Any) -> None:
        value = builder.uitofp(writer.load(builder.gep(codes, [start]), writer.bytes, 1, mask), writer.vector)
        slope, offset, least, most = (writer.load(builder.gep(part, [start]), writer.vector, 4, mask) for part in parts)
        value = builder.fadd(builder.fmul(value, slope), offset)
        writer.store(bytes_.of(writer.clamped(value, least, most)), builder.gep(found, [start]), 1, mask)

    return step


# -- sums of integers --------------------------------------------------------------------------------------------------

AS_THEY_ARE, ON_RAMP, ON_PLANE, AS_VALUES = range(4)
"""What becomes of codes: nothing, or what a line or a plane says (:mod:`dqconvert.kernels.integer.ramp`, `.plane`); the
last: sums stay values and no codes are made, which is none of :func:`finish_span`'s business."""


@intrinsic
def finish_span(  # type: ignore[no-untyped-def]
    typing_context, line, count, factor, share, bias, grid, kind, ramp, plane, other, to
):
    """Requantizes `count` sums.

    Pointers: `line` to int32 or int64, `other` and `to` to uint8, the rest to float32: `factor` and `bias` to as many;
    `grid` to four, scale, zero, highest and lowest code, the second and the third as training counts them; `ramp` and
    `plane`, where `kind` says so, to four times as many, and to five. `share`: float32.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Writer.wide_then_narrow(
            context, builder, types.float32, args[1], lambda writer: _step(context, writer, signature, args)
        )
        return context.get_dummy_value()

    number, one = types.intp, types.float32
    return types.void(line, number, factor, one, bias, grid, number, ramp, plane, other, to), write


def _step(context: Any, writer: Writer, signature: Any, args: Any) -> Callable[[Any, Any], None]:
    """Writes what happens to the sums of some vectors."""
    line, count, factor, share, bias, grid, kind, ramp, plane, other, to = args
    builder, integer = writer.builder, context.get_data_type(signature.args[0].dtype)
    sums, size = ir.VectorType(integer, writer.lanes), integer.width // 8
    share = writer.everywhere(share)
    one, middle, top, low = (builder.load(builder.gep(grid, [LONG(i)])) for i in range(4))
    scale, zero, highest, lowest = map(writer.everywhere, (one, middle, top, low))
    codes = Bytes(writer, builder.fptosi(low, INT), builder.fptosi(builder.fsub(top, low), INT))
    bytes_ = Bytes(writer, INT(0), INT(255))

    def numbers(array: Any, start: Any, mask: Any) -> Any:
        return writer.load(builder.gep(array, [start]), writer.vector, 4, mask)

    def code_of(value: Any) -> Any:
        return builder.fsub(writer.clamped(writer.rint(value), lowest, highest), lowest)

    def on_ramp(value: Any, start: Any, mask: Any) -> Any:
        parts = (builder.gep(ramp, [builder.mul(count, LONG(i))]) for i in range(4))
        steepness, more, least, most = (numbers(part, start, mask) for part in parts)
        return bytes_.of(writer.clamped(builder.fadd(builder.fmul(code_of(value), steepness), more), least, most))

    def on_plane(value: Any, start: Any, mask: Any) -> Any:
        one, two, more, least, most = (writer.everywhere(builder.load(builder.gep(plane, [LONG(i)]))) for i in range(5))
        second = writer.load(builder.gep(other, [start]), writer.bytes, 1, mask)
        rest = builder.fadd(builder.fmul(builder.uitofp(second, writer.vector), two), more)
        return bytes_.of(writer.clamped(builder.fadd(builder.fmul(code_of(value), one), rest), least, most))

    def step(start: Any, mask: Any) -> None:
        value = builder.sitofp(writer.load(builder.gep(line, [start]), sums, size, mask), writer.vector)
        value = builder.fmul(builder.fmul(value, numbers(factor, start, mask)), share)
        value = builder.fadd(value, numbers(bias, start, mask))
        value = builder.fadd(builder.fdiv(value, scale), zero)
        found = cgutils.alloca_once(builder, writer.bytes)
        with builder.if_else(builder.icmp_signed("==", kind, LONG(AS_THEY_ARE))) as (here, further):
            with here:
                builder.store(codes.of(value), found)
            with further, builder.if_else(builder.icmp_signed("==", kind, LONG(ON_RAMP))) as (first, second):
                with first:
                    builder.store(on_ramp(value, start, mask), found)
                with second:
                    builder.store(on_plane(value, start, mask), found)
        writer.store(builder.load(found), builder.gep(to, [start]), 1, mask)

    return step


# -- sums of values ----------------------------------------------------------------------------------------------------


@intrinsic
def sum_span(typing_context, places, numbers, terms, start, count, scale, middle, low, top, codes):  # type: ignore[no-untyped-def]
    """Adds up so many terms, of each `count` values from `start` on, and quantizes the sums.

    `places`: a pointer to int64, the address of each term; `numbers`: to float32 `[terms, 2]`: of values, float32, NaN
    and what they are multiplied by; of codes, uint8, their zero and their scale. The rest as for
    :func:`quantize_span`.
    """
    index, one = types.intp, types.float32

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, numbers, terms, start, count, scale, middle, low, top, codes = args

        def step_of(writer: Writer) -> Any:
            ends = builder.fptosi(low, INT), builder.fptosi(builder.fsub(top, low), INT)
            bytes_, by, more = Bytes(writer, *ends), writer.everywhere(scale), writer.everywhere(middle)

            def step(at: Any, mask: Any) -> None:
                total = _add(writer, places, numbers, terms, builder.add(start, at), mask)
                steps, _ = steps_of(builder, total, by, more)
                writer.store(bytes_.of(steps), builder.gep(codes, [at]), 1, mask)

            return step

        Writer.wide_then_narrow(context, builder, one, count, step_of)
        return context.get_dummy_value()

    return types.void(places, numbers, index, index, index, one, one, one, one, codes), write


def _add(writer: Writer, places: Any, numbers: Any, terms: Any, start: Any, mask: Any) -> Any:
    """Returns a vector of sums."""
    builder = writer.builder
    total = cgutils.alloca_once_value(builder, writer.same(0.0))
    with cgutils.for_range(builder, terms) as turn:
        place = builder.load(builder.gep(places, [turn.index]))
        pair = builder.gep(numbers, [builder.mul(turn.index, LONG(2))])
        first, second = builder.load(pair), builder.load(builder.gep(pair, [LONG(1)]))
        with builder.if_else(builder.fcmp_unordered("uno", first, first)) as (of_values, of_codes):
            with of_values:
                here = builder.gep(builder.inttoptr(place, FLOAT.as_pointer()), [start])
                value = builder.fmul(writer.load(here, writer.vector, 4, mask), writer.everywhere(second))
                writer.change(total, lambda before: builder.fadd(before, value))
            with of_codes:
                here = builder.gep(builder.inttoptr(place, BYTE.as_pointer()), [start])
                code = builder.uitofp(writer.load(here, writer.bytes, 1, mask), writer.vector)
                value = builder.fmul(builder.fsub(code, writer.everywhere(first)), writer.everywhere(second))
                writer.change(total, lambda before: builder.fadd(before, value))
    return builder.load(total)

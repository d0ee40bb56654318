"""From values to bytes, by vectors: processors round as they make integers, and saturate as they make them shorter."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.llvm.span import Writer
from dqconvert.kernels.cpu.llvm.vectors import AVX2, everywhere

_BIT, _BYTE, _SHORT, _INT = (ir.IntType(bits) for bits in (1, 8, 16, 32))
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
        self.less = everywhere(self.builder, self.builder.trunc(low, _SHORT), 2 * _LANES)
        self.most = everywhere(self.builder, self.builder.trunc(top, _BYTE), 4 * _LANES)

    def of(self, value: Any) -> Any:
        if AVX2 and self.writer.size == 4 and self.writer.lanes == 4 * _LANES:
            return self._packed(value)
        builder, writer = self.builder, self.writer
        value = builder.fsub(writer.rint(value), self.low)
        value = builder.select(builder.fcmp_ordered("<", value, writer.same(0)), writer.same(0), value)
        value = builder.select(builder.fcmp_ordered(">", value, self.top), self.top, value)
        return builder.trunc(builder.fptosi(value, ir.VectorType(_INT, writer.lanes)), writer.bytes)

    def _packed(self, value: Any) -> Any:
        builder = self.builder
        value = builder.select(builder.fcmp_ordered(">", value, self.writer.same(_FAR)), self.writer.same(_FAR), value)
        floats, ints = ir.VectorType(self.writer.scalar, _LANES), ir.VectorType(_INT, _LANES)
        shorts, whole = ir.VectorType(_SHORT, 2 * _LANES), ir.VectorType(_BYTE, 4 * _LANES)
        parts = [
            self._call("llvm.x86.avx.cvt.ps2dq.256", ints, self._pick(value, range(k, k + _LANES), floats))
            for k in range(0, 4 * _LANES, _LANES)
        ]
        halves = [self._call("llvm.x86.avx2.packssdw", shorts, *parts[k : k + 2]) for k in (0, 2)]
        halves = [self._call("llvm.ssub.sat.v16i16", shorts, half, self.less) for half in halves]
        found = self._call("llvm.x86.avx2.packuswb", whole, *halves)
        # They pack each half of a vector by itself.
        found = builder.bitcast(found, ints)
        found = builder.bitcast(self._pick(found, (0, 4, 1, 5, 2, 6, 3, 7), ints), whole)
        return self._call("llvm.umin.v32i8", whole, found, self.most)

    def _call(self, name: str, result: Any, *args: Any) -> Any:
        return self.builder.call(self.writer.function(name, result, *(arg.type for arg in args)), args)

    def _pick(self, vector: Any, lanes: Any, kind: Any) -> Any:
        return self.builder.shuffle_vector(
            vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(ir.VectorType(_INT, kind.count), list(lanes))
        )


@intrinsic
def quantize_span(typing_context, values, count, scale, middle, low, top, codes):  # type: ignore[no-untyped-def]
    """`count` values to as many codes, `clamp(round(value / scale + middle), low, top) - low`; whether one is NaN.

    `values`: a pointer to float32 or float64; all other numbers of that type. `codes`: a pointer to uint8. The code of
    NaN is that of zero.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, count, scale, middle, low, top, codes = args
        found = cgutils.alloca_once_value(builder, _BIT(0))

        def step_of(writer: Writer) -> Any:
            bytes_ = Bytes(writer, builder.fptosi(low, _INT), builder.fptosi(builder.fsub(top, low), _INT))
            numbers = writer.everywhere(scale), writer.everywhere(middle)
            return _quantize(writer, values, *numbers, bytes_, codes, found)

        Writer.wide_then_narrow(context, builder, signature.args[0].dtype, count, step_of)
        return builder.load(found)

    def nothing(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _BIT(0)

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
            return _climb(writer, codes, ramp, apart, Bytes(writer, _INT(0), _INT(255)), found)

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

"""Codes of sums, by vectors: what compilers make of such a loop takes half as long again.

sum -> * slope * share + offset -> rounded, clamped -> a ramp, rounded, clamped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels._span import Writer
from dqconvert.kernels.integer._messages import LOOKED_UP

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_LANES = 8
"""Of a vector of the processor's that holds float32."""

_FAR = float(1 << 14)
"""Beyond the ends of every grid; with it, nothing overflows in 16 bits."""


@intrinsic
def finish_span(typing_context, line, count, slope, share, offset, ends, ramp, ramped, to):  # type: ignore[no-untyped-def]
    """`count` sums to as many codes.

    Pointers: `line` to int32 or int64, `to` to uint8, the others to float32: `slope` and `offset` to as many; `ends` to
    two, the lowest and the highest step of the grid; `ramp`, if `ramped`, to four times as many, see
    :mod:`dqconvert.kernels.integer._ramp`. `share`: float32.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = args[1]
        begin = count.type(0)
        for vectors in (4, 1):  # narrow rows are less than four of the processor's vectors
            writer = Writer(context, builder, types.float32, None, vectors)
            step = _step(context, writer, signature, args)
            if vectors > 1:
                begin = writer.each_whole(begin, count, step)
            else:
                writer.each(count, step, begin)
        return context.get_dummy_value()

    number, one = types.intp, types.float32
    return types.void(line, number, slope, one, offset, ends, ramp, types.boolean, to), write


def _step(context: Any, writer: Writer, signature: Any, args: Any) -> Callable[[Any, Any], None]:
    """Writes what happens to the sums of some vectors."""
    line, count, slope, share, offset, ends, ramp, ramped, to = args
    builder, integer = writer.builder, context.get_data_type(signature.args[0].dtype)
    sums, size = ir.VectorType(integer, writer.lanes), integer.width // 8
    share = writer.everywhere(share)
    low, top = (builder.load(builder.gep(ends, [_LONG(i)])) for i in range(2))
    lowest, highest = writer.everywhere(low), writer.everywhere(top)
    codes = _Bytes(writer, builder.fptosi(low, _INT), builder.fptosi(builder.fsub(top, low), _INT))
    unshifted = _Bytes(writer, _INT(0), _INT(255))

    def clamped(value: Any, least: Any, most: Any) -> Any:
        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
        return builder.select(builder.fcmp_ordered(">", value, most), most, value)

    def numbers(array: Any, start: Any, mask: Any) -> Any:
        return writer.load(builder.gep(array, [start]), writer.vector, 4, mask)

    def step(start: Any, mask: Any) -> None:
        found = builder.sitofp(writer.load(builder.gep(line, [start]), sums, size, mask), writer.vector)
        found = builder.fmul(builder.fmul(found, numbers(slope, start, mask)), share)
        found = builder.fadd(found, numbers(offset, start, mask))
        with builder.if_else(ramped) as (further, here):
            with further:
                parts = (builder.gep(ramp, [builder.mul(count, _LONG(i))]) for i in range(4))
                steepness, more, least, most = (numbers(part, start, mask) for part in parts)
                code = builder.fsub(clamped(writer.rint(found), lowest, highest), lowest)
                second = clamped(builder.fadd(builder.fmul(code, steepness), more), least, most)
                one, end_of_one = unshifted.of(second), builder.block
            with here:
                two, end_of_two = codes.of(found), builder.block
        chosen = builder.phi(writer.bytes)
        chosen.add_incoming(one, end_of_one)
        chosen.add_incoming(two, end_of_two)
        writer.store(chosen, builder.gep(to, [start]), 1, mask)

    return step


class _Bytes:
    """Writes how floats become bytes: rounded, halves to even, counted from `low` on, and clamped to `top`."""

    def __init__(self, writer: Writer, low: Any, top: Any) -> None:
        self.writer, self.builder = writer, writer.builder
        # As floats, as shorts, and as bytes: whichever is used, the compiler drops the others.
        self.low, self.top = (writer.everywhere(self.builder.sitofp(end, writer.scalar)) for end in (low, top))
        self.less = self._everywhere(low, _SHORT, 2 * _LANES)
        self.most = self._everywhere(top, _BYTE, 4 * _LANES)

    def of(self, value: Any) -> Any:
        if LOOKED_UP and self.writer.lanes == 4 * _LANES:
            return self._packed(value)
        builder, writer = self.builder, self.writer
        value = builder.fsub(writer.rint(value), self.low)
        value = builder.select(builder.fcmp_ordered("<", value, writer.same(0)), writer.same(0), value)
        value = builder.select(builder.fcmp_ordered(">", value, self.top), self.top, value)
        return builder.trunc(builder.fptosi(value, ir.VectorType(_INT, writer.lanes)), writer.bytes)

    def _packed(self, value: Any) -> Any:
        """Processors round as they make integers, and saturate as they make them shorter."""
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

    def _everywhere(self, value: Any, kind: Any, lanes: int) -> Any:
        vector = ir.Constant(ir.VectorType(kind, lanes), ir.Undefined)
        vector = self.builder.insert_element(vector, self.builder.trunc(value, kind), _INT(0))
        return self._pick(vector, [0] * lanes, vector.type)

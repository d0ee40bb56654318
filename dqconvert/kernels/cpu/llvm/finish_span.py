"""Codes of sums, by vectors: what compilers make of such a loop takes half as long again.

sum -> * factor * share + bias -> / scale + zero -> rounded, clamped -> a ramp, or a plane, rounded, clamped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.llvm.bytes import Bytes
from dqconvert.kernels.cpu.llvm.span import Writer

_INT, _LONG = ir.IntType(32), ir.IntType(64)

AS_THEY_ARE, ON_RAMP, ON_PLANE = range(3)
"""What becomes of codes: nothing, or what a line or a plane says (:mod:`dqconvert.kernels.integer.ramp`, `.plane`)."""


@intrinsic
def finish_span(  # type: ignore[no-untyped-def]
    typing_context, line, count, factor, share, bias, grid, kind, ramp, plane, other, to
):
    """`count` sums to as many codes.

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
    one, middle, top, low = (builder.load(builder.gep(grid, [_LONG(i)])) for i in range(4))
    scale, zero, highest, lowest = map(writer.everywhere, (one, middle, top, low))
    codes = Bytes(writer, builder.fptosi(low, _INT), builder.fptosi(builder.fsub(top, low), _INT))
    bytes_ = Bytes(writer, _INT(0), _INT(255))

    def numbers(array: Any, start: Any, mask: Any) -> Any:
        return writer.load(builder.gep(array, [start]), writer.vector, 4, mask)

    def code_of(value: Any) -> Any:
        return builder.fsub(writer.clamped(writer.rint(value), lowest, highest), lowest)

    def on_ramp(value: Any, start: Any, mask: Any) -> Any:
        parts = (builder.gep(ramp, [builder.mul(count, _LONG(i))]) for i in range(4))
        steepness, more, least, most = (numbers(part, start, mask) for part in parts)
        return bytes_.of(writer.clamped(builder.fadd(builder.fmul(code_of(value), steepness), more), least, most))

    def on_plane(value: Any, start: Any, mask: Any) -> Any:
        one, two, more, least, most = (
            writer.everywhere(builder.load(builder.gep(plane, [_LONG(i)]))) for i in range(5)
        )
        second = writer.load(builder.gep(other, [start]), writer.bytes, 1, mask)
        rest = builder.fadd(builder.fmul(builder.uitofp(second, writer.vector), two), more)
        return bytes_.of(writer.clamped(builder.fadd(builder.fmul(code_of(value), one), rest), least, most))

    def step(start: Any, mask: Any) -> None:
        value = builder.sitofp(writer.load(builder.gep(line, [start]), sums, size, mask), writer.vector)
        value = builder.fmul(builder.fmul(value, numbers(factor, start, mask)), share)
        value = builder.fadd(value, numbers(bias, start, mask))
        value = builder.fadd(builder.fdiv(value, scale), zero)
        found = cgutils.alloca_once(builder, writer.bytes)
        with builder.if_else(builder.icmp_signed("==", kind, _LONG(AS_THEY_ARE))) as (here, further):
            with here:
                builder.store(codes.of(value), found)
            with further, builder.if_else(builder.icmp_signed("==", kind, _LONG(ON_RAMP))) as (first, second):
                with first:
                    builder.store(on_ramp(value, start, mask), found)
                with second:
                    builder.store(on_plane(value, start, mask), found)
        writer.store(builder.load(found), builder.gep(to, [start]), 1, mask)

    return step

"""Codes of sums, by vectors: what compilers make of such a loop takes half as long again.

sum -> * factor * share + bias -> / scale + zero -> rounded, clamped -> a ramp, rounded, clamped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels._span import Writer

_INT, _LONG = ir.IntType(32), ir.IntType(64)


@intrinsic
def finish_span(typing_context, line, count, factor, share, bias, grid, ramp, ramped, to):  # type: ignore[no-untyped-def]
    """`count` sums to as many codes.

    Pointers: `line` to int32 or int64, `to` to uint8, the others to float32: `factor` and `bias` to as many; `grid` to
    four, scale, zero, highest and lowest code, the second and the third as training counts them; `ramp`, if `ramped`,
    to four times as many, see :mod:`dqconvert.kernels.integer._ramp`. `share`: float32.
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
    return types.void(line, number, factor, one, bias, grid, ramp, types.boolean, to), write


def _step(context: Any, writer: Writer, signature: Any, args: Any) -> Callable[[Any, Any], None]:
    """Writes what happens to the sums of some vectors."""
    line, count, factor, share, bias, grid, ramp, ramped, to = args
    builder, integer = writer.builder, context.get_data_type(signature.args[0].dtype)
    sums, size = ir.VectorType(integer, writer.lanes), integer.width // 8
    share = writer.everywhere(share)
    scale, zero, top, low = (writer.everywhere(builder.load(builder.gep(grid, [_LONG(i)]))) for i in range(4))
    code = cgutils.alloca_once(builder, writer.vector)

    def clamped(value: Any, least: Any, most: Any) -> Any:
        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
        return builder.select(builder.fcmp_ordered(">", value, most), most, value)

    def numbers(array: Any, start: Any, mask: Any) -> Any:
        return writer.load(builder.gep(array, [start]), writer.vector, 4, mask)

    def step(start: Any, mask: Any) -> None:
        found = builder.sitofp(writer.load(builder.gep(line, [start]), sums, size, mask), writer.vector)
        found = builder.fmul(builder.fmul(found, numbers(factor, start, mask)), share)
        found = builder.fadd(found, numbers(bias, start, mask))
        found = writer.rint(builder.fadd(builder.fdiv(found, scale), zero))
        builder.store(builder.fsub(clamped(found, low, top), low), code)
        with builder.if_then(ramped):
            parts = (builder.gep(ramp, [builder.mul(count, _LONG(i))]) for i in range(4))
            slope, offset, least, most = (numbers(part, start, mask) for part in parts)
            found = writer.rint(builder.fadd(builder.fmul(builder.load(code), slope), offset))
            builder.store(clamped(found, least, most), code)
        whole = builder.fptosi(builder.load(code), ir.VectorType(_INT, writer.lanes))
        writer.store(builder.trunc(whole, writer.bytes), builder.gep(to, [start]), 1, mask)

    return step

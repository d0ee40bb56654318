"""Codes of sums, by vectors: a sum of several values, some of them held as codes, is rounded while in a register."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels.cpu.llvm.bytes import Bytes, steps_of
from dqconvert.kernels.cpu.llvm.span import Writer

_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


@intrinsic
def sum_span(typing_context, places, numbers, terms, start, count, scale, middle, low, top, codes):  # type: ignore[no-untyped-def]
    """`count` sums of so many terms, of each from value `start` on, to as many codes.

    `places`: a pointer to int64, the address of each term; `numbers`: to float32 `[terms, 2]`: of values, float32, NaN
    and what they are multiplied by; of codes, uint8, their zero and their scale. The rest as for
    :func:`dqconvert.kernels.cpu.llvm.bytes.quantize_span`.
    """
    index, one = types.intp, types.float32

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, numbers, terms, start, count, scale, middle, low, top, codes = args

        def step_of(writer: Writer) -> Any:
            ends = builder.fptosi(low, _INT), builder.fptosi(builder.fsub(top, low), _INT)
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
        pair = builder.gep(numbers, [builder.mul(turn.index, _LONG(2))])
        first, second = builder.load(pair), builder.load(builder.gep(pair, [_LONG(1)]))
        with builder.if_else(builder.fcmp_unordered("uno", first, first)) as (of_values, of_codes):
            with of_values:
                here = builder.gep(builder.inttoptr(place, _FLOAT.as_pointer()), [start])
                value = builder.fmul(writer.load(here, writer.vector, 4, mask), writer.everywhere(second))
                writer.change(total, lambda before: builder.fadd(before, value))
            with of_codes:
                here = builder.gep(builder.inttoptr(place, _BYTE.as_pointer()), [start])
                code = builder.uitofp(writer.load(here, writer.bytes, 1, mask), writer.vector)
                value = builder.fmul(builder.fsub(code, writer.everywhere(first)), writer.everywhere(second))
                writer.change(total, lambda before: builder.fadd(before, value))
    return builder.load(total)

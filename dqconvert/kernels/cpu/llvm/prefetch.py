"""Asks the processor for memory that a loop will need soon: rows of neighbours lie where it cannot guess."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

AHEAD = 8
"""How many edges ahead; measured best among 4, 8 and 16."""

LINE = 64
"""Bytes that arrive together."""


@intrinsic
def prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Fetches the cache line of element `offset` of a contiguous array, counted through all its dimensions."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = arrayobj.make_array(signature.args[0])(context, builder, args[0]).data
        ask(builder, builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64), write


def ask(builder: Any, place: Any) -> None:
    """Writes the instruction that fetches the cache line of a place."""
    number = cgutils.int32_t
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    place = builder.bitcast(place, cgutils.voidptr_t)
    builder.call(function, [place, number(0), number(3), number(1)])  # to read, to keep, data

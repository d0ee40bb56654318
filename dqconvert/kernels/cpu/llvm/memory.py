"""Where values are in memory: pointers, rows that will be needed soon, and rows that leave past the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.vectors import INT, VECTOR, carry, fetch, load, size_of, store

AHEAD = 8
"""How many edges ahead rows are asked for; measured best among 4, 8 and 16."""

LINE = 64
"""Bytes that arrive together."""

FAR = 1 << 25
"""Bytes from which an array is written past the cache."""


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = arrayobj.make_array(kind)(context, builder, array).data
    return builder.gep(data, [at])


@intrinsic
def pointer(typing_context: Any, array: Any, at: Any) -> Any:
    """Returns a pointer to element `at` of a contiguous array, counted through all its dimensions.

    For loops that are called for every row: an array that is passed on is counted (its references are), and that costs
    such a loop more than its row. What a pointer points into has to be kept by whoever made it. Arrays that are not
    contiguous are an error of types.
    """
    if array.layout != "C":
        return None

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _place(context, builder, signature.args[0], *args)

    return types.CPointer(array.dtype)(array, types.intp), write


@intrinsic
def further(typing_context: Any, place: Any, count: Any) -> Any:
    """Returns a pointer to what lies `count` elements behind another pointer."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return place(place, types.intp), write


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Prefetches the cache line of element `at` of a contiguous array: rows of neighbours lie where no processor can
    guess."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fetch(builder, _place(context, builder, signature.args[0], *args))
        return context.get_dummy_value()

    return types.void(array, types.int64), write


@intrinsic
def _stream(typing_context: Any, source: Any, target: Any, count: Any) -> Any:
    """Copies `count` values: one by one up to a whole vector's place, vectors past the cache, and the rest."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, count = args
        scalar, index = context.get_data_type(signature.args[0].dtype), count.type
        size = size_of(scalar)
        lanes = VECTOR // size
        vector = ir.VectorType(scalar, lanes)
        past_the_cache = builder.module.add_metadata([INT(1)])

        def copy(start: Any, stop: Any, step: int) -> None:
            def turn(k: Any, _: object) -> list[Any]:
                from_, to = builder.gep(source, [k]), builder.gep(target, [k])
                if step == 1:
                    builder.store(builder.load(from_), to)
                else:
                    stored = store(builder, load(builder, from_, vector, size), to, size * step)
                    stored.set_metadata("nontemporal", past_the_cache)
                return []

            carry(builder, start, stop, [], turn, step=step)

        past = builder.and_(builder.ptrtoint(target, index), index(VECTOR - 1))
        missing = builder.udiv(builder.and_(builder.neg(past), index(VECTOR - 1)), index(size))
        head = builder.select(builder.icmp_signed("<", missing, count), missing, count)
        body = builder.add(head, builder.and_(builder.sub(count, head), index(-lanes)))
        copy(index(0), head, 1)
        copy(head, body, lanes)
        copy(body, count, 1)
        return context.get_dummy_value()

    return types.void(source, target, types.intp), write


@loop
def is_far(y):  # type: ignore[no-untyped-def]
    """True if an array is written past the cache.

    What is larger than the cache has left it before anybody reads it. Written as usual, its lines are read from memory
    first, and drive out what lies in the cache: half of the traffic of a loop that only writes.
    """
    return y.size * y.itemsize >= FAR


@loop
def stream(source, at, target, to, count):  # type: ignore[no-untyped-def]
    """Copies `count` values from place `at` of one array to place `to` of another one, past the cache."""
    _stream(pointer(source, at), pointer(target, to), count)


@loop
def room_before(y, rows):  # type: ignore[no-untyped-def]
    """Returns memory for rows of `y` that are made elsewhere before they leave; empty if they are made in place."""
    return np.empty((rows if is_far(y) else 0, y.shape[1]), y.dtype)

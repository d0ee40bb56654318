"""Rows that leave for memory past the cache.

What is larger than the cache has left it before anybody reads it. Written as usual, it is read from memory first, line
by line, and drives out what lies in the cache; that is half of the traffic of a loop that only writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.multiply import VECTOR
from dqconvert.kernels.cpu.llvm.pointer import pointer

FAR = 1 << 25
"""Bytes from which an array is written past the cache."""


@intrinsic
def _stream(typing_context: Any, source: Any, target: Any, count: Any) -> Any:
    """Copies `count` values: one by one up to a whole vector's place, vectors past the cache, and the rest."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, count = args
        scalar, index = context.get_data_type(signature.args[0].dtype), count.type
        size = 4 if isinstance(scalar, ir.FloatType) else 8
        lanes = VECTOR // size
        vector = ir.VectorType(scalar, lanes)
        mark = builder.module.add_metadata([ir.IntType(32)(1)])

        def copy(start: Any, stop: Any, step: int, name: str) -> None:
            entry, body, done = builder.block, *(builder.append_basic_block(name + end) for end in ("", "_done"))
            builder.cbranch(builder.icmp_signed("<", start, stop), body, done)
            builder.position_at_end(body)
            k = builder.phi(index)
            from_, to = builder.gep(source, [k]), builder.gep(target, [k])
            if step > 1:
                from_, to = (builder.bitcast(place, vector.as_pointer()) for place in (from_, to))
            value = builder.load(from_)
            value.align = size
            stored = builder.store(value, to)
            stored.align = size * step
            if step > 1:
                stored.set_metadata("nontemporal", mark)
            following = builder.add(k, index(step))
            k.add_incoming(start, entry)
            k.add_incoming(following, body)
            builder.cbranch(builder.icmp_signed("<", following, stop), body, done)
            builder.position_at_end(done)

        past = builder.and_(builder.ptrtoint(target, index), index(VECTOR - 1))
        missing = builder.udiv(builder.and_(builder.neg(past), index(VECTOR - 1)), index(size))
        head = builder.select(builder.icmp_signed("<", missing, count), missing, count)
        whole = builder.and_(builder.sub(count, head), index(-lanes))
        body = builder.add(head, whole)
        copy(index(0), head, 1, "head")
        copy(head, body, lanes, "body")
        copy(body, count, 1, "tail")
        return context.get_dummy_value()

    return types.void(source, target, types.intp), write


@loop
def is_far(y):  # type: ignore[no-untyped-def]
    """Whether an array is written past the cache."""
    return y.size * y.itemsize >= FAR


@loop
def stream(source, at, target, to, count):  # type: ignore[no-untyped-def]
    """Copies `count` values from place `at` of one array to place `to` of another one, past the cache."""
    _stream(pointer(source, at), pointer(target, to), count)


@loop
def room_before(y, rows):  # type: ignore[no-untyped-def]
    """Where some rows of `y` are made before they leave; nothing, if they are made where they are to lie."""
    return np.empty((rows if is_far(y) else 0, y.shape[1]), y.dtype)

"""Pieces that the functions written in LLVM's instructions are put together of.

Each takes a builder (:class:`llvmlite.ir.IRBuilder`), which appends instructions to the function that is being
compiled, and returns values of that function: names of results, not numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
BIT, FLOAT = ir.IntType(1), ir.FloatType()

_FEATURES = binding.get_host_cpu_features()

VECTOR = 64 if _FEATURES.get("avx512f", False) else 32
"""Bytes of the processor's vectors (of which it may make two or four, where they are shorter)."""

AVX2 = _FEATURES.get("avx2", False)
"""True if the processor looks up bytes, and multiplies and adds pairs of int16, a vector at a time."""


def size_of(scalar: Any) -> int:
    """Returns the bytes of a floating-point type."""
    return 4 if isinstance(scalar, ir.FloatType) else 8


def constant(value: float, kind: Any) -> Any:
    """Returns a vector of a type that holds a number in each of its lanes."""
    return ir.Constant(kind, [value] * kind.count)


def pick(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    """Returns lanes of two vectors: those of `b` are numbered behind those of `a`; ``None``: `a` alone."""
    b = ir.Constant(a.type, ir.Undefined) if b is None else b
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes)))


def everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """Returns a vector that holds a value in each of its lanes."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    return pick(builder, builder.insert_element(nothing, value, INT(0)), nothing, [0] * lanes)


def load(builder: Any, place: Any, kind: Any, align: int) -> Any:
    """Returns the vector at a pointer, to whatever its values are."""
    loaded = builder.load(builder.bitcast(place, kind.as_pointer()))
    loaded.align = align
    return loaded


def store(builder: Any, value: Any, place: Any, align: int) -> Any:
    """Stores a vector at a pointer; returns the instruction."""
    stored = builder.store(value, builder.bitcast(place, value.type.as_pointer()))
    stored.align = align
    return stored


def function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Returns a function of LLVM's own (an intrinsic), declared."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def fetch(builder: Any, place: Any) -> None:
    """Prefetches the cache line of a place: to read, to keep, data."""
    prefetch = function(builder, "llvm.prefetch.p0", ir.VoidType(), cgutils.voidptr_t, INT, INT, INT)
    builder.call(prefetch, [builder.bitcast(place, cgutils.voidptr_t), INT(0), INT(3), INT(1)])


def carry(
    builder: Any,
    start: Any,
    stop: Any,
    first: Sequence[Any],
    body: Callable[[Any, list[Any]], Sequence[Any]],
    *,
    step: int = 1,
    some: bool = False,
) -> Sequence[Any]:
    """Writes a loop whose values stay in registers: `for k in range(start, stop, step): values = body(k, values)`.

    A loop that numba compiles holds running values in variables, and LLVM turns an array of them into registers only
    if it unrolls whatever indexes the array. Here each value is a phi node from the start.

    Args:
        builder: Stands where the loop begins; afterwards, behind it.
        start, stop: The range, integers.
        first: The values before the first turn.
        body: Writes a turn; takes the index and the values, and returns as many values.
        step: Of the range.
        some: True if there is a first turn for sure.

    Returns:
        The values behind the last turn.
    """
    before, inside, done = builder.block, *(builder.append_basic_block(name) for name in ("turn", "done"))
    if some:
        builder.branch(inside)
    else:
        builder.cbranch(builder.icmp_signed("<", start, stop), inside, done)
    builder.position_at_end(inside)
    k, values = builder.phi(start.type), [builder.phi(value.type) for value in first]
    after = body(k, values)
    following = builder.add(k, k.type(step))
    last = builder.block
    builder.cbranch(builder.icmp_signed("<", following, stop), inside, done)
    for phi, begin, end in zip([k, *values], [start, *first], [following, *after], strict=True):
        phi.add_incoming(begin, before)
        phi.add_incoming(end, last)
    builder.position_at_end(done)
    if some:
        return after
    results = [builder.phi(value.type) for value in first]
    for phi, begin, end in zip(results, first, after, strict=True):
        phi.add_incoming(begin, before)
        phi.add_incoming(end, last)
    return results


def choose(builder: Any, number: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """Writes `match number: case …`; each case writes its own instructions, and `number` is one of them."""
    done = builder.append_basic_block("chosen")
    *others, last = cases.items()
    for case, write in others:
        here, further = builder.append_basic_block(f"case_{case}"), builder.append_basic_block("further")
        builder.cbranch(builder.icmp_signed("==", number, number.type(case)), here, further)
        builder.position_at_end(here)
        write()
        builder.branch(done)
        builder.position_at_end(further)
    last[1]()
    builder.branch(done)
    builder.position_at_end(done)

"""Sums over the edges of a node, of a few columns at a time: they stay in registers while a loop runs along the edges.

Of messages of integers (`reduce_edges`), and of floats whose rows are stored as codes (`add_coded_rows`). What a
message of integers is made of is seen by the type of the table:

- float32, `[256]`: it is a code less `zero`, times the entry of the edge's weight, plus `middle`, rounded and clamped.
- int8, `[weights, 80]`: the same without a product, see :mod:`dqconvert.kernels.cpu.integer.lines`.
- uint8, `[weights, 16]`: codes lie two to a byte; it is the entry of the edge's weight and the code.
- int16: there is no table, it is the code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import AHEAD, LINE, pointer
from dqconvert.kernels.cpu.llvm.messages import (
    MAX,
    MIN,
    SUM,
    CodeMessages,
    LineMessages,
    PackedMessages,
    ProductMessages,
)
from dqconvert.kernels.cpu.llvm.vectors import (
    BYTE,
    INT,
    VECTOR,
    carry,
    choose,
    constant,
    everywhere,
    fetch,
    load,
    size_of,
    store,
)

FURTHER = 32
"""How many edges ahead rows of codes are asked for; measured best among 8, 16 and 32: an edge takes little time."""

LEAST, MOST = 8, 128
"""Bytes of the rows that the narrowest and the widest strip take; those between double."""

MADE = 64
"""The widest strip of messages that are made of the codes: what it takes to make them fills the registers, too."""

_WHOLE = (128, 64, 32, 16, 8)
_PIECES = {24: (16, 8), 40: (32, 8), 48: (32, 16), 72: (64, 8), 80: (64, 16), 96: (64, 32)}
"""Strips of sums that are put together of two: edges are gone through once."""

_SIZES = {SUM: sorted([*_WHOLE, *_PIECES], reverse=True), MAX: _WHOLE, MIN: _WHOLE}

_KINDS: dict[Any, type[CodeMessages] | type[ProductMessages]] = {
    types.float32: ProductMessages,
    types.int8: LineMessages,
    types.uint8: PackedMessages,
    types.int16: CodeMessages,
}
"""Of messages, by the type of the table."""


@intrinsic
def reduce_edges(  # type: ignore[no-untyped-def]
    typing_context,
    size,
    reduce,
    x,
    x_row,
    senders,
    start,
    stop,
    last,
    weights,
    heads,
    table,
    zero,
    middle,
    low,
    high,
    out,
):
    """Reduces edges `start` to `stop`, one at least, of `size` bytes (one of `_SIZES`) of the senders' rows.

    By pointers: `x` to the first of these bytes, `weights` to that of edge 0, edges `heads` apart; what is found goes
    to `out`, int32, a column each. Rows of edges to come, up to `last`, are asked for.
    """
    number, one = types.intp, types.int32
    kinds = number, number, x, number, senders, number, number, number, weights, number, table, one, one, one, one, out
    kind = _KINDS[table.dtype]

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size, reduce, x, x_row, senders, start, stop, last, weights, heads, table, *numbers, out = args
        index = x_row.type

        def row_of(edge: Any) -> Any:
            sender = builder.load(builder.gep(senders, [edge]))
            sender = sender if sender.type == index else builder.zext(sender, index)
            return builder.gep(x, [builder.mul(sender, x_row)])

        def strip(size: int, reduce: int) -> Callable[[], None]:
            return lambda: _write_strip(size, reduce)

        def _write_strip(size: int, reduce: int) -> None:
            pieces = [kind(piece, reduce) for piece in _PIECES.get(size, (size,))]
            for piece in pieces:
                piece.prepare(builder, *numbers)

            def of_pieces(values: Any) -> Any:
                """Returns the values of each piece."""
                values = iter(values)
                return [list(itertools.islice(values, len(piece.states))) for piece in pieces]

            def turn(edge: Any, states: list[Any]) -> list[Any]:
                later = builder.add(edge, index(FURTHER))
                later = row_of(builder.select(builder.icmp_signed("<", later, last), later, last))
                for line in sorted({*range(0, size, LINE), size - 1}):
                    fetch(builder, builder.gep(later, [index(line)]))
                weight = None
                if kind is not CodeMessages:
                    weight = builder.zext(builder.load(builder.gep(weights, [builder.mul(edge, heads)])), index)
                row, after = row_of(edge), []
                for piece, before in zip(pieces, of_pieces(states), strict=True):
                    after += piece.add(builder, row, piece.of_edge(builder, table, weight), before)
                    row = builder.gep(row, [index(piece.size)])
                return after

            first = [constant(piece.first, state) for piece in pieces for state in piece.states]
            after, at = carry(builder, start, stop, first, turn, some=True), 0
            for piece, states in zip(pieces, of_pieces(after), strict=True):
                for found in piece.results(builder, states):
                    store(builder, found, builder.gep(out, [index(at)]), 4)
                    at += found.type.count

        def of_kind(reduce: int) -> Callable[[], None]:
            return lambda: choose(builder, size, {each: strip(each, reduce) for each in _SIZES[reduce]})

        choose(builder, reduce, {each: of_kind(each) for each in (SUM, MAX, MIN)})
        return context.get_dummy_value()

    return types.void(*kinds), write


# -- floats that are stored as codes ---------------------------------------------------------------------------------


@intrinsic
def _add_strip(typing_context, vectors, codes, columns, senders, start, stop, end, offset, scale, sums):  # type: ignore[no-untyped-def]
    """Adds up rows over some edges, `vectors` of columns, 8, 4, 2 or 1; `codes` and `sums` point to the first."""
    number, value = types.intp, sums.dtype
    signature = types.void(number, codes, number, senders, number, number, number, value, value, sums)

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, codes, columns, senders, start, stop, end, offset, scale, sums = args
        index, scalar = start.type, offset.type
        size = size_of(scalar)
        lanes = VECTOR // size
        vector, bytes_ = ir.VectorType(scalar, lanes), ir.VectorType(BYTE, lanes)
        offset, scale = everywhere(builder, offset, lanes), everywhere(builder, scale, lanes)

        def row_of(edge: Any) -> Any:
            return builder.gep(codes, [builder.mul(builder.load(builder.gep(senders, [edge])), columns)])

        def strip(vectors: int) -> Callable[[], None]:
            def turn(edge: Any, totals: list[Any]) -> list[Any]:
                # Near the end it asks for the last row again, which costs nothing.
                soon, last = builder.add(edge, index(AHEAD)), builder.sub(end, index(1))
                ahead = row_of(builder.select(builder.icmp_signed("<", soon, last), soon, last))
                for byte in range(0, vectors * lanes, LINE):
                    fetch(builder, builder.gep(ahead, [index(byte)]))
                row, after = row_of(edge), []
                for number, total in enumerate(totals):
                    part = load(builder, builder.gep(row, [index(number * lanes)]), bytes_, 1)
                    value = builder.sitofp(builder.zext(part, ir.VectorType(INT, lanes)), vector)
                    after.append(builder.fadd(total, builder.fmul(builder.fadd(value, offset), scale)))
                return after

            def write_strip() -> None:
                cells = [builder.gep(sums, [index(number * lanes)]) for number in range(vectors)]
                before = [load(builder, cell, vector, size) for cell in cells]
                for cell, total in zip(cells, carry(builder, start, stop, before, turn), strict=True):
                    store(builder, total, cell, size)

            return write_strip

        choose(builder, vectors, {each: strip(each) for each in (8, 4, 2, 1)})
        return context.get_dummy_value()

    return signature, write


@loop
def add_coded_rows(codes, columns, senders, start, stop, end, offset, scale, sums):  # type: ignore[no-untyped-def]
    """Adds `(code + offset) * scale` of the rows `senders[start:stop]` to `sums`, one row after the other.

    `codes`: uint8, flat, `columns` to a row, and `VECTOR` more behind the last one, as whole vectors are read. `end`:
    up to which edge rows may be asked for ahead. `sums`: as many as `room_for` says; those beyond the columns are of
    no meaning.
    """
    lanes = VECTOR // sums.itemsize
    groups, group = (columns + lanes - 1) // lanes, 0
    while group < groups:
        left = groups - group
        width = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
        at = group * lanes
        from_, to = pointer(codes, at), pointer(sums, at)
        _add_strip(width, from_, columns, pointer(senders, 0), start, stop, end, offset, scale, to)
        group += width


@loop
def room_for(columns, itemsize):  # type: ignore[no-untyped-def]
    """Returns how many sums there are in whole vectors."""
    lanes = VECTOR // itemsize
    return (columns + lanes - 1) // lanes * lanes

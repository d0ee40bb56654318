"""Sums over the edges of a node, of a few columns at a time: they stay in registers while a loop runs along the edges.

What a message is made of is seen by the type of the table:

- float32, `[256]`: it is a code less `zero`, times the entry of the edge's weight, plus `middle`, rounded and clamped.
- int8, `[weights, 80]`: the same without a product, see :mod:`dqconvert.kernels.cpu.integer.lines`.
- uint8, `[weights, 16]`: codes lie two to a byte; it is the entry of the edge's weight and the code.
- int16: there is no table, it is the code.
"""

from __future__ import annotations

import itertools
from typing import Any

from numba import types
from numba.extending import intrinsic

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.messages import MAX, MIN, SUM, Codes, Halves, Lines, Products, all_lanes
from dqconvert.kernels.cpu.llvm.prefetch import LINE, ask

AHEAD = 32
"""How many edges ahead rows are asked for; measured best among 8, 16 and 32: an edge takes little time here."""

LEAST, MOST = 8, 128
"""Bytes of the rows that the narrowest and the widest strip take; those between double."""

MADE = 64
"""The widest strip of messages that are made of the codes: what it takes to make them fills the registers, too."""

_PIECES = {24: (16, 8), 40: (32, 8), 48: (32, 16), 72: (64, 8), 80: (64, 16), 96: (64, 32)}
"""Strips of sums that are put together of two: edges are gone through once."""

_KINDS: dict[Any, type[Codes] | type[Products]] = {
    types.float32: Products,
    types.int8: Lines,
    types.uint8: Halves,
    types.int16: Codes,
}
"""Of messages, by the type of the table."""


def _strip(size: int, reduce: int) -> Any:
    """A loop over edges for `size` bytes of each row; what it finds goes to `out`, int32, a column each."""

    @intrinsic
    def strip(  # type: ignore[no-untyped-def]
        typing_context, x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out
    ):
        number, one = types.intp, types.int32
        kinds = x, number, senders, number, number, number, weights, number, table, one, one, one, one, out
        kind = _KINDS[table.dtype]

        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out = args
            index = x_row.type
            pieces = [kind(piece, reduce) for piece in _PIECES.get(size, (size,))]
            for piece in pieces:
                piece.prepare(builder, zero, middle, low, high)

            def row_of(edge: Any) -> Any:
                sender = builder.load(builder.gep(senders, [edge]))
                sender = sender if sender.type == index else builder.zext(sender, index)
                return builder.gep(x, [builder.mul(sender, x_row)])

            entry = builder.block
            body, done = builder.append_basic_block("edges"), builder.append_basic_block("done")
            builder.branch(body)

            builder.position_at_end(body)
            edge = builder.phi(index)
            states = [[builder.phi(kind) for kind in piece.states] for piece in pieces]
            later = builder.add(edge, index(AHEAD))
            later = row_of(builder.select(builder.icmp_signed("<", later, last), later, last))
            for line in sorted({*range(0, size, LINE), size - 1}):
                ask(builder, builder.gep(later, [index(line)]))
            weight = None
            if kind is not Codes:
                weight = builder.load(builder.gep(weights, [builder.mul(edge, heads)]))
                weight = builder.zext(weight, index)
            row, after = row_of(edge), []
            for piece, before in zip(pieces, states, strict=True):
                after.append(piece.add(builder, row, piece.of_edge(builder, table, weight), before))
                row = builder.gep(row, [index(piece.size)])
            following = builder.add(edge, index(1))
            builder.cbranch(builder.icmp_signed("<", following, stop), body, done)
            edge.add_incoming(start, entry)
            edge.add_incoming(following, body)
            for piece, before, new in zip(pieces, states, after, strict=True):
                for state, value in zip(before, new, strict=True):
                    state.add_incoming(all_lanes(piece.first, state.type), entry)
                    state.add_incoming(value, body)

            builder.position_at_end(done)
            at = 0
            results = (piece.results(builder, new) for piece, new in zip(pieces, after, strict=True))
            for found in itertools.chain.from_iterable(results):
                place = builder.gep(out, [index(at)])
                stored = builder.store(found, builder.bitcast(place, found.type.as_pointer()))
                stored.align = 4
                at += found.type.count
            return context.get_dummy_value()

        return types.void(*kinds), write

    return strip


_sum8, _sum16, _sum32, _sum64, _sum128 = (_strip(size, SUM) for size in (8, 16, 32, 64, 128))
_sum24, _sum40, _sum48, _sum72, _sum80, _sum96 = (_strip(size, SUM) for size in _PIECES)
_max8, _max16, _max32, _max64, _max128 = (_strip(size, MAX) for size in (8, 16, 32, 64, 128))
_min8, _min16, _min32, _min64, _min128 = (_strip(size, MIN) for size in (8, 16, 32, 64, 128))


@loop
def reduce_edges(  # type: ignore[no-untyped-def]
    size, reduce, x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out
):
    """Over the edges `start` to `stop`, of which there is one, of `size` bytes of the senders' rows; see `_strip`.

    By pointers: `x` to the first of these bytes, `weights` to that of edge 0, edges `heads` apart. Rows of edges to
    come, up to `last`, are asked for.
    """
    if reduce == SUM:
        if size == 128:
            _sum128(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 96:
            _sum96(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 80:
            _sum80(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 72:
            _sum72(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 64:
            _sum64(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 48:
            _sum48(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 40:
            _sum40(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 32:
            _sum32(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 24:
            _sum24(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 16:
            _sum16(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        else:
            _sum8(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif reduce == MAX:
        if size == 128:
            _max128(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 64:
            _max64(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 32:
            _max32(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 16:
            _max16(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        else:
            _max8(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 128:
        _min128(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 64:
        _min64(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 32:
        _min32(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 16:
        _min16(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    else:
        _min8(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)

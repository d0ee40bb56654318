"""Sums of rows of codes: bytes are added as 16-bit numbers, 32 columns in two vectors, and stay in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from dqconvert.kernels._prefetch import AHEAD, LINE, ask
from dqconvert.kernels._threads import loop

WIDTH = 32
"""Columns, and bytes, of a vector. Rows are read up to whole vectors: so much must lie behind the last one."""

_MOST = 257
"""Rows of bytes whose sum is sure to fit into 16 bits."""

_BYTES, _HALVES = ir.IntType(8), ir.IntType(16)
_LANES = WIDTH // 2


def _strip(vectors: int) -> Any:
    """A loop over some edges: adds up `vectors` vectors of the rows of their senders."""

    @intrinsic
    def strip(typing_context, codes, at, columns, senders, start, stop, end, sums, to):  # type: ignore[no-untyped-def]
        number = types.intp
        signature = types.void(codes, number, number, senders, number, number, number, sums, number)

        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            codes, at, columns, senders, start, stop, end, sums, to = args

            def data(position: int, array: Any) -> Any:
                return arrayobj.make_array(signature.args[position])(context, builder, array).data

            first, edges, totals = data(0, codes), data(3, senders), data(7, sums)
            index = at.type
            halves = ir.VectorType(_HALVES, _LANES)
            zero = ir.Constant(halves, None)
            low = ir.Constant(halves, [255] * _LANES)
            eight = ir.Constant(halves, [8] * _LANES)

            def row(edge: Any) -> Any:
                sender = builder.load(builder.gep(edges, [edge]))
                wide = sender if sender.type == index else builder.sext(sender, index)
                return builder.gep(first, [builder.add(builder.mul(wide, columns), at)])

            entry = builder.block
            body, done = builder.append_basic_block("edges"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", start, stop), body, done)

            builder.position_at_end(body)
            edge = builder.phi(index)
            before = [builder.phi(halves) for _ in range(2 * vectors)]
            # Near the end it asks for the last row again, which costs nothing.
            soon, last = builder.add(edge, index(AHEAD)), builder.sub(end, index(1))
            place = row(builder.select(builder.icmp_signed("<", soon, last), soon, last))
            for byte in range(0, vectors * WIDTH, LINE):
                ask(builder, builder.gep(place, [index(byte)]))
            place = row(edge)
            after = []
            for vector in range(vectors):
                source = builder.bitcast(builder.gep(place, [index(vector * WIDTH)]), halves.as_pointer())
                pair = builder.load(source)
                pair.align = 1
                after.append(builder.add(before[2 * vector], builder.and_(pair, low)))
                after.append(builder.add(before[2 * vector + 1], builder.lshr(pair, eight)))
            following = builder.add(edge, index(1))
            builder.cbranch(builder.icmp_signed("<", following, stop), body, done)
            edge.add_incoming(start, entry)
            edge.add_incoming(following, body)
            for old, new in zip(before, after, strict=True):
                old.add_incoming(zero, entry)
                old.add_incoming(new, body)

            builder.position_at_end(done)
            found = [builder.phi(halves) for _ in range(2 * vectors)]
            for total, new in zip(found, after, strict=True):
                total.add_incoming(zero, entry)
                total.add_incoming(new, body)
            # Even and odd columns, in turn.
            order = ir.Constant(
                ir.VectorType(ir.IntType(32), WIDTH), [lane // 2 + _LANES * (lane % 2) for lane in range(WIDTH)]
            )
            whole = ir.VectorType(ir.IntType(32), WIDTH)
            for vector in range(vectors):
                mixed = builder.shuffle_vector(found[2 * vector], found[2 * vector + 1], order)
                target = builder.bitcast(
                    builder.gep(totals, [builder.add(to, index(vector * WIDTH))]), whole.as_pointer()
                )
                old = builder.load(target)
                old.align = 4
                stored = builder.store(builder.add(old, builder.zext(mixed, whole)), target)
                stored.align = 4
            return context.get_dummy_value()

        return signature, write

    return strip


_1, _2, _4 = _strip(1), _strip(2), _strip(4)


@loop
def add_rows(codes, columns, senders, start, stop, end, sums):  # type: ignore[no-untyped-def]
    """Adds rows `senders[start:stop]` of the codes to `sums`.

    `codes`: uint8, flat, `columns` to a row, and `WIDTH` more behind the last one. `end`: up to which edge rows may be
    asked for ahead. `sums`: int32, as many as whole vectors hold; those beyond the columns are of no meaning.
    """
    for first in range(start, stop, _MOST):
        last = min(first + _MOST, stop)
        at = 0
        while columns - at > 2 * WIDTH:
            _4(codes, at, columns, senders, first, last, end, sums, at)
            at += 4 * WIDTH
        if columns - at > WIDTH:
            _2(codes, at, columns, senders, first, last, end, sums, at)
        elif columns - at > 0:
            _1(codes, at, columns, senders, first, last, end, sums, at)


@loop
def room_for(columns):  # type: ignore[no-untyped-def]
    """How many sums `add_rows` writes to."""
    return (columns + 4 * WIDTH - 1) // (4 * WIDTH) * 4 * WIDTH

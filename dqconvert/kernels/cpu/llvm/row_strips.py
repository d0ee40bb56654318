"""Sums of rows that are stored as codes: a strip of columns stays in registers while the loop runs along the edges."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.multiply import VECTOR
from dqconvert.kernels.cpu.llvm.prefetch import AHEAD, LINE, ask
from dqconvert.kernels.cpu.llvm.vectors import everywhere

_BYTE, _LANE = ir.IntType(8), ir.IntType(32)


def _strip(vectors: int) -> Any:
    """A loop over some edges, for so many vectors of columns."""

    @intrinsic
    def strip(typing_context, codes, at, columns, senders, start, stop, end, offset, scale, sums):  # type: ignore[no-untyped-def]
        number, value = types.intp, sums.dtype
        signature = types.void(codes, number, number, senders, number, number, number, value, value, sums)

        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            codes, at, columns, senders, start, stop, end, offset, scale, sums = args

            def data(position: int, array: Any) -> Any:
                return arrayobj.make_array(signature.args[position])(context, builder, array).data

            first, edges, totals = data(0, codes), data(3, senders), builder.gep(data(9, sums), [at])
            index, scalar = at.type, offset.type
            size = 4 if isinstance(scalar, ir.FloatType) else 8
            lanes = VECTOR // size
            vector = ir.VectorType(scalar, lanes)

            def place_of(edge: Any) -> Any:
                row = builder.load(builder.gep(edges, [edge]))
                return builder.gep(first, [builder.add(builder.mul(row, columns), at)])

            places = [
                builder.bitcast(builder.gep(totals, [index(number * lanes)]), vector.as_pointer())
                for number in range(vectors)
            ]
            offset, scale, before = everywhere(builder, offset, lanes), everywhere(builder, scale, lanes), []
            for place in places:
                loaded = builder.load(place)
                loaded.align = size
                before.append(loaded)
            entry = builder.block
            body, done = builder.append_basic_block("edges"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", start, stop), body, done)

            builder.position_at_end(body)
            edge = builder.phi(index)
            found = [builder.phi(vector) for _ in range(vectors)]
            # Near the end it asks for the last row again, which costs nothing.
            soon, last = builder.add(edge, index(AHEAD)), builder.sub(end, index(1))
            ahead = place_of(builder.select(builder.icmp_signed("<", soon, last), soon, last))
            for byte in range(0, vectors * lanes, LINE):
                ask(builder, builder.gep(ahead, [index(byte)]))
            row, after = place_of(edge), []
            for number in range(vectors):
                source = builder.gep(row, [index(number * lanes)])
                part = builder.load(builder.bitcast(source, ir.VectorType(_BYTE, lanes).as_pointer()))
                part.align = 1
                value = builder.sitofp(builder.zext(part, ir.VectorType(_LANE, lanes)), vector)
                value = builder.fmul(builder.fadd(value, offset), scale)
                after.append(builder.fadd(found[number], value))
            following = builder.add(edge, index(1))
            builder.cbranch(builder.icmp_signed("<", following, stop), body, done)
            edge.add_incoming(start, entry)
            edge.add_incoming(following, body)
            for total, old, new in zip(found, before, after, strict=True):
                total.add_incoming(old, entry)
                total.add_incoming(new, body)

            builder.position_at_end(done)
            results = [builder.phi(vector) for _ in range(vectors)]
            for total, old, new in zip(results, before, after, strict=True):
                total.add_incoming(old, entry)
                total.add_incoming(new, body)
            for place, total in zip(places, results, strict=True):
                builder.store(total, place).align = size
            return context.get_dummy_value()

        return signature, write

    return strip


_1, _2, _4, _8 = (_strip(vectors) for vectors in (1, 2, 4, 8))


@loop
def add_rows(codes, columns, senders, start, stop, end, offset, scale, sums):  # type: ignore[no-untyped-def]
    """Adds `(code + offset) * scale` of the rows `senders[start:stop]` to `sums`, one row after the other.

    `codes`: uint8, flat, `columns` to a row, and `VECTOR` more behind the last one, as whole vectors are read. `end`:
    up to which edge rows may be asked for ahead. `sums`: as many as `room_for` says; those beyond the columns are of
    no meaning.
    """
    lanes = VECTOR // sums.itemsize
    groups, group = (columns + lanes - 1) // lanes, 0
    while groups - group >= 8:
        _8(codes, group * lanes, columns, senders, start, stop, end, offset, scale, sums)
        group += 8
    if groups - group >= 4:
        _4(codes, group * lanes, columns, senders, start, stop, end, offset, scale, sums)
        group += 4
    if groups - group >= 2:
        _2(codes, group * lanes, columns, senders, start, stop, end, offset, scale, sums)
        group += 2
    if groups - group >= 1:
        _1(codes, group * lanes, columns, senders, start, stop, end, offset, scale, sums)


@loop
def room_for(columns, itemsize):  # type: ignore[no-untyped-def]
    """How many sums there are in whole vectors."""
    lanes = VECTOR // itemsize
    return (columns + lanes - 1) // lanes * lanes

"""Sums over the edges of a node, of a few columns at a time: they stay in registers while a loop runs along the edges.

What a message is made of is seen by the type of the table:

- float32, `[256]`: it is a code less `zero`, times the entry of the edge's weight, plus `middle`, rounded and clamped.
- uint8, `[weights, 16]`: codes lie two to a byte; it is the entry of the edge's weight and the code.
- int16: there is no table, it is the code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqconvert.kernels._prefetch import LINE, ask
from dqconvert.kernels._threads import loop

SUM, MAX, MIN = range(3)

AHEAD = 32
"""How many edges ahead rows are asked for; measured best among 8, 16 and 32: an edge takes little time here."""

LEAST, MOST = 8, 64
"""Bytes of the rows that the narrowest and the widest strip take; those between double."""

BIAS = 0x4B400000
"""Of the bits of 1.5 * 2^23 + n, a float32, what is beyond n; adding that number to another rounds it."""

LOOKED_UP = binding.get_host_cpu_features().get("avx2", False)
"""Whether the processor looks up bytes by vectors, so that uint8 tables may be used at all."""

_VECTOR = 32
_BYTE, _SHORT, _INT, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_ROUNDED = float(np.int32(BIAS).view(np.float32))


def _call(builder: Any, name: str, *args: Any) -> Any:
    """Calls an intrinsic function of LLVM's, of vectors."""
    kind = args[0].type
    scalar = "f32" if kind.element == _FLOAT else f"i{kind.element.width}"
    function = ir.FunctionType(kind, [kind] * len(args))
    name = name if ".x86." in name else f"{name}.v{kind.count}{scalar}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def _all(value: int | float, kind: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _everywhere(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, _INT(0))
    return builder.shuffle_vector(one, nothing, _all(0, ir.VectorType(_INT, lanes)))


def _load(builder: Any, place: Any, kind: Any) -> Any:
    loaded = builder.load(builder.bitcast(place, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _join(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _interleave(builder: Any, a: Any, b: Any) -> Any:
    count = a.type.count
    return _join(builder, a, b, [lane for k in range(count) for lane in (k, count + k)])


class _Codes:
    """Messages of a row that are bytes: codes, or what a table has for each half of a byte."""

    def __init__(self, size: int, reduce: int, packed: bool) -> None:
        self.lanes, self.reduce, self.packed = min(size, _VECTOR), reduce, packed
        self.bytes = ir.VectorType(_BYTE, self.lanes)
        self.places = range(0, size, self.lanes)
        state = self.bytes if reduce != SUM else ir.VectorType(_SHORT, self.lanes // 2)
        self.states = [state] * (len(self.places) * (1 + packed) * (1 + (reduce == SUM)))
        self.first = 255 if reduce == MIN else 0

    def prepare(self, builder: Any, zero: Any, middle: Any, low: Any, high: Any) -> None:
        """What is the same for all edges."""

    def of_edge(self, builder: Any, table: Any, weight: Any) -> Any:
        """What is the same for the columns of an edge."""
        if not self.packed:
            return None
        # A table's row for each of the parts of a vector in which the processor looks up.
        row = builder.gep(table, [builder.mul(weight, weight.type(16))])
        entries = _load(builder, row, ir.VectorType(_BYTE, 16))
        return entries if self.lanes < _VECTOR else _join(builder, entries, entries, [*range(16)] * 2)

    def add(self, builder: Any, row: Any, entries: Any, states: list[Any]) -> list[Any]:
        messages = []
        for place in self.places:
            codes = _load(builder, builder.gep(row, [ir.IntType(64)(place)]), self.bytes)
            messages += self._look_up(builder, codes, entries) if self.packed else [codes]
        if self.reduce != SUM:
            name = "llvm.umax" if self.reduce == MAX else "llvm.umin"
            return [_call(builder, name, *pair) for pair in zip(states, messages, strict=True)]
        shorts = ir.VectorType(_SHORT, self.lanes // 2)
        halves = []
        for message in messages:
            both = builder.bitcast(message, shorts)
            halves += [builder.and_(both, _all(255, shorts)), builder.lshr(both, _all(8, shorts))]
        return [builder.add(*pair) for pair in zip(states, halves, strict=True)]

    def _look_up(self, builder: Any, codes: Any, entries: Any) -> list[Any]:
        low = builder.and_(codes, _all(15, self.bytes))
        high = builder.lshr(codes, _all(4, self.bytes))
        if self.lanes == _VECTOR:
            return [_call(builder, "llvm.x86.avx2.pshuf.b", entries, half) for half in (low, high)]
        found = []
        for half in (low, high):
            wide = _join(builder, half, half, [k % self.lanes for k in range(16)])
            wide = _call(builder, "llvm.x86.ssse3.pshuf.b.128", entries, wide)
            found.append(_join(builder, wide, wide, [*range(self.lanes)]))
        return found

    def results(self, builder: Any, states: list[Any]) -> list[Any]:
        """In the order of the columns."""
        for _ in range(self.packed + (self.reduce == SUM)):
            states = [_interleave(builder, *states[k : k + 2]) for k in range(0, len(states), 2)]
        return [builder.zext(state, ir.VectorType(_INT, state.type.count)) for state in states]


class _Products:
    """Messages of a row that are products, as bits of floats: the sums are by `BIAS` too large for every message."""

    def __init__(self, size: int, reduce: int) -> None:
        self.ints, self.floats = ir.VectorType(_INT, 8), ir.VectorType(_FLOAT, 8)
        self.places, self.reduce = range(0, size, 8), reduce
        self.states = [self.ints] * len(self.places)
        self.first = {SUM: 0, MAX: -(1 << 31), MIN: (1 << 31) - 1}[reduce]

    def prepare(self, builder: Any, zero: Any, middle: Any, low: Any, high: Any) -> None:
        self.middle = builder.sitofp(_everywhere(builder, middle, 8), self.floats)
        self.zero, self.low, self.high = (_everywhere(builder, number, 8) for number in (zero, low, high))

    def of_edge(self, builder: Any, table: Any, weight: Any) -> Any:
        return _everywhere(builder, builder.load(builder.gep(table, [weight])), 8)

    def add(self, builder: Any, row: Any, factor: Any, states: list[Any]) -> list[Any]:
        after = []
        for place, state in zip(self.places, states, strict=True):
            codes = _load(builder, builder.gep(row, [ir.IntType(64)(place)]), ir.VectorType(_BYTE, 8))
            centred = builder.sitofp(builder.sub(builder.zext(codes, self.ints), self.zero), self.floats)
            # Rounded where training rounds: beside a half, the even one depends on the sum with its zero point.
            steps = _call(builder, "llvm.fma", centred, factor, self.middle)
            rounded = builder.fadd(steps, _all(_ROUNDED, self.floats))
            message = builder.bitcast(rounded, self.ints)
            message = _call(builder, "llvm.smin", _call(builder, "llvm.smax", message, self.low), self.high)
            if self.reduce == SUM:
                after.append(builder.add(state, message))
            else:
                after.append(_call(builder, "llvm.smax" if self.reduce == MAX else "llvm.smin", state, message))
        return after

    def results(self, builder: Any, states: list[Any]) -> list[Any]:
        return states


def _strip(size: int, reduce: int) -> Any:
    """A loop over edges for `size` bytes of each row; what it finds goes to `out`, int32, a column each."""

    @intrinsic
    def strip(  # type: ignore[no-untyped-def]
        typing_context, x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out
    ):
        number, one = types.intp, types.int32
        kinds = x, number, senders, number, number, number, weights, number, table, one, one, one, one, out
        packed = table.dtype == types.uint8
        weighted = table.dtype == types.float32

        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out = args
            index = x_row.type
            messages = _Products(size, reduce) if weighted else _Codes(size, reduce, packed)
            messages.prepare(builder, zero, middle, low, high)

            def row_of(edge: Any) -> Any:
                sender = builder.load(builder.gep(senders, [edge]))
                sender = sender if sender.type == index else builder.zext(sender, index)
                return builder.gep(x, [builder.mul(sender, x_row)])

            entry = builder.block
            body, done = builder.append_basic_block("edges"), builder.append_basic_block("done")
            builder.branch(body)

            builder.position_at_end(body)
            edge = builder.phi(index)
            states = [builder.phi(kind) for kind in messages.states]
            later = builder.add(edge, index(AHEAD))
            later = row_of(builder.select(builder.icmp_signed("<", later, last), later, last))
            for line in sorted({*range(0, size, LINE), size - 1}):
                ask(builder, builder.gep(later, [index(line)]))
            weight = None
            if weighted or packed:
                weight = builder.load(builder.gep(weights, [builder.mul(edge, heads)]))
                weight = builder.zext(weight, index)
            after = messages.add(builder, row_of(edge), messages.of_edge(builder, table, weight), states)
            following = builder.add(edge, index(1))
            builder.cbranch(builder.icmp_signed("<", following, stop), body, done)
            edge.add_incoming(start, entry)
            edge.add_incoming(following, body)
            for state, new in zip(states, after, strict=True):
                state.add_incoming(_all(messages.first, state.type), entry)
                state.add_incoming(new, body)

            builder.position_at_end(done)
            at = 0
            for found in messages.results(builder, after):
                place = builder.gep(out, [index(at)])
                stored = builder.store(found, builder.bitcast(place, found.type.as_pointer()))
                stored.align = 4
                at += found.type.count
            return context.get_dummy_value()

        return types.void(*kinds), write

    return strip


_sum8, _sum16, _sum32, _sum64 = (_strip(size, SUM) for size in (8, 16, 32, 64))
_max8, _max16, _max32, _max64 = (_strip(size, MAX) for size in (8, 16, 32, 64))
_min8, _min16, _min32, _min64 = (_strip(size, MIN) for size in (8, 16, 32, 64))


@loop
def reduce_edges(  # type: ignore[no-untyped-def]
    size, reduce, x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out
):
    """Over the edges `start` to `stop`, of which there is one, of `size` bytes of the senders' rows; see `_strip`.

    By pointers: `x` to the first of these bytes, `weights` to that of edge 0, edges `heads` apart. Rows of edges to
    come, up to `last`, are asked for.
    """
    if reduce == SUM:
        if size == 64:
            _sum64(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 32:
            _sum32(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 16:
            _sum16(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        else:
            _sum8(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif reduce == MAX:
        if size == 64:
            _max64(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 32:
            _max32(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        elif size == 16:
            _max16(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
        else:
            _max8(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 64:
        _min64(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 32:
        _min32(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    elif size == 16:
        _min16(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)
    else:
        _min8(x, x_row, senders, start, stop, last, weights, heads, table, zero, middle, low, high, out)

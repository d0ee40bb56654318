"""What an edge sends: the messages of a few columns of a row, by vectors, and their sum or extremes in registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from dqconvert.kernels.cpu.llvm.vectors import BYTE, FLOAT, INT, LONG, SHORT, constant, everywhere, function, load, pick

SUM, MAX, MIN = range(3)

BIAS = 0x4B400000
"""Of the bits of 1.5 * 2^23 + n, a float32, what is beyond n; adding that number to another rounds it."""

_VECTOR = 32
_ROUNDED = float(np.int32(BIAS).view(np.float32))


def _call(builder: Any, name: str, *args: Any) -> Any:
    """Calls an intrinsic function of LLVM's, of vectors."""
    kind = args[0].type
    scalar = "f32" if kind.element == FLOAT else f"i{kind.element.width}"
    name = name if ".x86." in name else f"{name}.v{kind.count}{scalar}"
    return builder.call(function(builder, name, kind, *[kind] * len(args)), args)


def _interleave(builder: Any, a: Any, b: Any) -> Any:
    count = a.type.count
    return pick(builder, a, b, [lane for k in range(count) for lane in (k, count + k)])


class CodeMessages:
    """Messages of a row that are bytes; here its codes."""

    per_byte = 1
    """Columns in a byte of the row."""

    entry = 0
    """Bytes of a weight's entry in the table."""

    def __init__(self, size: int, reduce: int) -> None:
        self.size, self.lanes, self.reduce = size, min(size, _VECTOR), reduce
        self.bytes = ir.VectorType(BYTE, self.lanes)
        self.places = range(0, size, self.lanes)
        state = self.bytes if reduce != SUM else ir.VectorType(SHORT, self.lanes // 2)
        self.states = [state] * (len(self.places) * self.per_byte * (1 + (reduce == SUM)))
        self.first = 255 if reduce == MIN else 0

    def prepare(self, builder: Any, zero: Any, middle: Any, low: Any, high: Any) -> None:
        """Computes what all edges share."""

    def of_edge(self, builder: Any, table: Any, weight: Any) -> Any:
        """Returns what the columns of an edge share: the parts of the weight's entry, to look up in."""
        at = builder.mul(weight, weight.type(self.entry)) if self.entry else None
        parts = []
        for first in range(0, self.entry, 16):
            part = load(builder, builder.gep(table, [builder.add(at, weight.type(first))]), ir.VectorType(BYTE, 16), 1)
            # The processor looks up in each half of a vector by itself.
            parts.append(part if self.lanes < _VECTOR else pick(builder, part, part, [*range(16)] * 2))
        return parts

    def add(self, builder: Any, row: Any, entry: Any, states: list[Any]) -> list[Any]:
        messages = []
        for place in self.places:
            codes = load(builder, builder.gep(row, [LONG(place)]), self.bytes, 1)
            messages += self.messages(builder, codes, entry)
        if self.reduce != SUM:
            name = "llvm.umax" if self.reduce == MAX else "llvm.umin"
            return [_call(builder, name, *pair) for pair in zip(states, messages, strict=True)]
        # Bytes are summed up in 16 bits: even and odd lanes apart, by a mask and a shift, and interleaved at the end.
        shorts = ir.VectorType(SHORT, self.lanes // 2)
        halves = []
        for message in messages:
            both = builder.bitcast(message, shorts)
            halves += [builder.and_(both, constant(255, shorts)), builder.lshr(both, constant(8, shorts))]
        return [builder.add(*pair) for pair in zip(states, halves, strict=True)]

    def messages(self, builder: Any, codes: Any, entry: Any) -> list[Any]:
        """Vectors of bytes: what becomes of a vector of the row."""
        return [codes]

    def results(self, builder: Any, states: list[Any]) -> list[Any]:
        """In the order of the columns."""
        for _ in range((self.per_byte > 1) + (self.reduce == SUM)):
            states = [_interleave(builder, *states[k : k + 2]) for k in range(0, len(states), 2)]
        return [builder.zext(state, ir.VectorType(INT, state.type.count)) for state in states]

    def halves(self, builder: Any, codes: Any) -> tuple[Any, Any]:
        """Returns the lower and the upper four bits of each byte."""
        return builder.and_(codes, constant(15, self.bytes)), builder.lshr(codes, constant(4, self.bytes))

    def look_up(self, builder: Any, part: Any, places: Any) -> Any:
        """Of each lane the byte of a part that lies at its place, below 16."""
        if self.lanes == _VECTOR:
            return _call(builder, "llvm.x86.avx2.pshuf.b", part, places)
        wide = pick(builder, places, places, [k % self.lanes for k in range(16)])
        wide = _call(builder, "llvm.x86.ssse3.pshuf.b.128", part, wide)
        return pick(builder, wide, wide, [*range(self.lanes)])


class PackedMessages(CodeMessages):
    """Codes lie two to a byte; a message is what the weight's entry has for the code."""

    per_byte = 2
    entry = 16

    def messages(self, builder: Any, codes: Any, entry: Any) -> list[Any]:
        return [self.look_up(builder, entry[0], half) for half in self.halves(builder, codes)]


class LineMessages(CodeMessages):
    """Messages are put together of what the weight's entry has for the halves of a code, see `cpu/integer/lines.py`."""

    entry = 80

    def messages(self, builder: Any, codes: Any, entry: Any) -> list[Any]:
        low, high = self.halves(builder, codes)
        more, less, reach = (self.look_up(builder, part, high) for part in entry[:3])
        step, edge = (self.look_up(builder, part, low) for part in entry[3:])
        carry = builder.sext(builder.icmp_signed(">", reach, edge), self.bytes)  # all bits, which is -1
        message = builder.sub(step, carry)
        message = _call(builder, "llvm.usub.sat", message, less)
        return [_call(builder, "llvm.uadd.sat", message, more)]


class ProductMessages:
    """Messages of a row that are products, as bits of floats: the sums are by `BIAS` too large for every message."""

    def __init__(self, size: int, reduce: int) -> None:
        self.ints, self.floats = ir.VectorType(INT, 8), ir.VectorType(FLOAT, 8)
        self.size, self.places, self.reduce = size, range(0, size, 8), reduce
        self.states = [self.ints] * len(self.places)
        self.first = {SUM: 0, MAX: -(1 << 31), MIN: (1 << 31) - 1}[reduce]

    def prepare(self, builder: Any, zero: Any, middle: Any, low: Any, high: Any) -> None:
        self.middle = builder.sitofp(everywhere(builder, middle, 8), self.floats)
        self.zero, self.low, self.high = (everywhere(builder, number, 8) for number in (zero, low, high))

    def of_edge(self, builder: Any, table: Any, weight: Any) -> Any:
        """Returns what the columns of an edge share."""
        return everywhere(builder, builder.load(builder.gep(table, [weight])), 8)

    def add(self, builder: Any, row: Any, factor: Any, states: list[Any]) -> list[Any]:
        after = []
        for place, state in zip(self.places, states, strict=True):
            codes = load(builder, builder.gep(row, [LONG(place)]), ir.VectorType(BYTE, 8), 1)
            centred = builder.sitofp(builder.sub(builder.zext(codes, self.ints), self.zero), self.floats)
            # Rounded where training rounds: beside a half, the even one depends on the sum with its zero point.
            steps = _call(builder, "llvm.fma", centred, factor, self.middle)
            rounded = builder.fadd(steps, constant(_ROUNDED, self.floats))
            message = builder.bitcast(rounded, self.ints)
            message = _call(builder, "llvm.smin", _call(builder, "llvm.smax", message, self.low), self.high)
            if self.reduce == SUM:
                after.append(builder.add(state, message))
            else:
                after.append(_call(builder, "llvm.smax" if self.reduce == MAX else "llvm.smin", state, message))
        return after

    def results(self, builder: Any, states: list[Any]) -> list[Any]:
        return states

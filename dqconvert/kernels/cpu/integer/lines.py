"""Products of a code and a weight, rounded and clamped, as sums of bytes that are looked up: exact, without a product.

A code is `16 * h + l`. Of a line, the two steps add up but for a carry:

    floor(base + slope * (16 * h + l)) = floor(base + slope * 16 * h) + floor(slope * l) + carry(h, l)

with `carry(h, l)` where the fractions of both add up to one, that is, where `h` reaches beyond the edge of `l`: as
there are sixteen of each, a rank below seventeen says it. The entry of a weight is sixteen bytes each of

- what a message has more and what it has less, for `h`: the first term, by its sign,
- how many of the edges `h` reaches beyond,
- what a message has more, for `l`: the second term,
- the rank of the edge of `l`.

The sums saturate, which clamps them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.messages import LineMessages
from dqconvert.kernels.cpu.llvm.vectors import AVX2

TRIES = np.array([0.0, 1e-5, -1e-5, 3e-5, -3e-5, 1e-4, -1e-4])
"""By how much a line is moved, to go past values half way between two messages where training does."""


@functools.lru_cache(maxsize=64)
def _cached(multipliers: bytes, zero: int, middle: int, low: int, top: int) -> NDArray[Any] | None:
    slopes = np.frombuffer(multipliers, np.float32)
    entries = np.zeros((slopes.size, LineMessages.entry), np.uint8)
    return entries.view(np.int8) if draw_lines(slopes, zero, middle, low, top, TRIES, entries) else None


def lines(multipliers: NDArray[Any], zero: int, middle: int, low: int, top: int) -> NDArray[Any] | None:
    """Returns int8 `[weights, 80]`, an entry for each multiplier; None if there are messages that none gives.

    Args:
        multipliers: float32 `[weights]`, finite.
        zero: Of the codes.
        middle: The message of nothing.
        low: The lowest message.
        top: How far above it the highest one is, at most 255.

    A message comes out by `255 - top - low` too large.
    """
    if not AVX2 or not 0 <= top <= 255:
        return None
    return _cached(multipliers.tobytes(), zero, middle, low, top)


@loop
def draw_lines(multipliers, zero, middle, low, top, tries, entries):  # type: ignore[no-untyped-def]
    """Fills the entries; False if one of them would not give every message as :func:`message_of` does."""
    wanted = np.empty(256, np.int64)
    for weight in range(multipliers.size):
        slope = np.float64(multipliers[weight])
        for code in range(256):
            wanted[code] = message_of(code, slope, zero, middle, low, top)
        found = False
        for k in range(tries.size):
            # Training rounds halves to even, a floor rounds them up: a line moved by a little tells them apart.
            draw_line(slope, 0.5 + tries[k] + (middle - low) - zero * slope, top, entries[weight])
            if holds(entries[weight], wanted, top):
                found = True
                break
        if not found:
            return False
    return True


@loop
def message_of(code, multiplier, zero, middle, low, top):  # type: ignore[no-untyped-def]
    """Returns a message, counted from the lowest one, as training rounds it."""
    steps = np.rint(np.float32((code - zero) * multiplier + middle))
    return np.int64(min(max(steps, np.float32(low)), np.float32(low + top))) - low


@loop
def draw_line(slope, base, top, entry):  # type: ignore[no-untyped-def]
    # For the low half of a code: whole steps, counted from the least, and the rank of what is left of them. Ranks
    # stand for fractions, as a carry depends on nothing but the order of the sixteen.
    steps, parts = np.empty(16, np.int64), np.empty(16)
    for low in range(16):
        steps[low] = np.int64(np.floor(slope * low))
        parts[low] = slope * low - steps[low]
    least = steps.min()
    for low in range(16):
        entry[48 + low] = min(steps[low] - least, 255)
        rank = 0
        for other in range(16):
            if parts[other] > parts[low] or (parts[other] == parts[low] and other < low):
                rank += 1
        entry[64 + low] = rank
    for high in range(16):
        # For the high half: whole steps, and of how many low halves the fraction carries one over.
        start = base + slope * 16 * high
        whole = np.int64(np.floor(start))
        reach = 0
        for low in range(16):
            if np.int64(np.floor(start + slope * low)) > whole + steps[low]:
                reach += 1
        entry[32 + high] = reach
        whole += least
        entry[high] = min(max(whole, 0) + 255 - top, 255)
        entry[16 + high] = min(max(-whole, 0), 255)


@loop
def holds(entry, wanted, top):  # type: ignore[no-untyped-def]
    """True if an entry gives what is wanted, for every code, in the arithmetic of :class:`LineMessages`."""
    for code in range(256):
        high, low = code >> 4, code & 15
        message = np.int64(entry[48 + low])
        if entry[32 + high] > entry[64 + low]:  # the fractions of both halves add up to one
            message = (message + 1) & 255
        # Saturating at 0 and at 255 is what clamps messages to the grid: the grid's top is moved to 255.
        message -= min(message, np.int64(entry[16 + high]))
        message = min(message + np.int64(entry[high]), np.int64(255))
        if message - (255 - top) != wanted[code]:
            return False
    return True

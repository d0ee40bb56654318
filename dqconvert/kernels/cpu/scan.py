"""Loops that look through whole tensors once."""

from __future__ import annotations

from dqconvert.kernels.cpu.compiled import loop

_BLOCK = 1 << 12
"""Values after which a comparison stops if one of them differs."""


@loop
def rises(ptr, count):  # type: ignore[no-untyped-def]
    """True if numbers rise from 0 to `count`."""
    falls = False
    for i in range(ptr.size - 1):
        falls |= ptr[i + 1] < ptr[i]
    return ptr[0] == 0 and ptr[ptr.size - 1] == count and not falls


@loop
def equal_part(one, two, start, stop):  # type: ignore[no-untyped-def]
    for first in range(start, stop, _BLOCK):
        different = two[first] ^ two[first]
        for i in range(first, min(first + _BLOCK, stop)):
            different |= two[i] ^ one[i]
        if different != 0:
            return False
    return True

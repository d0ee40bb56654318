"""Damaged copies of a file, shared by the tests: what disks, networks and people do to checkpoints."""

import random
import re
import struct


def mutations(data, count, seed=0):
    """Yields ``count`` damaged versions of the bytes ``data``, all of them different from it."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        damaged = rng.choice(KINDS)(data, rng)
        if damaged != data:
            made += 1
            yield damaged


def truncated(data, rng):
    return data[: rng.randrange(len(data))]


def flipped_bit(data, rng):
    return _flip(data, rng.randrange(len(data)), rng)


def flipped_early(data, rng):
    """In the first 2,000 bytes, where headers are."""
    return _flip(data, rng.randrange(min(2000, len(data))), rng)


def flipped_late(data, rng):
    """In the last 600 bytes, where a zip archive has its table of contents."""
    return _flip(data, len(data) - 1 - rng.randrange(min(600, len(data))), rng)


def huge_length(data, rng):
    """Another number where safetensors has the length of its header."""
    number = rng.choice([0, 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1, rng.randrange(2 * len(data))])
    return struct.pack("<Q", number) + data[8:]


def wrong_json(data, rng):
    """A character of punctuation or a number in the header becomes another."""
    at = rng.choice([match.start() for match in re.finditer(rb'[{}\[\]",:0-9]', data[:4000])] or [0])
    return data[:at] + rng.choice([b"{", b"]", b'"', b",", b"9", b"-", b"", b"99999999999"]) + data[at + 1 :]


def wrong_dtype(data, rng):
    """One type's name for another."""
    names = [b"F32", b"I64", b"BF16", b"F64", b"BOOL", b"FloatStorage", b"LongStorage", b"DoubleStorage", b"float32"]
    old, new = rng.sample(names, 2)
    return data.replace(b'"' + old, b'"' + new, 1) if b'"' + old in data else data.replace(old, new, 1)


def swapped_blocks(data, rng):
    size = max(1, len(data) // 50)
    a, b = sorted(rng.sample(range(len(data) - size), 2))
    b = max(b, a + size)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def zeroed(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(64, len(data) - start)) + data[start + 64 :]


def appended(data, rng):
    return data + rng.randbytes(rng.randrange(1, 100))


def _flip(data, at, rng):
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


KINDS = [
    truncated,
    flipped_bit,
    flipped_early,
    flipped_late,
    huge_length,
    wrong_json,
    wrong_dtype,
    swapped_blocks,
    zeroed,
    appended,
]

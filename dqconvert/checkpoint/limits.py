"""Limits of what a file may ask for: everything is measured against the bytes that are there.

A file of a hundred kilobytes could else unpack to gigabytes, or hold numbers of thousands of digits.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

GROWTH = 64
"""How many bytes one byte may unpack to; what ``convert`` writes grows fifteenfold."""

ROOM = 1 << 16
"""Bytes, and things, that a description may have in any case."""

TABLES = 1 << 26
"""Bytes that the tables of a file may have in any case."""

_DIGITS = 20
_DEEP = 100
_DIMS = 64
_LONGEST = 1 << 48


def read_json(text: bytes | str, paid: int) -> Any:
    """Returns the data of a JSON text, if it is not out of proportion.

    Args:
        paid: How many bytes of the file it came from.

    Raises:
        ValueError: If it is no JSON, or has too many values for so few bytes, numbers that no file has (of more digits
            than an int64, not finite), or values nested too deep.

    Example:
        >>> read_json('{"a": [1, 2.5]}', paid=15)
        {'a': [1, 2.5]}
        >>> read_json("[" * 100_000, paid=10)
        Traceback (most recent call last):
            ...
        ValueError: 100000 values in 10 bytes
    """
    plain = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    count = sum(plain.count(mark) for mark in (b",", b"[", b"{"))
    if count > 8 * paid + ROOM:
        raise ValueError(f"{count} values in {paid} bytes")
    try:
        found = json.loads(text, parse_int=_whole, parse_float=_number, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("values are nested too deep") from error
    _check_depth(found)
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits) if len(digits) <= 2 * _DIGITS else math.inf
    return value if math.isfinite(value) else _refuse(digits[:_DIGITS])


def _refuse(word: str) -> float:
    raise ValueError(f"the number {word}")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEP):
        parents = [item for item in level if isinstance(item, dict | list)]
        if not parents:
            return
        level = [item for parent in parents for item in (parent.values() if isinstance(parent, dict) else parent)]
    raise ValueError("values are nested too deep")


def unpack(packed: bytes) -> bytes:
    """Returns what was deflated, if it is not out of proportion.

    Raises:
        ValueError: If it is, or damaged.

    Example:
        >>> unpack(zlib.compress(b"some text"))
        b'some text'
        >>> unpack(zlib.compress(bytes(10_000_000)))
        Traceback (most recent call last):
            ...
        ValueError: 97... bytes unpack to more than 688...
    """
    most = GROWTH * len(packed) + ROOM
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(packed, most)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not reader.eof:
        raise ValueError(f"{len(packed)} bytes unpack to more than {most}")
    return text


def check_shape(shape: object) -> Sequence[int]:
    """Returns a shape as it is, if it is a list of sizes that a tensor can have.

    Raises:
        ValueError: If not.

    Example:
        >>> check_shape([2, 3])
        [2, 3]
        >>> check_shape([2, 2.5])
        Traceback (most recent call last):
            ...
        ValueError: the shape [2, 2.5]
    """
    if isinstance(shape, list) and len(shape) <= _DIMS and all(map(_is_size, shape)):
        sizes: Sequence[int] = shape
        if math.prod(size for size in sizes if size) <= _LONGEST:
            return sizes
    raise ValueError(f"the shape {str(shape)[:80]}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LONGEST

"""Constants that recorded code passes, as plain Python: numpy's scalars, enumerations and other kinds of numbers."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

MOST = 4096
"""Numbers in an array that a graph holds as a literal."""


_PYTHONS = frozenset((bool, int, float, complex, str, type(None)))


def literal(value: Any) -> Any:
    """Returns a constant as a graph holds it: any number as an ``int``, ``float``, ``bool`` or ``complex``.

    What torch takes for a number (numpy's scalars, members of an ``IntEnum``, subclasses of ``float``) computes as that
    number, and text prints as it is only where its type is Python's own. Other values come back as they are.

    Example:
        >>> literal(np.float64(4.0)), literal(np.int64(3)), literal(np.bool_(True)), literal("a")
        (4.0, 3, True, 'a')
    """
    if type(value) in _PYTHONS:
        return value
    if isinstance(value, np.generic):
        found = value.item()
        return found if isinstance(found, bool | int | float | complex | str) else value
    for kind in (bool, int, float, complex, str):
        if isinstance(value, kind):
            return value if type(value) is kind else _plain(kind, value)
    return value


def _plain(kind: type, value: Any) -> Any:
    """Returns the number or text that a subclass adds to."""
    if kind is str:
        return str.__str__(value.value if isinstance(value, enum.Enum) else value)
    return kind.__new__(kind, value) if kind is complex else getattr(kind, f"__{kind.__name__}__")(value)


def as_data(value: Any) -> Any:
    """Returns the data for ``torch.tensor`` with numpy's arrays and scalars as nested lists and numbers.

    Their type is lost with that: it has to be named beside them.

    Example:
        >>> as_data(np.array([[1.0, 2.0]], dtype=np.float32)), as_data([np.float64(1), 2])
        ([[1.0, 2.0]], [1.0, 2])
    """
    if isinstance(value, np.ndarray) and value.size <= MOST:
        return value.tolist()
    return [as_data(item) for item in value] if isinstance(value, list | tuple) else literal(value)


def holds_numpy(value: Any) -> bool:
    """Returns True if data for ``torch.tensor`` contains numpy's, at any depth."""
    if isinstance(value, list | tuple):
        return any(map(holds_numpy, value))
    return isinstance(value, np.generic | np.ndarray)

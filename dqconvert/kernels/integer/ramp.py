"""Tables that rise or fall in a straight line between two ends: `clamp(round(slope * code + offset), least, most)`.

What follows a grid until the next one is mostly that: another scale, a ReLU, a batch norm. Looked up, codes are taken
one by one; computed, by vectors. A line is used only where it gives what is in the table, for every code.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.derived import Derived

_SEARCH = 64
"""Rounds of a search that leaves two thirds of an interval: slopes are then known to a millionth of a step."""

_FAR = 1e6
"""Beyond every offset of a line that passes between 0 and 255 at one of 256 codes."""


def ramp_of(table: Tensor, codes: int, columns: int) -> NDArray[np.float32] | None:
    """Fits a ramp to each column of a table; it is remembered while the tensor lives and stays as it is.

    Args:
        table: uint8 `[256]` or `[columns, 256]`.
        codes: How many of its entries are ever looked up.

    Returns:
        float32 `[4, columns]`: slopes, offsets, least and largest entries. None if it is no such table.

    Example:
        >>> relu = (torch.arange(256) - 100).clamp(min=0).to(torch.uint8)
        >>> ramp_of(relu, 256, columns=1).ravel().round(1).tolist()
        [1.0, -100.0, 0.0, 155.0]
        >>> ramp_of(relu.flip(0) ^ 1, 256, columns=1) is None
        True
    """
    if table.is_inference():  # nobody counts how often it was changed, and to fit takes longer than to look up
        return None
    (ramp,) = _ramps((table,), codes)
    return None if ramp is None else np.ascontiguousarray(np.broadcast_to(ramp, (4, columns)))


def _fit(table: Tensor, codes: int) -> tuple[NDArray[np.float32] | None]:
    return (fit(array(table).reshape(-1, table.size(-1))[:, :codes]),)


_ramps = Derived(_fit)


def fit(table: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """float32 `[4, rows]`, of a table `[rows, codes]`; None unless it is right for every entry."""
    entries, codes = table.astype(np.float64), np.arange(table.shape[1], dtype=np.float64)
    least, most = entries.min(1, keepdims=True), entries.max(1, keepdims=True)
    # Between these the line has to pass; beyond the ends it may lie anywhere.
    floor = np.where(entries == least, -np.inf, entries - 0.5)
    ceiling = np.where(entries == most, np.inf, entries + 0.5)

    def offsets(slope: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        line = slope[:, None] * codes
        return (floor - line).max(1), (ceiling - line).min(1)

    def room(slope: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = offsets(slope)
        return high - low

    # Between which offsets there is the most room depends on the slope in a concave way.
    steepest = np.abs(np.diff(entries, axis=1)).max(1, initial=0) + 1
    low, high = -steepest, steepest
    for _ in range(_SEARCH):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        better = room(one) < room(two)
        low, high = np.where(better, one, low), np.where(better, high, two)
    slope = np.where((least == most).ravel(), 0, (low + high) / 2)
    offset = np.clip(offsets(slope), -_FAR, _FAR).mean(0)  # where the table is level there are no bounds
    ramp = np.stack([slope, offset, least.ravel(), most.ravel()]).astype(np.float32)
    return ramp if np.array_equal(on_ramp(codes.astype(np.float32), ramp), entries) else None


def on_ramp(codes: NDArray[np.float32], ramp: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[rows, codes]`, as the loops compute it."""
    slope, offset, least, most = (part[:, None] for part in ramp)
    found: NDArray[np.float32] = np.minimum(np.maximum(np.rint(codes * slope + offset), least), most)
    return found


def as_table(ramp: NDArray[np.float32]) -> Tensor:
    """uint8 `[columns, 256]`, what :func:`ramp_of` was given."""
    return torch.from_numpy(on_ramp(np.arange(256, dtype=np.float32), ramp).astype(np.uint8))

"""Tables of pairs that rise or fall evenly: `clamp(round(one * a + (two * b + offset)), least, most)`.

What a sum of two values is rounded to is mostly that: of codes `a` and `b`, each on a grid of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels.cpu.arrays import array

PLANE = 5
"""Numbers of a plane: `one`, `two`, `offset`, `least`, `most`."""

_SHARE = 1 / 4096
"""Of the entries, so many may differ by one: they lie half way between two, but for the rounding of floats."""

_ROUNDS = 40
"""Of a search that leaves two thirds of an interval each time."""

_NEAR = 1.0
"""Within which, divided by the number of codes that are not clamped, of the best slopes by squares those lie that are
looked for."""


def plane_of(table: Tensor) -> Tensor | None:
    """Fits a plane to a table of pairs.

    Args:
        table: uint8 `[codes, other codes]`, by `a` and `b`.

    Returns:
        float32 `[5]`: `one`, `two`, `offset`, `least`, `most`; None unless it gives the table, but for a few entries
        that differ by one.

    Example:
        >>> a, b = torch.arange(256.0)[:, None], torch.arange(256.0)
        >>> plane_of((0.51 * a + 0.313 * b - 7).round().clamp(0, 255).to(torch.uint8))[:3].round(decimals=3)
        tensor([ 0.5100,  0.3130, -7.0000])
        >>> plane_of((a * b / 255).round().to(torch.uint8)) is None
        True
    """
    entries = array(table).astype(np.float64)
    least, most = entries.min(), entries.max()
    inside = np.argwhere((entries > least) & (entries < most))
    if len(inside) < len(entries) // 2:
        return None
    rows = np.concatenate([inside, np.ones((len(inside), 1))], axis=1)
    start, _, rank, _ = np.linalg.lstsq(rows, entries[tuple(inside.T)], rcond=None)
    if rank < rows.shape[1]:
        return None
    # Between these the plane has to pass; beyond the ends it may lie anywhere.
    floor = np.where(entries == least, -np.inf, entries - 0.5)
    ceiling = np.where(entries == most, np.inf, entries + 0.5)
    near = _NEAR / (np.ptp(inside, axis=0) + 1)
    one, two, offset = _most_room(floor, ceiling, *start[:2], *near)
    plane = torch.tensor([one, two, offset, least, most], dtype=torch.float32)
    a, b = (torch.arange(size) for size in table.shape)
    off = (on_plane(a[:, None], b, plane).to(torch.int16) - table).abs()
    return plane if int(off.max()) <= 1 and int(off.sum()) <= _SHARE * table.numel() else None


def on_plane(a: Tensor, b: Tensor, plane: Tensor) -> Tensor:
    """Entries for codes `a` and `b`, uint8, as the loops compute them."""
    one, two, offset, least, most = plane
    rest = b.to(torch.float32) * two + offset
    return (a.to(torch.float32) * one + rest).round().clamp(least, most).to(torch.uint8)


def _most_room(
    floor: NDArray[np.float64], ceiling: NDArray[np.float64], one: float, two: float, near_one: float, near_two: float
) -> tuple[float, float, float]:
    """Returns the slopes between whose lowest and highest offset there is the most room, and the offset in the middle.

    How much room there is depends on both slopes in a concave way; for one of them, the best other one is searched.
    """
    a, codes = (np.arange(size, dtype=np.float64) for size in floor.shape)

    def best(one: float) -> tuple[float, float, float]:
        low, high = (floor - one * a[:, None]).max(0), (ceiling - one * a[:, None]).min(0)

        def room(two: float) -> float:
            return float((high - two * codes).min() - (low - two * codes).max())

        second = _highest(room, two, near_two)
        return room(second), second, float((high - second * codes).min() + (low - second * codes).max()) / 2

    one = _highest(lambda slope: best(slope)[0], one, near_one)
    return one, *best(one)[1:]


def _highest(function: Callable[[float], float], near: float, by: float) -> float:
    """Returns the place where a concave function is highest."""
    low, high = near - by, near + by
    for _ in range(_ROUNDS):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (one, high) if function(one) < function(two) else (low, two)
    return (low + high) / 2

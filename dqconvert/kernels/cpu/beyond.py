"""Percentiles by the values beyond some bounds: of this process, or of all ranks that observe together.

Ranks say in one call how many values they have, and how many of them lie beyond the bounds. Only where these say that a
percentile does, too, the values themselves are sent: of each rank as many as can matter. So every rank makes the same
calls, however many values it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dqconvert.distributed import Ranks
from dqconvert.kernels.cpu.select import FEW, LARGEST, SAMPLE, Ends, Found, Values, ends_of, percentiles, ranks

PLACES = 3
"""Grids that are asked about together, at most."""


class Beyond:
    """Values that lie beyond the bounds of some grids.

    Args:
        found: By a grid's place, those of this process.
        total: How many values it has, those that are not finite included.
        full: Whether there was no room for all of them; then `found` says nothing.
        among: The ranks; None: this process alone.

    Attributes:
        full: Whether there was none in any process.
    """

    def __init__(self, found: Mapping[int, Found], total: int, full: bool, among: Ranks | None) -> None:
        self._found, self._among = found, among
        self.full, self._total = full, total
        if among is None:
            return
        numbers = [int(full), total]
        for place in range(PLACES):
            numbers += _counts(found[place], total) if place in found and not full else (0, 0, 0)
        fulls, self._total, *counts = among.add_up(numbers)
        self.full = fulls > 0
        self._counts = [counts[3 * place : 3 * place + 3] for place in range(PLACES)]

    def ends(self, place: int, p: float) -> Ends:
        """Returns the percentiles at a place; `None` for one that lies within the bounds."""
        if self._among is None:
            return ends_of(self._found[place], self._total, p)
        count, below, above = self._counts[place]
        odd = self._total - count
        if count == 0:
            return Ends(math.inf, -math.inf, 0, odd)
        from_below, from_above = ranks(count, p)
        found, lo, hi = self._found[place], None, None
        if below >= from_below:
            lo = _kth(_expanded(found.below, found.below_weight, from_below), from_below, self._among)
        if above >= from_above:
            hi = -_kth(_expanded(-found.above, found.above_weight, from_above), from_above, self._among)
        return Ends(lo, hi, count, odd)


def _counts(found: Found, total: int) -> tuple[int, int, int]:
    def size(values: NDArray[Any], weight: NDArray[Any] | None) -> int:
        return len(values) if weight is None else int(weight.sum())

    return total - found.odd, size(found.below, found.below_weight), size(found.above, found.above_weight)


def _expanded(values: NDArray[Any], weight: NDArray[Any] | None, k: int) -> NDArray[Any]:
    """Returns the `k` smallest, each as often as it counts."""
    if weight is None:
        return np.partition(values, k - 1)[:k] if len(values) > k else values
    order = np.argsort(values)
    repeated: NDArray[Any] = np.repeat(values[order], np.minimum(weight[order], k))
    return repeated[:k]


def _kth(values: NDArray[Any], k: int, among: Ranks) -> float:
    """Returns the `k`-th smallest of all ranks' values, of each up to `k`."""
    padded = torch.full((k,), math.inf, dtype=torch.float64)
    padded[: len(values)] = torch.from_numpy(np.ascontiguousarray(values, np.float64))
    return float(among.gather(padded).flatten().kthvalue(k).values)


def percentiles_among(values: Values, p: float, bounds: tuple[float, float] | None, among: Ranks | None) -> Ends:
    """Returns what :func:`dqconvert.kernels.cpu.select.percentiles` does, of the values of all ranks."""
    if among is None:
        return percentiles(values, p, bounds)
    if bounds is not None and bounds[0] <= bounds[1]:
        found = values.beyond(*bounds, 1024 + int(8 * values.total * p))
        beyond = Beyond({} if found is None else {0: found}, values.total, found is None, among)
        if not beyond.full:
            return beyond.ends(0, p)
    count, total = among.add_up([values.count_at(LARGEST, LARGEST)[0], values.total])
    if count == 0:
        return Ends(math.inf, -math.inf, 0, total)
    from_below, from_above = ranks(count, p)
    least, most = _outermost(values, from_below, from_above)
    return Ends(_kth(least, from_below, among), -_kth(-most, from_above, among), count, total - count)


def _outermost(values: Values, below: int, above: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the finite values that are the smallest and those that are the largest, that many; all, if there are not
    as many."""
    if values.total > FEW:
        sample = values.sample(SAMPLE)
        sample = np.sort(sample[np.abs(sample) <= LARGEST])
        low, high = (_margin(len(sample) * count / values.total) for count in (below, above))
        if low + high < len(sample):
            lo, hi = float(sample[low]), float(sample[-1 - high])
            room = 1024 + 2 * (low + high + 8) * values.total // len(sample)
            found = values.beyond(lo, hi, room)
            if found is not None:
                # A bound can be one of many equal values (zeros, after a ReLU).
                at_most, at_least = values.count_at(lo, hi)
                if at_most >= below and at_least >= above:
                    least = _expanded(found.below, found.below_weight, below)
                    most = -_expanded(-found.above, found.above_weight, above)
                    return _filled(least, lo, below), _filled(most, hi, above)
    every = values.all()
    every = every[np.abs(every) <= LARGEST]
    return _expanded(every, None, below), -_expanded(-every, None, above)


def _margin(expected: float) -> int:
    return int(expected + 4 * math.sqrt(expected)) + 8


def _filled(values: NDArray[Any], bound: float, count: int) -> NDArray[Any]:
    return np.concatenate([values, np.full(count - len(values), bound, values.dtype)])

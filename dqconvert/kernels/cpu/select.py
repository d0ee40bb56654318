"""Exact percentiles of many values in one pass over them.

The two ends of a Degree-Quant range leave out a thousandth of the values on either side. Who knows a bound a little
further inside than those ends needs to look closely at few values only: those beyond the bound. The range so far is
such a bound, as it only ever grows; where there is none, a sample of the values gives one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dqconvert.kernels.cpu.select_loops import collect, collect_messages, count_at, count_at_messages
from dqconvert.kernels.cpu.threads import parts, run

SAMPLE = 4096
FEW = 4 * SAMPLE
"""Values that are simply all looked at."""

LARGEST = float(np.finfo(np.float32).max)
"""Ranges are float32: what is infinite there is not observed."""


class Ends(NamedTuple):
    """The two percentiles of a batch.

    Attributes:
        lo, hi: The ends. `None`: not below (not above) the bound that was asked about; which value it is was not
            looked for. inf and -inf: no value counts.
        total: How many values count.
        odd: How many do not, as they are not finite.
    """

    lo: float | None
    hi: float | None
    total: int
    odd: int


class Found(NamedTuple):
    """Values beyond two bounds, and how often each of them counts (`None`: once)."""

    below: NDArray[Any]
    above: NDArray[Any]
    below_weight: NDArray[Any] | None
    above_weight: NDArray[Any] | None
    odd: int
    """How many values count, but are not finite."""


class Values(Protocol):
    """Values to take percentiles of."""

    @property
    def total(self) -> int:
        """Returns how many there are, those that are not finite included."""

    def sample(self, count: int) -> NDArray[Any]:
        """Returns up to `count` of them, spread evenly."""

    def beyond(self, lo: float, hi: float, room: int) -> Found | None:
        """Those under `lo` and over `hi`; `None` if about `room` does not hold the ones of either kind."""

    def count_at(self, lo: float, hi: float) -> tuple[int, int]:
        """Returns how many finite ones are at most `lo`, and how many at least `hi`."""

    def all(self) -> NDArray[Any]:
        """Returns all of them, as a vector."""


class Rows:
    """The values of the rows of a matrix.

    Args:
        x: Contiguous `[rows, columns]`, float32 or float64.
        skip: bool `[rows]`, which rows do not count; `None`: all do.
        weight: int64 `[rows]`, how often a row counts; `None`: once.
    """

    def __init__(self, x: NDArray[Any], skip: NDArray[Any] | None, weight: NDArray[Any] | None = None) -> None:
        self.x = x
        self.weight = weight
        if weight is not None:
            skip = weight == 0 if skip is None else skip | (weight == 0)
        self.skip = np.empty(0, np.bool_) if skip is None else skip
        if weight is None:
            rows = x.shape[0] - int(np.count_nonzero(self.skip))
        else:
            rows = int(weight.sum() - weight[self.skip].sum()) if len(self.skip) else int(weight.sum())
        self.total = rows * x.shape[1]

    def sample(self, count: int) -> NDArray[Any]:
        columns = self.x.shape[1]
        place = (np.arange(count) + 0.5) * (self.x.size / count)
        r = place.astype(np.int64) // columns
        c = (place.astype(np.int64) + 7 * np.arange(count)) % columns
        if self.weight is not None:  # rows as often as they count
            last = np.cumsum(self.weight)
            r = np.searchsorted(last, (np.arange(count) + 0.5) * (last[-1] / count), side="right")
        kept = ~self.skip[r] if len(self.skip) else slice(None)
        return self.x[r, c][kept]

    def beyond(self, lo: float, hi: float, room: int) -> Found | None:
        x, weighted = self.x, self.weight is not None
        weight = np.empty(0, np.int64) if self.weight is None else self.weight
        cuts = parts(x.shape[0], x.size)
        size = room + x.shape[1] + 512
        low, high = x.dtype.type(lo), x.dtype.type(hi)

        def task(_: int, start: int, stop: int) -> tuple[Any, ...]:
            below, above = np.empty(size, x.dtype), np.empty(size, x.dtype)
            below_weight, above_weight = (np.empty(size if weighted else 0, np.int64) for _ in range(2))
            n, m, odd, full = collect(
                x, self.skip, weight, start, stop, low, high, below, above, below_weight, above_weight
            )
            return below[:n], above[:m], below_weight[:n], above_weight[:m], odd, full

        found = run(task, cuts)
        if any(part[5] for part in found):
            return None
        below, above, below_weight, above_weight = (np.concatenate([part[side] for part in found]) for side in range(4))
        odd = sum(part[4] for part in found)
        return Found(below, above, below_weight if weighted else None, above_weight if weighted else None, odd)

    def count_at(self, lo: float, hi: float) -> tuple[int, int]:
        x = self.x
        weight = np.empty(0, np.int64) if self.weight is None else self.weight
        low, high = x.dtype.type(lo), x.dtype.type(hi)
        cuts = parts(x.shape[0], x.size)
        found = run(lambda _, start, stop: count_at(x, self.skip, weight, start, stop, low, high), cuts)
        return sum(part[0] for part in found), sum(part[1] for part in found)

    def all(self) -> NDArray[Any]:
        kept = ~self.skip if len(self.skip) else np.ones(len(self.x), np.bool_)
        rows = self.x[kept]
        return (rows if self.weight is None else np.repeat(rows, self.weight[kept], axis=0)).reshape(-1)


class Messages:
    """The products of rows and the weights of the edges that they are sent along.

    Args:
        x: Contiguous `[nodes, heads * channels]`.
        weight: Contiguous `[edges, heads]`.
        edges, sender: int64 `[edges]`, the edges in some order, and the node that sends along each.
        skip: bool `[nodes]`, whose messages do not count; `None`: all do.
        least, most: `[nodes, heads]`, the smallest and the largest value of each row and head.
    """

    def __init__(
        self,
        x: NDArray[Any],
        weight: NDArray[Any],
        edges: NDArray[Any],
        sender: NDArray[Any],
        skip: NDArray[Any] | None,
        least: NDArray[Any],
        most: NDArray[Any],
    ) -> None:
        self.x, self.weight, self.edges, self.sender = x, weight, edges, sender
        self.skip = np.empty(0, np.bool_) if skip is None else skip
        self.least, self.most = least, most
        count = len(sender) - (int(np.count_nonzero(self.skip[sender])) if len(self.skip) else 0)
        self.total = count * x.shape[1]

    @property
    def _channels(self) -> int:
        return self.x.shape[1] // self.weight.shape[1]

    def sample(self, count: int) -> NDArray[Any]:
        e = ((np.arange(count) + 0.5) * (len(self.sender) / count)).astype(np.int64)
        c = (7 * np.arange(count)) % self.x.shape[1]
        s = self.sender[e]
        kept = ~self.skip[s] if len(self.skip) else slice(None)
        return (self.weight[self.edges[e], c // self._channels] * self.x[s, c])[kept]

    def beyond(self, lo: float, hi: float, room: int) -> Found | None:
        dtype = self.x.dtype
        cuts = parts(len(self.sender), len(self.sender) * 16)
        size = room + self._channels + 512
        low, high = dtype.type(lo), dtype.type(hi)

        def task(_: int, start: int, stop: int) -> tuple[Any, ...]:
            below, above = np.empty(size, dtype), np.empty(size, dtype)
            args = (self.x, self.weight, self.edges, self.sender, self.skip, self.least, self.most)
            n, m, odd, full = collect_messages(*args, start, stop, low, high, below, above)
            return below[:n], above[:m], odd, full

        found = run(task, cuts)
        if any(part[3] for part in found):
            return None
        below, above = (np.concatenate([part[side] for part in found]) for side in (0, 1))
        return Found(below, above, None, None, sum(part[2] for part in found))

    def count_at(self, lo: float, hi: float) -> tuple[int, int]:
        low, high = self.x.dtype.type(lo), self.x.dtype.type(hi)
        args = (self.x, self.weight, self.edges, self.sender, self.skip)
        cuts = parts(len(self.sender), len(self.sender) * self.x.shape[1])
        found = run(lambda _, start, stop: count_at_messages(*args, start, stop, low, high), cuts)
        return sum(part[0] for part in found), sum(part[1] for part in found)

    def all(self) -> NDArray[Any]:
        sender, weight = self.sender, self.weight[self.edges]
        if len(self.skip):
            kept = ~self.skip[sender]
            sender, weight = sender[kept], weight[kept]
        return (np.repeat(weight, self._channels, axis=1) * self.x[sender]).reshape(-1)


def percentiles(values: Values, p: float, bounds: tuple[float, float] | None = None) -> Ends:
    """Returns the two percentiles of the finite values: `k`-th smallest and `k`-th largest, see :func:`ranks`.

    Args:
        values: What to look at.
        p: The share of values to leave out at either end, 0 to 0.5.
        bounds: A range; of interest is only whether, and how far, a percentile lies outside of it. `None`: both
            percentiles are wanted whatever they are.
    """
    if values.total <= FEW:
        return _of_all(values, p)
    room = 1024 + int(8 * values.total * p)
    if bounds is not None and bounds[0] <= bounds[1]:
        found = values.beyond(*bounds, room)
        if found is not None:
            return ends_of(found, values.total, p)
    inside = SAMPLE * p
    margin = int(inside + 4 * math.sqrt(inside)) + 8
    sample = values.sample(SAMPLE)
    sample = np.sort(sample[np.abs(sample) <= LARGEST])
    if 2 * margin >= len(sample):
        return _of_all(values, p)
    lo_bound, hi_bound = float(sample[margin]), float(sample[-1 - margin])
    found = values.beyond(lo_bound, hi_bound, room + int(4 * values.total * margin / SAMPLE))
    if found is None:
        return _of_all(values, p)
    ends = ends_of(found, values.total, p)
    lo, hi = ends.lo, ends.hi
    if lo is None or hi is None:
        # A bound can be one of many equal values (zeros, after a ReLU), and so can the percentile.
        at_most, at_least = values.count_at(lo_bound, hi_bound)
        from_below, from_above = ranks(ends.total, p)
        lo = lo_bound if lo is None and at_most >= from_below else lo
        hi = hi_bound if hi is None and at_least >= from_above else hi
    return _of_all(values, p) if lo is None or hi is None else Ends(lo, hi, ends.total, ends.odd)


def ranks(count: int, p: float) -> tuple[int, int]:
    """Positions of the two percentiles, from the smallest and from the largest value, counted from 1."""
    return int(count * p) or 1, count - min(count, int(count * (1 - p)) or 1) + 1


def ends_of(found: Found, total: int, p: float) -> Ends:
    """Returns the percentiles of `total` values, by those beyond two bounds; `None`: not beyond."""
    count = total - found.odd
    if count == 0:
        return Ends(math.inf, -math.inf, 0, found.odd)
    from_below, from_above = ranks(count, p)
    lo = _kth(found.below, found.below_weight, from_below)
    hi = _kth(-found.above, found.above_weight, from_above)
    return Ends(lo, None if hi is None else -hi, count, found.odd)


def _kth(values: NDArray[Any], weight: NDArray[Any] | None, k: int) -> float | None:
    """Returns the k-th smallest value; `None` if there are fewer."""
    if weight is None:
        return float(np.partition(values, k - 1)[k - 1]) if len(values) >= k else None
    order = np.argsort(values)
    place = int(np.searchsorted(np.cumsum(weight[order]), k))
    return float(values[order[place]]) if place < len(values) else None


def _of_all(values: Values, p: float) -> Ends:
    """By selection in linear time."""
    every = values.all()
    every = every[np.abs(every) <= LARGEST]
    count = len(every)
    odd = values.total - count
    if count == 0:
        return Ends(math.inf, -math.inf, 0, odd)
    from_below, from_above = ranks(count, p)
    ordered = np.partition(every, sorted({from_below - 1, count - from_above}))
    return Ends(float(ordered[from_below - 1]), float(ordered[count - from_above]), count, odd)

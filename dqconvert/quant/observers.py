"""Observers: how a quantizer's range follows the values it sees, one class per kind of range.

An observer holds no state. It takes a range and a batch of values and returns the new range. A range is a
pair of float32 tensors, ``[]`` or ``[channels]``; ``(inf, -inf)`` is the range that never saw a value. NaN and
infinities are never observed: one overflow in half precision would otherwise spoil a range for good.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from dqconvert.distributed import Ranks
from dqconvert.errors import ConfigError
from dqconvert.kernels import Scheme, minmax_pair, percentile_pair
from dqconvert.kernels._layout import kept_values, wide_dtype
from dqconvert.kernels.of_ranks import pair_of_ranks
from dqconvert.qconfig import QSpec
from dqconvert.quant.search import row_weights, searched_range

RangePair: TypeAlias = tuple[Tensor, Tensor]


def is_empty(pair: RangePair) -> Tensor:
    """Returns, for each channel of a range, whether it never saw a value: bool, shaped like the range."""
    return pair[0] > pair[1]


class Observer:
    """Base class of observers: the range of one batch, and how it changes the range so far.

    A new kind of range is a subclass that sets ``kind``, defines ``batch_range`` and ``merge``, and stands in
    ``OBSERVERS``.
    """

    kind: ClassVar[str]
    settles: ClassVar[bool] = False
    """True where training keeps the first range that it finds; only calibration goes on to change it."""

    def __init__(self, spec: QSpec) -> None:
        self.spec = spec

    def batch_range(self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> RangePair:
        """Returns the range of these values, of the rows that ``keep`` (bool ``[values.size(row_dim)]``) keeps."""
        raise NotImplementedError

    def range_of_ranks(
        self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None, ranks: Ranks
    ) -> RangePair:
        """Returns that of the values of all ranks: gathered, for which some ranges know a shorter way."""
        rows = kept_values(values, keep, row_dim, channel_dim).t()
        every = ranks.gather_rows(rows.to(wide_dtype(rows.dtype)).contiguous())
        return self.batch_range(
            every.flatten() if channel_dim is None else every, None, 0, None if channel_dim is None else 1
        )

    def merge(self, old: RangePair, batch: RangePair) -> RangePair:
        """Returns the range so far, changed by that of a batch; unchanged by an empty one."""
        raise NotImplementedError

    def _found(
        self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None, ranks: Ranks | None
    ) -> RangePair:
        where = (values, keep, row_dim, channel_dim)
        return self.batch_range(*where) if ranks is None else self.range_of_ranks(*where, ranks)

    def update(
        self,
        old: RangePair,
        values: Tensor,
        keep: Tensor | None,
        row_dim: int,
        channel_dim: int | None,
        ranks: Ranks | None = None,
    ) -> RangePair:
        """Returns the range after observing ``values``; with ``ranks``, after observing those of all of them.

        Example:
            >>> from dqconvert.qconfig import QSpec
            >>> observer = observer_for(QSpec(range="minmax"))
            >>> observer.update((torch.tensor(0.0), torch.tensor(1.0)), torch.tensor([-3.0, 0.5]), None, 0, None)
            (tensor(-3.), tensor(1.))
        """
        return self.merge(old, self._found(values, keep, row_dim, channel_dim, ranks))

    def update_groups(
        self,
        old: RangePair,
        values: Tensor,
        keep: Tensor | None,
        row_dim: int,
        groups: Tensor,
        ranks: Ranks | None = None,
    ) -> RangePair:
        """Returns the ranges ``[groups]`` after observing ``values``, each by the rows of its group (uint8 ``[rows]``).

        Example:
            >>> from dqconvert.qconfig import QSpec
            >>> never = torch.tensor([torch.inf] * 2), torch.tensor([-torch.inf] * 2)
            >>> groups = torch.tensor([0, 0], dtype=torch.uint8)
            >>> observer_for(QSpec()).update_groups(never, torch.tensor([-3.0, 0.5]), None, 0, groups)
            (tensor([-3., inf]), tensor([0.5000,   -inf]))
        """
        found = []
        for group in range(old[0].numel()):
            own = groups == group
            found.append(self._found(values, own if keep is None else own & keep, row_dim, None, ranks))
        lows, highs = zip(*found, strict=True)
        return self.merge(old, (torch.stack(lows), torch.stack(highs)))

    def scheme(self, quant_min: int, quant_max: int) -> Scheme | None:
        """Returns the same for operators that observe and round at once; ``None`` if they do not know the range."""
        return None

    def _scheme(self, quant_min: int, quant_max: int, p: float) -> Scheme:
        return Scheme(
            quant_min=quant_min,
            quant_max=quant_max,
            symmetric=self.spec.symmetric,
            p=p,
            momentum=-1.0 if self.spec.momentum_value is None else self.spec.momentum_value,
            observe=True,
            clip=self.spec.grad == "clip",
        )

    def __repr__(self) -> str:
        return self.kind


class MinMaxObserver(Observer):
    """Running minimum and maximum."""

    kind = "minmax"

    def batch_range(self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> RangePair:
        return minmax_pair(values, keep=keep, row_dim=row_dim, channel_dim=channel_dim)

    def range_of_ranks(
        self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None, ranks: Ranks
    ) -> RangePair:
        return ranks.widest(*self.batch_range(values, keep, row_dim, channel_dim))

    def merge(self, old: RangePair, batch: RangePair) -> RangePair:
        return running(old, batch)

    def scheme(self, quant_min: int, quant_max: int) -> Scheme | None:
        return self._scheme(quant_min, quant_max, p=0.0)


class EMAObserver(MinMaxObserver):
    """Exponential moving average of each batch's minimum and maximum."""

    kind = "ema"

    def merge(self, old: RangePair, batch: RangePair) -> RangePair:
        assert self.spec.momentum_value is not None
        return moving_average(old, batch, self.spec.momentum_value)


class PercentileObserver(Observer):
    """Each batch's low and high percentile, kept as running minimum and maximum or, with momentum, averaged.

    Degree-Quant's way to a range that the few largest aggregations do not stretch.
    """

    kind = "percentile"

    def batch_range(self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> RangePair:
        p = self.spec.percentile_value
        assert p is not None
        return percentile_pair(values, p, keep=keep, row_dim=row_dim, channel_dim=channel_dim, sample=self.spec.sample)

    def range_of_ranks(
        self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None, ranks: Ranks
    ) -> RangePair:
        p = self.spec.percentile_value
        assert p is not None
        return pair_of_ranks(values, p, ranks, keep=keep, row_dim=row_dim, channel_dim=channel_dim)  # no sample: exact

    def merge(self, old: RangePair, batch: RangePair) -> RangePair:
        momentum = self.spec.momentum_value
        return running(old, batch) if momentum is None else moving_average(old, batch, momentum)

    def scheme(self, quant_min: int, quant_max: int) -> Scheme | None:
        p = self.spec.percentile_value
        return self._scheme(quant_min, quant_max, p) if p else None

    def __repr__(self) -> str:
        return f"percentile({self.spec.percentile_value})"


class SearchedObserver(Observer):
    """The range whose grid is nearest to the non-zero values; over several batches, one that contains all of theirs.

    A search costs some milliseconds, and a range that moved with every step would move the grid under what is being
    trained: training keeps the range of its first step, or of a calibration before it.
    """

    kind = "mse"
    settles = True

    def batch_range(self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> RangePair:
        if keep is not None:
            values = values.index_select(row_dim, keep.nonzero().view(-1))
        weights = self._weights(values, row_dim)
        by_range = _rows_of_ranges(values, channel_dim)
        weights = None if weights is None else _rows_of_ranges(weights, channel_dim)
        low, high = searched_range(by_range, self.spec.bits, self.spec.symmetric, weights)
        return (low[0], high[0]) if channel_dim is None else (low, high)

    def _weights(self, values: Tensor, row_dim: int) -> Tensor | None:
        """Returns what the squared error of each value counts for; ``None``: all the same."""
        return None

    def merge(self, old: RangePair, batch: RangePair) -> RangePair:
        return running(old, batch)

    def scheme(self, quant_min: int, quant_max: int) -> Scheme | None:
        return self._scheme(quant_min, quant_max, p=0.0)


class RelativeObserver(SearchedObserver):
    """The range that is searched, where errors count in relation to their row: large rows don't decide for small."""

    kind = "relative"

    def range_of_ranks(
        self, values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None, ranks: Ranks
    ) -> RangePair:
        if keep is not None:
            values = values.index_select(row_dim, keep.nonzero().view(-1))
        values = values.to(wide_dtype(values.dtype))
        if channel_dim is None:
            return self.batch_range(ranks.gather_rows(values.movedim(row_dim, 0).contiguous()), None, 0, None)
        if channel_dim % values.dim() == row_dim % values.dim():  # each row has a range of its own
            every = ranks.gather_rows(_rows_of_ranges(values, channel_dim).t().contiguous())
            return self.batch_range(every, None, 1, 1)
        every = ranks.gather_rows(values.movedim((row_dim, channel_dim), (0, 1)).contiguous())
        return self.batch_range(every, None, 0, 1)

    def _weights(self, values: Tensor, row_dim: int) -> Tensor | None:
        shape = [1] * values.dim()
        shape[row_dim] = -1
        return row_weights(values, row_dim).view(shape).expand_as(values)


class LearnedObserver(SearchedObserver):
    """Where a range that is learned begins."""

    kind = "learned"

    def scheme(self, quant_min: int, quant_max: int) -> Scheme | None:
        # Its ends are those of an affine grid, and its gradient is an operator's own.
        return self._scheme(quant_min, quant_max, p=0.0)._replace(symmetric=False, observe=False, clip=False)


def _rows_of_ranges(values: Tensor, channel_dim: int | None) -> Tensor:
    return values.reshape(1, -1) if channel_dim is None else values.movedim(channel_dim, 0).flatten(1)


def running(old: RangePair, batch: RangePair) -> RangePair:
    """Returns the smallest range that contains both."""
    return torch.minimum(old[0], batch[0]), torch.maximum(old[1], batch[1])


def moving_average(old: RangePair, batch: RangePair, momentum: float) -> RangePair:
    """Returns ``old + momentum (batch - old)``; the first batch sets the range."""
    first, nothing_new = is_empty(old), is_empty(batch)

    def average(old_end: Tensor, batch_end: Tensor) -> Tensor:
        moved = torch.where(first, batch_end, old_end + momentum * (batch_end - old_end))
        return torch.where(nothing_new, old_end, moved)

    return average(old[0], batch[0]), average(old[1], batch[1])


OBSERVERS: dict[str, type[Observer]] = {
    observer.kind: observer
    for observer in (
        MinMaxObserver,
        EMAObserver,
        PercentileObserver,
        SearchedObserver,
        RelativeObserver,
        LearnedObserver,
    )
}


def observer_for(spec: QSpec) -> Observer:
    """Returns the observer that ``spec.range`` names.

    Raises:
        ConfigError: If there is none.
    """
    if spec.range not in OBSERVERS:
        raise ConfigError(f"range={spec.range!r}: has no observer; allowed: {', '.join(map(repr, OBSERVERS))}")
    return OBSERVERS[spec.range](spec)

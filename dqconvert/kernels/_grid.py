"""The range and the grid of one quantizer as plain numbers, as the fast implementations on the CPU hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dqconvert.distributed import Ranks

_EPS = float(torch.finfo(torch.float32).eps)
_TINY = float(torch.finfo(torch.float32).tiny)


class CodeGrid(NamedTuple):
    """A grid of codes, `value = (code - zero) * scale`: of tensors, or of the numbers that loops take.

    In graphs and files it is a float32 tensor of these four.

    Attributes:
        scale: The step between two codes.
        zero: The code of 0.
        top: The highest code; the lowest is 0.
        low: What training calls code 0. Training rounds `x / scale + (zero + low)`, and where that is a half, the even
            one depends on it.
    """

    scale: Any
    zero: Any
    top: Any
    low: Any


class Scheme(NamedTuple):
    """How a quantizer's grid follows from its range, and its range from what it sees, per tensor.

    Attributes:
        quant_min, quant_max: The smallest and the largest code.
        symmetric: Whether the grid lies evenly around zero.
        p: The share of values to leave out at either end; 0: none (minimum and maximum).
        momentum: Of the moving average; negative: running minimum and maximum.
        observe: Whether to update the range at all.
        clip: Whether the gradient of clipped values is zero.
        from_zero: Whether the grid begins at zero, however low the range reaches; only where it is affine.
        shared: The tag by which the ranks that observe together know this quantizer, see
            :class:`dqconvert.distributed.Ranks`; 0: this process observes alone.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    p: float
    momentum: float
    observe: bool
    clip: bool
    from_zero: bool = False
    shared: int = 0

    @property
    def ranks(self) -> Ranks | None:
        """Returns who observes together."""
        return Ranks(self.shared) if self.shared else None

    def packed(self) -> tuple[list[int], list[float]]:
        """Returns the lists of numbers that operators take."""
        shape = int(self.symmetric) + 2 * int(self.from_zero) + 4 * self.shared
        ints = [self.quant_min, self.quant_max, shape, int(self.observe), int(self.clip)]
        return ints, [self.p, self.momentum]

    @staticmethod
    def unpacked(ints: Sequence[int], floats: Sequence[float]) -> Scheme:
        """Reverses :meth:`packed`."""
        (low, high, shape, observe, clip), (p, momentum) = ints, floats
        flags = bool(observe), bool(clip), bool(shape & 2)
        return Scheme(low, high, bool(shape & 1), p, momentum, *flags, shape >> 2)


@dataclass
class Grid:
    """A range that is being updated, and the grid of it.

    Attributes:
        lo, hi: The range; inf and -inf where nothing was seen.
    """

    scheme: Scheme
    lo: float
    hi: float

    @property
    def empty(self) -> bool:
        """True if the range never saw a value."""
        return self.lo > self.hi

    @property
    def settled(self) -> bool:
        """True if values that lie within the range so far leave it as it is."""
        return not self.scheme.observe or (self.scheme.momentum < 0 and not self.empty)

    def merge(self, lo: float | None, hi: float | None) -> None:
        """Takes a batch's range in; `None` for an end that lies within the range so far; lo > hi: no values."""
        if lo is not None and hi is not None and lo > hi:
            return
        momentum = self.scheme.momentum
        if momentum < 0:
            self.lo = self.lo if lo is None else min(self.lo, _single(lo))
            self.hi = self.hi if hi is None else max(self.hi, _single(hi))
            return
        assert lo is not None
        assert hi is not None
        if self.empty:
            self.lo, self.hi = _single(lo), _single(hi)
        else:
            self.lo, self.hi = _moved(self.lo, lo, momentum), _moved(self.hi, hi, momentum)

    def parameters(self, dtype: Any) -> NDArray[Any]:
        """Returns `[scale, zero_point, quant_min, quant_max]`, as :func:`dqconvert.kernels.qparams` defines them."""
        return _parameters(self.scheme, self.lo, self.hi, dtype)

    def table(self, dtype: Any) -> NDArray[Any]:
        """Returns the same of every group of rows, of which there is one: `[1, 4]`."""
        return _parameters(self.scheme, self.lo, self.hi, dtype)[None]

    def apply(self, value: float, dtype: Any) -> float:
        """Returns one value fake-quantized, as the loops do it."""
        scale, zero_point, low, high = self.parameters(dtype)
        code = np.rint(dtype(value) / scale + zero_point)
        return float((min(max(code, low), high) - zero_point) * scale)


@lru_cache(maxsize=1024)
def _parameters(scheme: Scheme, lo: float, hi: float, dtype: Any) -> NDArray[Any]:
    """Kept, for it takes longer than to round some rows, and most steps leave most ranges as they are."""
    low, high = scheme.quant_min, scheme.quant_max
    lo, hi = 0.0 if scheme.from_zero else min(lo, 0.0), max(hi, 0.0)
    if lo == hi or math.isnan(lo) or math.isnan(hi):
        return np.array([1, 0, low, high], dtype)
    if scheme.symmetric:
        scale = max(2 * max(-lo, hi) / (high - low), _TINY)
        zero_point = 0 if low < 0 else (high + 1) // 2
    else:
        scale = max((hi - lo) / (high - low), _EPS)
        zero_point = min(max(low - round(lo / scale), low), high)
    return np.array([np.float32(scale), zero_point, low, high], dtype)


class GridTable(Grid):
    """The grids of groups of rows, whose ranges stay as they are.

    Args:
        lows, highs: The ends of the range of each group.
    """

    def __init__(self, scheme: Scheme, lows: Sequence[float], highs: Sequence[float]) -> None:
        if scheme.observe:
            raise ValueError("a table of grids observes nothing: quantizers update the ranges of groups themselves")
        super().__init__(scheme, -math.inf, math.inf)
        self._ends = tuple(lows), tuple(highs)

    def table(self, dtype: Any) -> NDArray[Any]:
        """Returns the parameters of every group: `[groups, 4]`."""
        return _table(self.scheme, self._ends, dtype)


@lru_cache(maxsize=1024)
def _table(scheme: Scheme, ends: tuple[tuple[float, ...], ...], dtype: Any) -> NDArray[Any]:
    """Kept, for it takes longer than to round some rows. What :meth:`Grid.parameters` does, for all groups at once."""
    low, high = scheme.quant_min, scheme.quant_max
    lo, hi = np.zeros(len(ends[0])) if scheme.from_zero else np.minimum(ends[0], 0.0), np.maximum(ends[1], 0.0)
    if scheme.symmetric:
        scale = np.maximum(2 * np.maximum(-lo, hi) / (high - low), _TINY)
        zero_point = np.full_like(scale, 0 if low < 0 else (high + 1) // 2)
    else:
        scale = np.maximum((hi - lo) / (high - low), _EPS)
        zero_point = np.clip(low - np.rint(lo / scale), low, high)
    empty = (lo == hi) | np.isnan(lo) | np.isnan(hi)
    found = np.empty((len(lo), 4), dtype)
    found[:, 0], found[:, 1] = np.where(empty, 1, scale.astype(np.float32)), np.where(empty, 0, zero_point)
    found[:, 2], found[:, 3] = low, high
    return found


def grid_of(scheme: Scheme, lo: Any, hi: Any) -> Grid:
    """Returns the grid of a range; of those of groups of rows, if the ends are lists, their grids."""
    return Grid(scheme, lo, hi) if isinstance(lo, float) else GridTable(scheme, lo, hi)


def _single(value: float) -> float:
    return float(np.float32(value))


def _moved(old: float, batch: float, momentum: float) -> float:
    # In float32, step by step, as the tensors of the plain definition are.
    return float(np.float32(old) + np.float32(momentum) * (np.float32(batch) - np.float32(old)))

"""A chain of sums, grids and a ReLU (:mod:`dqconvert.kernels.chain`) as the arguments of operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqconvert.kernels._grid import Grid, Scheme, grid_of
from dqconvert.kernels._layout import check_rows, wide_dtype

Schemes = tuple[Scheme | None, Scheme | None, Scheme | None]
"""Of the grids on the way in, behind the sum and behind the ReLU; `None`: no grid there."""


class Steps(NamedTuple):
    """What a chain does to a value.

    Attributes:
        schemes: Of its grids.
        relu: Whether negative values become zero before the last grid.
        masked: Whether to say which gradients pass.
    """

    schemes: Schemes
    relu: bool = False
    masked: bool = False

    @property
    def grids(self) -> int:
        """Returns how many grids there are."""
        return sum(scheme is not None for scheme in self.schemes)

    @property
    def clips(self) -> bool:
        """True if there are gradients that do not pass."""
        return self.relu or any(scheme is not None and scheme.clip for scheme in self.schemes)

    def packed(self) -> tuple[list[int], list[float]]:
        """Returns the lists of numbers that operators take; equal steps share them."""
        # torch.compile does without the cache, and warns where it is told to leave one out.
        return _pack(self) if torch.compiler.is_compiling() else _packed(self)


def _pack(steps: Steps) -> tuple[list[int], list[float]]:
    ints, floats = [int(steps.relu), int(steps.masked)], []
    for scheme in steps.schemes:
        ints.append(int(scheme is not None))
        if scheme is not None:
            more = scheme.packed()
            ints += more[0]
            floats += more[1]
    return ints, floats


def _pack_masked(schemes: Schemes, relu: bool, masked: bool) -> tuple[list[int], list[float]]:
    """As :func:`_pack`; `masked` only where there are gradients that do not pass."""
    steps = Steps(schemes, relu)
    return _pack(steps._replace(masked=masked and steps.clips))


_packed, _packed_masked = lru_cache(maxsize=4096)(_pack), lru_cache(maxsize=4096)(_pack_masked)


@lru_cache(maxsize=4096)
def _unpacked(ints: tuple[int, ...], floats: tuple[float, ...]) -> Steps:
    numbers, sizes = iter(ints), iter(floats)
    relu, masked = bool(next(numbers)), bool(next(numbers))
    schemes = [
        Scheme.unpacked([next(numbers) for _ in range(5)], [next(sizes), next(sizes)]) if next(numbers) else None
        for _ in range(3)
    ]
    return Steps((schemes[0], schemes[1], schemes[2]), relu, masked)


class Chain(NamedTuple):
    """A chain, and what it adds to the rows that pass it.

    Attributes:
        bias: `[columns]`, added behind grid 0.
        other: Shaped like the rows, added there, times `alpha` (one element) if there is one.
        alpha: See `other`.
        protected: bool `[rows]`; grids neither observe nor round the rows that are True.
        groups: uint8 `[rows]`, the group of each row, which says what range its grids have; None: all are in one.
        ranges: float32 `[2 * grids]`, the low and the high end of each grid's range; or `[2 * grids, groups]`. Ranges
            of groups are not updated: their schemes do not observe.
        ints, floats: The steps, see :meth:`Steps.packed`.
    """

    bias: Tensor | None
    other: Tensor | None
    alpha: Tensor | None
    protected: Tensor | None
    groups: Tensor | None
    ranges: Tensor
    ints: Sequence[int]
    floats: Sequence[float]

    @staticmethod
    def of(
        schemes: Schemes = (None, None, None),
        ranges: Sequence[Tensor] = (),
        *,
        bias: Tensor | None = None,
        other: Tensor | None = None,
        alpha: Tensor | None = None,
        protected: Tensor | None = None,
        groups: Tensor | None = None,
        relu: bool = False,
        learned: bool = False,
    ) -> Chain:
        """Returns a chain.

        Args:
            schemes: Of the grids on the way in, behind the sum and behind the ReLU.
            ranges: The low and the high end of the range of each grid that there is, float32 `[]`, in that order; with
                groups of rows, `[groups]`.
            bias, other, alpha, protected, groups: The attributes; by default none.
            relu: True if negative values become zero before grid 2.
            learned: True if all ranges are learned: then nobody asks which gradients pass.
        """
        pack = _pack_masked if torch.compiler.is_compiling() else _packed_masked  # as in Steps.packed
        steps = pack(schemes, relu, not learned and torch.is_grad_enabled())
        return Chain(bias, other, alpha, protected, groups, ends_of(ranges), *steps)

    @staticmethod
    def gradients(
        bias: Tensor | None,
        other: Tensor | None,
        alpha: Tensor | None,
        ranges: Tensor | None = None,
        *,
        floats: list[Any] | None = None,
    ) -> Sequence[Any]:
        """Returns gradients by attribute."""
        return bias, other, alpha, None, None, ranges, None, floats

    @property
    def steps(self) -> Steps:
        """Returns what it does."""
        return _unpacked(tuple(self.ints), tuple(self.floats))

    @property
    def acts(self) -> bool:
        """True if there is a grid, a ReLU, or something to add. By the numbers: compiled code reads it, too."""
        return bool(len(self.floats) > 0 or self.ints[0] or any(t is not None for t in self.added))

    @property
    def added(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns what it adds: bias, other and alpha."""
        return self[:3]

    def check(self, rows: Tensor) -> None:
        """Raises `TypeError` or `ValueError` for rows that are not floating, or a mask that does not fit them."""
        wide_dtype(rows.dtype)
        if self.protected is not None:
            check_rows(self.protected, rows, 0, name="protected")


class Ranged(NamedTuple):
    """A scheme and the range that its grid has so far, of values on the way into an operation.

    Attributes:
        range_: float32 `[2]`; or `[2, groups]`, if values have groups.
        ints, floats: The scheme, see :meth:`Scheme.packed`.
    """

    range_: Tensor
    ints: Sequence[int]
    floats: Sequence[float]

    @staticmethod
    def of(scheme: Scheme, ends: Sequence[Tensor]) -> Ranged:
        """Returns a scheme with its range; `ends`: float32 `[]` each, or `[groups]`."""
        return Ranged(ends_of(ends), *scheme.packed())

    @property
    def scheme(self) -> Scheme:
        """Returns the scheme."""
        return Scheme.unpacked(self.ints, self.floats)

    @property
    def grouped(self) -> bool:
        """True if each group has a range of its own."""
        return self.range_.dim() > 1

    @property
    def frozen(self) -> Ranged:
        """Returns the same, of a scheme that observes nothing more."""
        return Ranged(self.range_, *self.scheme._replace(observe=False).packed())

    def grid(self) -> Grid:
        """Returns the grid, of numbers, which may observe."""
        return grid_of(self.scheme, *self.range_.tolist())

    def of_grid(self, grid: Grid) -> Tensor:
        """Returns the range of that grid, by now."""
        return self.range_.clone() if self.grouped else torch.tensor([grid.lo, grid.hi], dtype=torch.float32)

    def chain(self, protected: Tensor | None = None, groups: Tensor | None = None, masked: bool = False) -> Chain:
        """Returns a chain of this grid alone."""
        packed = Steps((None, self.scheme, None), masked=masked).packed()
        return Chain(None, None, None, protected, groups, self.range_, *packed)


CHAIN: dict[str, Any] = {
    "bias": "x?",
    "other": "x? [=x]",
    "alpha": "x?",
    "protected": "bool? [rows]",
    "groups": "uint8? [rows]",
    "ranges": "float32",
    "ints": "free",
    "floats": "free",
}
"""What the loops take of a :class:`Chain` of the rows `x`."""

RANGED: dict[str, Any] = {"range_": "float32 [2] | [2, groups]", "scheme_ints": "free", "scheme_floats": "free"}
"""What they take of a :class:`Ranged`."""

OF_MATRIX = {"bias": "x? [columns]", "other": "x? [rows, columns]"}
"""The same of rows that are not there yet, `[rows, columns]`."""


def ends_of(ranges: Sequence[Tensor]) -> Tensor:
    """Returns the ends of ranges in one tensor, float32 `[2 * grids]`, or `[2 * grids, groups]`."""
    return torch.stack(list(ranges)) if ranges else torch.empty(0, dtype=torch.float32)


NO_CHAIN = Chain.of()
"""Leaves rows as they are."""

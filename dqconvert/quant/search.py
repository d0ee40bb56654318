"""Ranges that are searched: the one whose grid is nearest to the values, in squared error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dqconvert.kernels import qparams

SAMPLE = 1 << 16
"""Values per channel that a search looks at; of more, as many are drawn, with a seed of their own."""


def _factors(low: float, high: float, number: int) -> list[float]:
    """Returns factors at equal ratios, and 1."""
    return [1.0, *torch.exp(torch.linspace(math.log(low), math.log(high), number, dtype=torch.float64)).tolist()]


COARSE = _factors(0.03, 1.05, 60)
"""What the full range is multiplied by, in the first pass."""

FINE = _factors(0.95, 1.05, 16)
"""What the range found is multiplied by, in the second."""

ONE_END = _factors(0.6, 1.3, 24)
"""What either end of an affine range is multiplied by on its own, in the third and fourth."""

FLOOR = 0.1
"""The share of the median row's mean square that is added to each row's, so that rows near zero don't decide."""

_SEED = 20210504


def row_weights(values: Tensor, row_dim: int) -> Tensor:
    """Returns what the squared errors of each row count for in relation to the row's own size: float32 ``[rows]``.

    It is ``m / (s + FLOOR m)``: ``s`` the mean square of the row's values, ``m`` the median of those that are not 0.
    NaN and infinities count as zeros.

    Example:
        >>> row_weights(torch.tensor([[1.0, -1.0], [3.0, 3.0], [1.0, 1.0]]), 0)
        tensor([0.9091, 0.1099, 0.9091])
    """
    rows = values.detach().movedim(row_dim, 0).nan_to_num(0.0, 0.0, 0.0)
    rows = rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)
    sizes = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square() / max(rows.size(1), 1)
    some = sizes[sizes > 0]
    middle = some.median() if len(some) else sizes.new_ones(())
    return (middle / (sizes + FLOOR * middle)).clamp(min=1e-30).float()


def searched_range(values: Tensor, bits: int, symmetric: bool, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the range whose grid rounds the non-zero values with the least squared error.

    Zero is on every grid, so zeros, of which sparse features and values behind a ReLU have many, say nothing of where
    the grid should lie; percentiles that count them collapse (4 bits, 99 % zeros: both are zero). Ends may lie inside
    of the largest values: clipping few of them can cost less than a coarser step for all others.

    Args:
        values: Floating, ``[channels, number]``. NaN and infinities are left out.
        bits: Width of the codes.
        symmetric: Whether the grid lies evenly around zero.
        weights: What each squared error is multiplied by, shaped like ``values``; ``None``: 1. With them, the search
            also looks at ranges that clip far more.

    Returns:
        ``low`` and ``high``, float32 ``[channels]``: ``low <= 0 <= high``. Zero and zero where all values are zero;
        ``inf`` and ``-inf`` where there is none.

    Source:
        The criterion is that of Choi et al., *PACT/SAWB*, 2018, and Nagel et al., *A White Paper on Neural Network
        Quantization*, 2021, section 3.1 (MSE ranges).

    Example:
        >>> values = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([100.0])])[None]
        >>> low, high = searched_range(values, 8, symmetric=False)  # 100.0 is clipped as far as pays off
        >>> bool(low[0] >= -100) and bool(high[0] <= 105)
        True
    """
    of_rows = [None] * len(values) if weights is None else weights
    found = [
        _searched(*_sampled(row, weight), bits, symmetric) for row, weight in zip(values.detach(), of_rows, strict=True)
    ]
    low, high = (torch.stack(ends) for ends in zip(*found, strict=True))
    return low.float(), high.float()


def _sampled(row: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns the finite values as float64, at most `SAMPLE` of them; of non-zero ones, if there are any."""
    finite = row.isfinite()
    some = finite & (row != 0)
    nonzero = row[some]
    weights = None if weights is None else weights[some]
    if not len(nonzero):
        return row[finite][:1].double(), None
    if len(nonzero) > SAMPLE:
        ends = torch.stack([nonzero.argmin(), nonzero.argmax()])
        generator = torch.Generator(device=row.device).manual_seed(_SEED)
        chosen = torch.randint(len(nonzero), (SAMPLE,), generator=generator, device=row.device)
        chosen = torch.cat([chosen, ends])
        nonzero, weights = nonzero[chosen], None if weights is None else weights[chosen]
    return nonzero.double(), None if weights is None else weights.double()


def _searched(values: Tensor, weights: Tensor | None, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    if not len(values):
        return values.new_tensor(torch.inf), values.new_tensor(-torch.inf)
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    factors = values.new_tensor(COARSE)
    lows, highs = (factors * low, factors * high) if weights is None else _cut(values, weights, low, high)
    low, high = _nearest(values, weights, lows, highs, bits, symmetric)
    factors = values.new_tensor(FINE)
    low, high = _nearest(values, weights, factors * low, factors * high, bits, symmetric)
    if not symmetric:
        factors = values.new_tensor(ONE_END)
        low, high = _nearest(values, weights, factors * low, high.expand_as(factors), bits, symmetric)
        low, high = _nearest(values, weights, low.expand_as(factors), factors * high, bits, symmetric)
    return low, high


def _cut(values: Tensor, weights: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ranges for the first pass: the full one, cut at sizes a tenth apart from both sides.

    They go down to 0.3 of the root mean square of weighted values. One tail may be far longer than the other, so both
    ends are not scaled alike.
    """
    reach = values.abs().max()
    share = ((values.square() * weights).sum() / weights.sum()).sqrt() / reach
    smallest = min(max(0.3 * float(share), 1e-30), 0.9)
    sizes = reach * values.new_tensor(_factors(smallest, 1.0, math.ceil(-10 * math.log(smallest)) + 1))
    return torch.maximum(-sizes, low), torch.minimum(sizes, high)


def _nearest(
    values: Tensor, weights: Tensor | None, lows: Tensor, highs: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Returns the pair of ends whose grid is nearest to the values; of equals, the first."""
    top = 2**bits - 1
    scales, zeros = qparams(lows, highs, 0, top, symmetric)
    errors = []
    for scale, zero in zip(scales.double(), zeros.double(), strict=True):
        rounded = (torch.round(values / scale) + zero).clamp(0, top) - zero
        squares = (rounded * scale - values).square()
        errors.append((squares if weights is None else squares * weights).sum())
    best = torch.stack(errors).argmin()
    return lows[best], highs[best]

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

_SEED = 20210504


def searched_range(values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Returns the range whose grid rounds the non-zero values with the least squared error.

    Zero is on every grid, so zeros, of which sparse features and values behind a ReLU have many, say nothing of where
    the grid should lie; percentiles that count them collapse (4 bits, 99 % zeros: both are zero). Ends may lie inside
    of the largest values: clipping few of them can cost less than a coarser step for all others.

    Args:
        values: Floating, ``[channels, number]``. NaN and infinities are left out.
        bits: Width of the codes.
        symmetric: Whether the grid lies evenly around zero.

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
    rows = [_sampled(row) for row in values.detach()]
    found = [_searched(row, bits, symmetric) for row in rows]
    low, high = (torch.stack(ends) for ends in zip(*found, strict=True))
    return low.float(), high.float()


def _sampled(row: Tensor) -> Tensor:
    """Returns the finite values as float64, at most `SAMPLE` of them; of non-zero ones, if there are any."""
    finite = row[row.isfinite()]
    nonzero = finite[finite != 0]
    if not len(nonzero):
        return finite[:1].double()
    if len(nonzero) > SAMPLE:
        ends = torch.stack([nonzero.min(), nonzero.max()])
        generator = torch.Generator(device=row.device).manual_seed(_SEED)
        chosen = torch.randint(len(nonzero), (SAMPLE,), generator=generator, device=row.device)
        nonzero = torch.cat([nonzero[chosen], ends])
    return nonzero.double()


def _searched(values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    if not len(values):
        return values.new_tensor(torch.inf), values.new_tensor(-torch.inf)
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    for factors in map(values.new_tensor, (COARSE, FINE)):
        low, high = _nearest(values, factors * low, factors * high, bits, symmetric)
    if not symmetric:
        factors = values.new_tensor(ONE_END)
        low, high = _nearest(values, factors * low, high.expand_as(factors), bits, symmetric)
        low, high = _nearest(values, low.expand_as(factors), factors * high, bits, symmetric)
    return low, high


def _nearest(values: Tensor, lows: Tensor, highs: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Returns the pair of ends whose grid is nearest to the values; of equals, the first."""
    top = 2**bits - 1
    scales, zeros = qparams(lows, highs, 0, top, symmetric)
    errors = []
    for scale, zero in zip(scales.double(), zeros.double(), strict=True):
        rounded = (torch.round(values / scale) + zero).clamp(0, top) - zero
        errors.append((rounded * scale - values).square().sum())
    best = torch.stack(errors).argmin()
    return lows[best], highs[best]

"""Ranges of the values of several ranks, by torch's own operations: what fast implementations are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.distributed import Ranks
from dqconvert.kernels._layout import range_shape, wide_dtype, with_validity


def pair_of_ranks(
    values: Tensor,
    p: float,
    ranks: Ranks,
    *,
    keep: Tensor | None = None,
    row_dim: int = 0,
    channel_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what :func:`dqconvert.kernels.percentile_pair` does of the values of all ranks together, exactly.

    Args:
        values, p, keep, row_dim, channel_dim: As there; of each rank its own, and `p` may be 0 (minimum and maximum).
        ranks: Who they are.

    Returns:
        `(lo, hi)`, float32, the same on every rank.
    """
    matrix, valid = with_validity(values.to(wide_dtype(values.dtype)), keep, row_dim, channel_dim)
    counts = ranks.gather_rows(valid.sum(dim=1)[None]).sum(dim=0)
    below = (counts.double() * p).long().clamp(min=1)
    above = counts - torch.minimum((counts.double() * (1 - p)).long().clamp(min=1), counts.clamp(min=1)) + 1
    above = above.clamp(min=1)  # where nothing counts
    lo = _kth(torch.where(valid, matrix, torch.inf), below, ranks)
    hi = -_kth(torch.where(valid, -matrix, torch.inf), above, ranks)
    shape = range_shape(values, channel_dim)
    return lo.float().reshape(shape), torch.where(counts == 0, -torch.inf, hi).float().reshape(shape)


def _kth(matrix: Tensor, k: Tensor, ranks: Ranks) -> Tensor:
    """Returns the `k`-th smallest value, int64 `[channels]`, of each row of all ranks' `[channels, number]`."""
    most = int(k.max())
    missing = matrix.new_full((matrix.size(0), max(most - matrix.size(1), 0)), torch.inf)
    least = torch.cat([matrix, missing], dim=1).topk(most, dim=1, largest=False).values
    every = ranks.gather(least).movedim(0, 1).flatten(1).sort(dim=1).values
    return every.gather(1, (k - 1)[:, None])[:, 0]

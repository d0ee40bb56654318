"""Ranges of the values of several ranks, by torch's own operations: what fast implementations are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.distributed import Ranks
from dqconvert.kernels._layout import range_shape, wide_dtype, with_validity
from dqconvert.kernels.minmax import plain_minmax_pair


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
    if p == 0:
        return ranks.widest(*plain_minmax_pair(values, keep, row_dim, channel_dim))
    matrix, valid = with_validity(values.to(wide_dtype(values.dtype)), keep, row_dim, channel_dim)
    own = valid.sum(dim=1)
    counts = own.new_tensor(ranks.add_up(own.tolist())) if len(own) == 1 else ranks.gather_rows(own[None]).sum(dim=0)
    below = (counts.double() * p).long().clamp(min=1)
    above = counts - torch.minimum((counts.double() * (1 - p)).long().clamp(min=1), counts.clamp(min=1)) + 1
    k = torch.stack([below, above.clamp(min=1)])  # where nothing counts, too
    smallest = torch.where(valid, torch.stack([matrix, -matrix]), torch.inf)  # [2, channels, values]
    most = int(k.max())
    missing = smallest.new_full((*k.shape, max(most - smallest.size(2), 0)), torch.inf)
    least = torch.cat([smallest, missing], dim=2).topk(most, dim=2, largest=False).values
    every = ranks.gather(least).movedim(0, 2).flatten(2).sort(dim=2).values
    lo, hi = every.gather(2, (k - 1)[..., None])[..., 0].float().reshape(2, *range_shape(values, channel_dim))
    return lo, -hi

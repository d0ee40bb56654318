"""A low and a high percentile: the range that leaves out the few largest values, as Degree-Quant does."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.kernels._layout import check_keep, kept_values, range_shape, wide_dtype, with_validity
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.select import Rows, percentiles

# Fewer values than this are never sampled, and no sample is smaller, as in Degree-Quant's official
# implementation.
SAMPLE_CUTOFF = 1000


def plain_percentile_pair(
    values: Tensor, p: float, keep: Tensor | None, row_dim: int, channel_dim: int | None, sample: float | None
) -> tuple[Tensor, Tensor]:
    """Defines what every implementation is held to: sort, and take the values at two positions.

    How many values count is known on the device only, so what does not count is sorted to the end.
    """
    matrix, valid = with_validity(values.to(wide_dtype(values.dtype)), keep, row_dim, channel_dim)
    if (columns := _sampled(matrix, sample)) is not None:
        matrix, valid = matrix[:, columns], valid[:, columns]
    inf = matrix.new_full((matrix.size(0), 1), torch.inf)
    ordered = torch.cat([torch.where(valid, matrix, torch.inf), inf], dim=1).sort(dim=1).values
    n = valid.sum(dim=1, keepdim=True)
    k_lo = (n.double() * p).long().clamp(min=1)
    k_hi = torch.minimum((n.double() * (1 - p)).long().clamp(min=1), n.clamp(min=1))
    lo = ordered.gather(1, k_lo - 1)
    hi = torch.where(n == 0, -torch.inf, ordered.gather(1, k_hi - 1))
    shape = range_shape(values, channel_dim)
    return lo.float().reshape(shape), hi.float().reshape(shape)


def _sampled(matrix: Tensor, sample: float | None) -> Tensor | None:
    """Returns the columns of `matrix` to look at, drawn with replacement; None for all."""
    n = matrix.size(1)
    if sample is None or sample >= 1 or n < SAMPLE_CUTOFF:
        return None
    return torch.randint(n, (max(SAMPLE_CUTOFF, int(n * sample)),), device=matrix.device)


_TAKES = Takes("percentile_pair", values="real [rows, ...]", p="free", keep="bool? [rows]")


# Sampling draws random numbers, so equal calls must neither be merged nor run again in a backward pass.
@torch.library.custom_op("dqconvert::percentile_pair", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _percentile_pair(
    values: Tensor, p: float, keep: Tensor | None, row_dim: int, channel_dim: int | None, sample: float | None
) -> tuple[Tensor, Tensor]:
    return plain_percentile_pair(values, p, keep, row_dim, channel_dim, sample)


@_percentile_pair.register_kernel("cpu")
def _(
    values: Tensor, p: float, keep: Tensor | None, row_dim: int, channel_dim: int | None, sample: float | None
) -> tuple[Tensor, Tensor]:
    every = sample is None or sample >= 1 or values.numel() < SAMPLE_CUTOFF
    simple = channel_dim is None and row_dim == 0 and values.dim() > 0
    if every and simple and values.dtype in (torch.float32, torch.float64):
        _TAKES((values, p, keep))
        rows = array(values).reshape(values.size(0), values.numel() // max(values.size(0), 1))
        ends = percentiles(Rows(rows, None if keep is None else array(~keep)), p)
        return torch.tensor(ends.lo, dtype=torch.float32), torch.tensor(ends.hi, dtype=torch.float32)
    matrix = kept_values(values, keep, row_dim, channel_dim)
    if (columns := _sampled(matrix, sample)) is not None:
        matrix = matrix[:, columns]
    matrix = matrix.to(wide_dtype(matrix.dtype))
    # kthvalue selects in linear time, but cannot leave out what is not finite.
    if matrix.numel() == 0 or not all(end.float().isfinite() for end in torch.aminmax(matrix)):
        return plain_percentile_pair(matrix, p, None, 0, None if channel_dim is None else 0, None)
    n = matrix.size(1)
    lo = matrix.kthvalue(max(1, int(n * p)), dim=1).values
    hi = matrix.kthvalue(min(n, max(1, int(n * (1 - p)))), dim=1).values
    shape = range_shape(values, channel_dim)
    return lo.float().reshape(shape), hi.float().reshape(shape)


@_percentile_pair.register_fake
def _(
    values: Tensor, p: float, keep: Tensor | None, row_dim: int, channel_dim: int | None, sample: float | None
) -> tuple[Tensor, Tensor]:
    shape = range_shape(values, channel_dim)
    return values.new_empty(shape, dtype=torch.float32), values.new_empty(shape, dtype=torch.float32)


def percentile_pair(
    values: Tensor,
    p: float,
    *,
    keep: Tensor | None = None,
    row_dim: int = 0,
    channel_dim: int | None = None,
    sample: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns a low and a high percentile of the finite values, exact, or estimated from a random sample of them.

    Of the `n` values that count, the pair is the k-th smallest for `k = max(1, int(n p))` and for
    `k = min(n, max(1, int(n (1 - p))))`.

    Args:
        values: Floating tensor of any shape; NaN and infinities are left out.
        p: The share of values to leave out at either end, 0 to 0.5.
        keep: bool `[values.size(row_dim)]`; only rows that are True count. `None`: all do.
        row_dim: The dimension that `keep` ranges over.
        channel_dim: One pair per index along this dimension instead of one for the whole tensor.
        sample: Estimate from this share of the values (of each channel), drawn with torch's random numbers, at least
            1,000 of them; fewer than 1,000 values are all used. On accelerators, where a count of the kept rows would
            have to be waited for, the 1,000 are counted and drawn before `keep` applies.

    Returns:
        `(lo, hi)`, float32, `[]` or `[channels]`; `(inf, -inf)` where no value counts. Not differentiable.

    Raises:
        ValueError: For a `p` or `sample` out of bounds.
        TypeError, ValueError: For values that are not floating or a `keep` that does not fit.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, and its official implementation.

    Example:
        >>> percentile_pair(torch.arange(100.0), 0.05)
        (tensor(4.), tensor(94.))
    """
    if not 0 <= p <= 0.5:
        raise ValueError(f"p={p!r}: must be between 0 and 0.5")
    if sample is not None and not 0 < sample <= 1:
        raise ValueError(f"sample={sample!r}: must be above 0 and at most 1")
    wide_dtype(values.dtype)
    check_keep(keep, values, row_dim, channel_dim)
    return _percentile_pair(values.detach(), p, keep, row_dim, channel_dim, sample)

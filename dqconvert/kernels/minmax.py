"""The smallest and the largest value."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.kernels._layout import check_keep, kept_values, range_shape, wide_dtype, with_validity


def plain_minmax_pair(
    values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None
) -> tuple[Tensor, Tensor]:
    """Defines what every implementation is held to."""
    matrix, valid = with_validity(values.to(wide_dtype(values.dtype)), keep, row_dim, channel_dim)
    # One more column, so that there is a smallest value even where there is no value.
    inf = matrix.new_full((matrix.size(0), 1), torch.inf)
    lo = torch.cat([torch.where(valid, matrix, torch.inf), inf], dim=1).amin(dim=1)
    hi = torch.cat([torch.where(valid, matrix, -torch.inf), -inf], dim=1).amax(dim=1)
    shape = range_shape(values, channel_dim)
    return lo.float().reshape(shape), hi.float().reshape(shape)


@torch.library.custom_op("dqconvert::minmax_pair", mutates_args=())
def _minmax_pair(values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> tuple[Tensor, Tensor]:
    return plain_minmax_pair(values, keep, row_dim, channel_dim)


@_minmax_pair.register_kernel("cpu")
def _(values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> tuple[Tensor, Tensor]:
    matrix = kept_values(values, keep, row_dim, channel_dim)
    if matrix.numel() > 0:
        lo, hi = (end.float() for end in torch.aminmax(matrix, dim=1))
        if lo.isfinite().all() and hi.isfinite().all():
            shape = range_shape(values, channel_dim)
            return lo.reshape(shape), hi.reshape(shape)
    return plain_minmax_pair(values, keep, row_dim, channel_dim)


_minmax_pair.register_fake(plain_minmax_pair)


def minmax_pair(
    values: Tensor, *, keep: Tensor | None = None, row_dim: int = 0, channel_dim: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest of the finite values.

    Args:
        values: Floating tensor of any shape; NaN and infinities are left out.
        keep: bool `[values.size(row_dim)]`; only rows that are True count. `None`: all do.
        row_dim: The dimension that `keep` ranges over.
        channel_dim: One pair per index along this dimension instead of one for the whole tensor.

    Returns:
        `(lo, hi)`, float32, `[]` or `[channels]`; `(inf, -inf)` where no value counts. Not differentiable.

    Example:
        >>> minmax_pair(torch.tensor([[1.0, 2.0], [-5.0, 0.5]]), keep=torch.tensor([True, False]))
        (tensor(1.), tensor(2.))
        >>> minmax_pair(torch.tensor([[1.0, 2.0], [-5.0, 0.5]]), channel_dim=1)
        (tensor([-5.0000,  0.5000]), tensor([1., 2.]))
    """
    wide_dtype(values.dtype)
    check_keep(keep, values, row_dim, channel_dim)
    return _minmax_pair(values.detach(), keep, row_dim, channel_dim)

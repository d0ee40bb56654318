"""How the observing operations lay out the values they reduce: one row per range."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.errors import InputShapeError, InputTypeError


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type to compute in: float64 stays, every narrower floating type is computed in float32."""
    if not dtype.is_floating_point:
        raise InputTypeError(f"expected a floating-point tensor, got {dtype}")
    return torch.float64 if dtype == torch.float64 else torch.float32


def along(vector: Tensor, values: Tensor, dim: int) -> Tensor:
    """`vector`, shaped to broadcast along dimension `dim` of `values`."""
    shape = [1] * values.dim()
    shape[dim] = -1
    return vector.reshape(shape)


def check_rows(rows: Tensor, values: Tensor, row_dim: int, *, name: str) -> None:
    """Raises unless `rows` is a bool vector with one entry per row of `values`."""
    if rows.dtype != torch.bool:
        raise InputTypeError(f"{name} must be a bool tensor, got {rows.dtype}")
    if values.dim() == 0 or rows.dim() != 1 or rows.size(0) != values.size(row_dim):
        raise InputShapeError(
            f"{name} must have one entry per row (dimension {row_dim}) of the values: "
            f"got shape {tuple(rows.shape)} for values of shape {tuple(values.shape)}"
        )


def check_keep(keep: Tensor | None, values: Tensor, row_dim: int, channel_dim: int | None) -> None:
    """Raises unless `keep` can choose among the rows of `values`."""
    if keep is None:
        return
    check_rows(keep, values, row_dim, name="keep")
    if channel_dim is not None and channel_dim % values.dim() == row_dim % values.dim():
        raise ValueError(
            f"channel_dim={channel_dim} and row_dim={row_dim} are the same dimension: rows cannot be left out"
        )


def by_channel(values: Tensor, channel_dim: int | None) -> Tensor:
    """`values` as a matrix with one row per range: `[1, n]`, or `[channels, n]`."""
    if channel_dim is None:
        return values.reshape(1, -1)
    channels = values.size(channel_dim)
    return values.movedim(channel_dim, 0).reshape(channels, values.numel() // max(channels, 1))


def kept_values(values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> Tensor:
    """Returns the kept rows as a matrix with one row per range. Its size depends on the data: for the CPU only."""
    if keep is not None:
        values = values.index_select(row_dim, keep.nonzero().squeeze(1))
    return by_channel(values, channel_dim)


def with_validity(values: Tensor, keep: Tensor | None, row_dim: int, channel_dim: int | None) -> tuple[Tensor, Tensor]:
    """Returns all values as a matrix with one row per range, and which of them count: the kept, finite ones."""
    valid = values.float().isfinite()  # as the float32 that ranges are
    if keep is not None:
        valid = valid & along(keep, values, row_dim)
    return by_channel(values, channel_dim), by_channel(valid, channel_dim)


def range_shape(values: Tensor, channel_dim: int | None) -> tuple[int, ...]:
    """Returns the shape of a range end: `()` for the whole tensor, or `(channels,)`."""
    return () if channel_dim is None else (values.size(channel_dim),)

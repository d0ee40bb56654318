"""Fake quantization: rounding to an integer grid, in floating point, with a gradient for training.

The scheme, its gradient and the protection of rows are those of Tailor, Fernandez-Marques and Lane,
*Degree-Quant: Quantization-Aware Training for Graph Neural Networks*, ICLR 2021, and of its official
implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme
from dqconvert.kernels._layout import along, check_rows, wide_dtype

_EPS = torch.finfo(torch.float32).eps
_TINY = torch.finfo(torch.float32).tiny


def qparams(min_val: Tensor, max_val: Tensor, quant_min: int, quant_max: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Returns the grid that covers a range: `(scale, zero_point)`.

    The range is widened to contain zero, so that zero is on the grid. With `n = quant_max - quant_min`:

    - affine: `scale = max((max - min) / n, eps)`, eps that of float32; `zero_point = quant_min - round(min /
      scale)`, clamped to the grid;
    - symmetric: `scale = 2 max(|min|, max) / n`; `zero_point` is 0 for signed codes and `2^(b-1)` for
      unsigned ones;
    - an empty range (`min == max` once widened, or never observed: `min = inf`, `max = -inf`): scale 1, zero
      point 0.

    Args:
        min_val, max_val: Floating tensors of one shape, `[]` per tensor or `[channels]`.
        quant_min, quant_max: The smallest and the largest code.
        symmetric: True if the grid lies evenly around zero.

    Returns:
        `scale` (float32) and `zero_point` (int32), shaped like the range and on its device.

    Example:
        >>> scale, zero_point = qparams(torch.tensor(-1.0), torch.tensor(2.0), -8, 7, symmetric=False)
        >>> round(scale.item(), 4), zero_point.item()
        (0.2, -3)
    """
    # In double precision, as the official code (whose ranges are Python floats): in float32 a zero point that
    # lies half way between two codes, as it does for every range [-a, a], would round one way or the other by
    # accident.
    lo = min_val.double().clamp(max=0)
    hi = max_val.double().clamp(min=0)
    steps = quant_max - quant_min
    if symmetric:
        # The lower bound keeps a range of denormal numbers from giving a scale of zero.
        scale = (2 * torch.maximum(-lo, hi) / steps).clamp(min=_TINY)
        zero_point = torch.full_like(scale, 0 if quant_min < 0 else (quant_max + 1) // 2)
    else:
        scale = ((hi - lo) / steps).clamp(min=_EPS)
        zero_point = (quant_min - torch.round(lo / scale)).clamp(quant_min, quant_max)
    empty = lo == hi
    return scale.masked_fill(empty, 1).float(), zero_point.masked_fill(empty, 0).int()


def scheme_qparams(scheme: Scheme, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the grid that a scheme makes of a range, as :func:`qparams` does."""
    low = lo.clamp(min=0) if scheme.from_zero else lo
    return qparams(low, hi, scheme.quant_min, scheme.quant_max, scheme.symmetric)


def plain_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None,
    row_dim: int,
    channel_dim: int | None,
) -> tuple[Tensor, Tensor]:
    """Defines what every implementation is held to: the fake-quantized values, and which were clipped.

    It divides by the scale: to multiply by the reciprocal would move values that lie half way between two
    codes. Clipped are the values whose rounded code is at an end of the grid or beyond, and which are not
    protected.
    """
    dtype = wide_dtype(x.dtype)
    wide, scale, zero_point = x.to(dtype), scale.to(dtype), zero_point.to(dtype)
    if channel_dim is not None:
        scale, zero_point = along(scale, x, channel_dim), along(zero_point, x, channel_dim)
    code = torch.round(wide / scale + zero_point)
    values = (code.clamp(quant_min, quant_max) - zero_point) * scale
    clipped = (code <= quant_min) | (code >= quant_max)
    if protected is not None:
        check_rows(protected, x, row_dim, name="protected")
        rows = along(protected, x, row_dim)
        values = torch.where(rows, wide, values)
        clipped = clipped & ~rows
    return values.to(x.dtype).contiguous(), clipped.contiguous()


# Two operators, since an operator returns what its backward pass needs: nothing for "ste", one bool a value
# for "clip". They hide nothing from torch.compile and torch.export but their loop, and a faster
# implementation for a device registers here.
@torch.library.custom_op("dqconvert::fake_quantize_ste", mutates_args=())
def _fake_quantize_ste(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None,
    row_dim: int,
    channel_dim: int | None,
) -> Tensor:
    return plain_fake_quantize(x, scale, zero_point, quant_min, quant_max, protected, row_dim, channel_dim)[0]


@torch.library.custom_op("dqconvert::fake_quantize_clip", mutates_args=())
def _fake_quantize_clip(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None,
    row_dim: int,
    channel_dim: int | None,
) -> tuple[Tensor, Tensor]:
    return plain_fake_quantize(x, scale, zero_point, quant_min, quant_max, protected, row_dim, channel_dim)


# The definition runs on shapes alone as well as on values, so sizes, strides and types cannot drift apart.
_fake_quantize_clip.register_fake(plain_fake_quantize)
_fake_quantize_ste.register_fake(lambda *args: plain_fake_quantize(*args)[0])


def _ste_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad, None, None, None, None, None, None, None


def _clip_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # none of zeros for the mask
    ctx.save_for_backward(output[1])


def _clip_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (clipped,) = ctx.saved_tensors
    if grad is None:
        return (None,) * 8
    # Not a product: where the incoming gradient is infinite or NaN, a clipped value's gradient is still zero.
    return grad.masked_fill(clipped, 0), None, None, None, None, None, None, None


_fake_quantize_ste.register_autograd(_ste_backward)
_fake_quantize_clip.register_autograd(_clip_backward, setup_context=_clip_setup)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    protected: Tensor | None = None,
    row_dim: int = 0,
    channel_dim: int | None = None,
    grad: str = "ste",
) -> Tensor:
    """Rounds `x` to the grid: `q = clamp(round(x / scale + zero_point))`, returned as `(q - zero_point) *
    scale`.

    Halves round to even. NaN stays NaN; infinities become the ends of the grid.

    Args:
        x: Floating tensor of any shape. float64 is computed in float64, all else in float32.
        scale, zero_point: Floating and int, `[]`, or `[x.size(channel_dim)]` with `channel_dim`.
        quant_min, quant_max: The smallest and the largest code.
        protected: bool `[x.size(row_dim)]`; rows that are True pass unchanged, with an identity gradient.
        row_dim: The dimension that `protected` ranges over.
        channel_dim: The dimension along which grids differ, if they do.
        grad: `"ste"`: the gradient passes straight through. `"clip"`: it is zero where the rounded code,
            before clamping, is `<= quant_min` or `>= quant_max`.

    Returns:
        A contiguous tensor of `x`'s shape and dtype. Gradients reach `x` only.

    Raises:
        TypeError: For a tensor that is not floating or a mask that is not bool.
        ValueError: For a mask that does not fit or an unknown `grad`.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021.

    Example:
        >>> x = torch.tensor([[0.5, 1.5], [0.5, 9.0]], requires_grad=True)
        >>> protected = torch.tensor([True, False])
        >>> y = fake_quantize(x, torch.tensor(1.0), torch.tensor(0), -8, 7, protected, grad="clip")
        >>> y.tolist()
        [[0.5, 1.5], [0.0, 7.0]]
        >>> y.sum().backward()
        >>> x.grad.tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    if grad not in ("ste", "clip"):
        raise ValueError(f"grad={grad!r}: must be 'ste' or 'clip'")
    wide_dtype(x.dtype)
    if protected is not None:
        check_rows(protected, x, row_dim, name="protected")
    args = (x, scale, zero_point, quant_min, quant_max, protected, row_dim, channel_dim)
    # Both operators have the same values: without gradients there is no need to record what was clipped.
    if grad == "ste" or not torch.is_grad_enabled():
        return _fake_quantize_ste(*args)
    return _fake_quantize_clip(*args)[0]

"""Ranges that are learned: a step size, and where the grid is affine an offset, that training moves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels import qparams
from dqconvert.kernels.derived import Derived, Made


def learned_ends(
    start: tuple[Tensor, Tensor],
    log_scale: Tensor,
    offset: Tensor | None,
    *,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Returns the ends of the range of the grid with the step `s0 exp(log_scale)`, with gradients.

    ``s0`` is the step of the range that was searched, so ``log_scale`` is zero at first; in logarithms a step stays
    positive, and moves in proportion to itself whatever its size. ``offset`` shifts the zero point, in codes; zero has
    to be on the grid, so it is rounded, straight through.

    Args:
        start: The range that was searched, float32 ``[]`` or ``[channels]`` each.
        log_scale: Shaped like that.
        offset: Likewise; ``None``: the zero point stays.
        quant_min: The smallest code.
        quant_max: The largest code.
        symmetric: Whether the grid of ``start`` lies evenly around zero.
        number: The number of values ``N`` that share a step: gradients are scaled by ``1 / sqrt(N quant_max)``.

    Returns:
        ``lo`` and ``hi``: the values of the smallest and the largest code.

    Source:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, section 2.2 (gradient scale); Bhalgat et al.,
        *LSQ+*, CVPR workshops 2020, section 3 (offset).

    Example:
        >>> start = torch.tensor(-4.0), torch.tensor(3.5)
        >>> grid = {"quant_min": -8, "quant_max": 7, "symmetric": False, "number": 1}
        >>> [end.item() for end in learned_ends(start, torch.tensor(2.0).log(), torch.tensor(1.0), **grid)]
        [-9.0, 6.0]
    """
    grid = kept(_qparams, start, quant_min, quant_max, symmetric)
    lo, hi = _Ends.apply(log_scale, offset, *grid, quant_min, quant_max, 1 / math.sqrt(max(number, 1) * quant_max))
    return lo, hi


_qparams = Derived(qparams)


def kept(table: Derived[Made], tensors: tuple[Tensor, ...], *what: Any) -> Made:
    """Returns what a table keeps, made anew where somebody looks at what is computed."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        assert table.make is not None
        return table.make(*tensors, *what)
    return table(tensors, *what)


class _Ends(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_scale: Tensor,
        offset: Tensor | None,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        factor: float,
    ) -> tuple[Tensor, Tensor]:
        scale, shifted = scale * log_scale.exp(), None
        if offset is not None:
            shifted = zero_point + offset
            zero_point = shifted.round().clamp(quant_min, quant_max)
        lo, hi = (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
        ctx.ends, ctx.factor = (quant_min, quant_max), factor
        ctx.save_for_backward(scale, shifted, lo, hi)
        return lo, hi

    @staticmethod
    def backward(ctx: Any, to_lo: Tensor, to_hi: Tensor) -> tuple[Any, ...]:
        scale, shifted, lo, hi = ctx.saved_tensors
        to_scale = ctx.factor * (lo * to_lo + hi * to_hi)
        to_offset = None
        if shifted is not None:
            to_offset = -ctx.factor * scale * (to_lo + to_hi)
            # Zero stays on the grid: what would go on outwards stops at its end.
            low, high = ctx.ends
            outwards = ((shifted <= low) & (to_offset > 0)) | ((shifted >= high) & (to_offset < 0))
            to_offset = to_offset.masked_fill(outwards, 0)
        return to_scale, to_offset, *(None,) * 5

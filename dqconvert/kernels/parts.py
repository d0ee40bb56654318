"""Several small values, each with a grid of its own, in one go: the weights of a model.

Each alone is so small that calling an operator for it costs more than what the operator does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import Ranged, ends_of
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import all_pass, plain_quantize_chain
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import has_loops, observe
from dqconvert.kernels.cpu.parts import count_beyond, pass_all, round_parts
from dqconvert.kernels.cpu.select import Rows, ranks


def plain_quantize_parts(
    x: Tensor, sizes: Sequence[int], ranges: Tensor, ints: Sequence[int], floats: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to: part by part what a chain of one grid does.

    The arguments are those of :func:`quantize_parts`; `ranges` is float32 `[2 * parts]`; `ints` and `floats` are the
    schemes one after the other (:meth:`Scheme.packed`), `ints` with one number before them: whether to say which
    gradients pass.

    Returns:
        The result; the new ends of the ranges, float32 `[2 * parts]`; and, uint8, shaped like `x`, whether the gradient
        passes (`[0]` if nobody asks).
    """
    masked, schemes = _unpacked(ints, floats)
    found = [
        plain_quantize_chain(part, Ranged(ends, *scheme.packed()).chain(masked=masked))
        for part, scheme, ends in zip(x.split_with_sizes(list(sizes)), schemes, ranges.split(2), strict=True)
    ]
    values, ends, passes = (list(results) for results in zip(*found, strict=True))
    return torch.cat(values), torch.cat(ends), (torch.cat(passes) & 1 if masked else x.new_empty(0).to(torch.uint8))


def _unpacked(ints: Sequence[int], floats: Sequence[float]) -> tuple[bool, list[Scheme]]:
    masked, numbers = ints[0], ints[1:]
    parts = range(len(floats) // 2)
    return bool(masked), [Scheme.unpacked(numbers[5 * i : 5 * i + 5], floats[2 * i : 2 * i + 2]) for i in parts]


def _fake(x: Tensor, sizes: Sequence[int], ranges: Tensor, ints: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    passes = x.new_empty(x.shape if ints[0] else (0,), dtype=torch.uint8)
    return torch.empty_like(x), torch.empty_like(ranges), passes


def _on_cpu(
    x: Tensor, sizes: Sequence[int], ranges: Tensor, ints: Sequence[int], floats: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    masked, schemes = _unpacked(ints, floats)
    values, cuts = array(x), np.array([0, *itertools.accumulate(sizes)])
    grids = [Grid(scheme, *ends) for scheme, ends in zip(schemes, ranges.view(-1, 2).tolist(), strict=True)]
    counts = np.empty((len(grids), 3), np.int64)
    count_beyond(values, cuts, array(ranges).reshape(-1, 2), counts)
    for grid, (below, above, odd), start, stop in zip(grids, counts.tolist(), cuts[:-1], cuts[1:], strict=True):
        from_below, from_above = ranks(stop - start - odd, grid.scheme.p)
        if not grid.settled or below >= from_below or above >= from_above:
            observe(grid, Rows(values[start:stop].reshape(1, -1), None))
    y, passes = torch.empty_like(x), torch.empty(x.shape if masked else (0,), dtype=torch.uint8)
    parameters = np.stack([grid.parameters(values.dtype.type) for grid in grids])
    clip = np.array([grid.scheme.clip for grid in grids])
    round_parts(values, cuts, parameters, clip, array(y), array(passes))
    return y, torch.tensor([end for grid in grids for end in (grid.lo, grid.hi)], dtype=torch.float32), passes


def plain_quantize_parts_grad(grad: Tensor, passes: Tensor) -> Tensor:
    """Defines the gradient of `x`: that of the result, where it passes. Infinite or NaN, it is zero
    elsewhere, too."""
    return torch.where(passes > 0, grad, 0)


def _grad_on_cpu(grad: Tensor, passes: Tensor) -> Tensor:
    to_x = torch.empty(grad.shape, dtype=grad.dtype)
    pass_all(array(grad), array(passes), array(to_x))
    return to_x


quantize_parts_grad = Operator(
    "quantize_parts_grad",
    plain_quantize_parts_grad,
    fake=lambda grad, passes: grad.new_empty(grad.shape),
    cpu=_grad_on_cpu,
    serves=lambda grad, passes: has_loops(grad.dtype),
    takes=Takes("quantize_parts_grad", grad="real [values]", passes="uint8 [values]"),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[2])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    (passes,) = ctx.saved_tensors
    if grad is None or all_pass(passes):
        return grad, *(None,) * 4
    # A gradient of a gradient goes through torch's own operators.
    back = plain_quantize_parts_grad if torch.is_grad_enabled() else quantize_parts_grad
    return back(grad, passes), *(None,) * 4


def _check(found: Mapping[str, int], args: Sequence[Any]) -> None:
    _, sizes, ranges, ints, floats = args
    parts = len(sizes)
    whole = sum(sizes) == found["values"] and all(size >= 0 for size in sizes)
    if not whole or ranges.shape != (2 * parts,) or len(ints) != 1 + 5 * parts or len(floats) != 2 * parts:
        raise InputShapeError(f"quantize_parts: {parts} parts, each of a size and a grid, are not the {found} given")


quantize_parts_operator = Operator(
    "quantize_parts",
    plain_quantize_parts,
    fake=_fake,
    cpu=_on_cpu,
    serves=lambda x, *_: has_loops(x.dtype),
    takes=Takes(
        "quantize_parts", x="real [values]", sizes="free", ranges="float32", ints="free", floats="free", always=_check
    ),
    setup=_setup,
    backward=_backward,
)


def quantize_parts(
    values: Sequence[Tensor], schemes: Sequence[Scheme], ranges: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Observes and rounds several tensors, each by a scheme and a range of its own.

    Args:
        values: Floating tensors of one type, of any shapes; at least one.
        schemes: One for each.
        ranges: The low and the high end of each, float32 `[]`.

    Returns:
        The results, shaped like `values`, and the new ends of the ranges, float32 `[2 * len(values)]`. A range is
        updated before its tensor is rounded. Gradients reach `values`; those of clipped values are zero where the
        scheme says `clip`.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, and its official implementation.

    Example:
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> weights = torch.tensor([-8.0, 7.4]), torch.tensor([[0.4, 3.0]])
        >>> (one, two), ends = quantize_parts(weights, [scheme] * 2, never * 2)
        >>> [round(value, 1) for value in one.tolist()], [round(value, 1) for value in two.flatten().tolist()]
        ([-8.2, 7.2], [0.4, 3.0])
        >>> ends.tolist() == [-8.0, 7.400000095367432, 0.4000000059604645, 3.0]
        True
    """
    sizes = [value.numel() for value in values]
    packed = [scheme.packed() for scheme in schemes]
    masked = torch.is_grad_enabled() and any(scheme.clip for scheme in schemes)
    ints = [int(masked), *itertools.chain.from_iterable(ints for ints, _ in packed)]
    floats = list(itertools.chain.from_iterable(floats for _, floats in packed))
    flat = torch.cat([value.reshape(-1) for value in values])
    y, ends, _ = quantize_parts_operator(flat, sizes, ends_of(ranges), ints, floats)
    results = (part.view(value.shape) for part, value in zip(y.split_with_sizes(sizes), values, strict=True))
    return tuple(results), ends

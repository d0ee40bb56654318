"""The operators of fused graphs: several quantizers, and what lies between them, in one call.

Message passing is :mod:`.fused_messages`.

Each function first asks its quantizers whether they would observe and round as usual. Where one would not (its
observer was disabled, a dtype or a granularity that the operators do not know, a range that was never set), it does
the same step by step, as the graph that was not fused does. The quantizers' state is the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dqconvert.kernels import (
    Chain,
    Ranged,
    Scheme,
    learned_chain,
    learned_linear,
    quantize_batch_norm,
    quantize_chain,
    quantize_linear,
    quantize_parts,
)
from dqconvert.kernels import dropout as kernel_dropout
from dqconvert.kernels import scale_rows as kernel_scale_rows
from dqconvert.quant.fake_quantize import FakeQuantize


class FusedChain(NamedTuple):
    """A chain of quantizers: ``third(relu(second(first(x) + bias)))``, or ``+ alpha * other`` instead of the bias.

    Whatever is ``None`` (or ``False``) is left out.
    """

    first: FakeQuantize | None = None
    bias: Tensor | None = None
    other: Tensor | None = None
    alpha: Tensor | None = None
    second: FakeQuantize | None = None
    relu: bool = False
    third: FakeQuantize | None = None

    @property
    def quantizers(self) -> list[FakeQuantize]:
        """Those that there are."""
        return [quantizer for quantizer in (self.first, self.second, self.third) if quantizer is not None]

    def __call__(self, x: Tensor, protected: Tensor | None, groups: Tensor | None = None) -> Tensor:
        """Runs step by step, as the graph that is not fused does."""
        value = x if self.first is None else self.first(x, protected, groups)
        if self.bias is not None:
            value = value + self.bias
        if self.other is not None:
            value = value + (self.other if self.alpha is None else self.alpha * self.other)
        value = value if self.second is None else self.second(value, protected, groups)
        value = value.relu() if self.relu else value
        return value if self.third is None else self.third(value, protected, groups)


class _Ready(NamedTuple):
    """A chain whose quantizers all observe and round as usual.

    Attributes:
        chain: As the operators take it.
        quantizers, schemes: Those that there are.
    """

    chain: Chain
    quantizers: list[FakeQuantize]
    schemes: list[Scheme]

    def take(self, ends: Tensor) -> None:
        """Gives the quantizers their new ranges."""
        for place, (quantizer, scheme) in enumerate(zip(self.quantizers, self.schemes, strict=True)):
            quantizer.take(scheme, ends[2 * place : 2 * place + 2])


def ready_chain(
    steps: FusedChain,
    x: Tensor,
    protected: Tensor | None,
    groups: Tensor | None,
    shape: Sequence[int] | None = None,
    *,
    learned: bool = False,
) -> _Ready | None:
    """Returns the chain for an operator, if one can run it; `shape`: of what goes through, if not that of `x`;
    `learned`: whether it is the one of ranges that are learned."""
    present = steps.quantizers
    for quantizer in present:  # a part of the model may be in evaluation
        if quantizer.learned is not learned or quantizer.training is not present[0].training:
            return None
    one, two, three = [q if q is None else q.scheme_for(x) for q in (steps.first, steps.second, steps.third)]
    schemes = [scheme for scheme in (one, two, three) if scheme is not None]
    if len(schemes) != len(present):
        return None
    for t in (steps.bias, steps.other, steps.alpha):  # autocast mixes types
        if t is not None and t.dtype != x.dtype:
            return None
    shape = x.shape if shape is None else shape
    grouped = bool(present) and present[0].grouped
    if grouped:
        present[0].check_groups(groups, shape[0])
    number = math.prod(shape)
    chain = Chain.of(
        (one, two, three),
        [end for quantizer in present for end in quantizer.ends(number)],
        bias=steps.bias,
        other=steps.other,
        alpha=steps.alpha,
        relu=steps.relu,
        protected=protected if present and present[0].training else None,
        groups=groups if grouped else None,
        learned=learned,
    )
    return _Ready(chain, present, schemes)


def chain(x: Tensor, steps: FusedChain, protected: Tensor | None, groups: Tensor | None = None) -> Tensor:
    """Runs a chain on ``x``, see :func:`dqconvert.kernels.quantize_chain`.

    Args:
        x: Floating ``[rows, *features]``.
        steps: The chain.
        protected: bool ``[rows]``, for all quantizers; ``None``: none is protected.
        groups: uint8 ``[rows]``, likewise, if their ranges differ by group of in-degrees.
    """
    learned = any(quantizer.learned for quantizer in steps.quantizers)
    ready = ready_chain(steps, x, protected, groups, learned=learned)
    if ready is None:
        return steps(x, protected, groups)
    if learned:
        return learned_chain(x, ready.chain)
    y, ends = quantize_chain(x, ready.chain)
    ready.take(ends)
    return y


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    steps: FusedChain | None = None,
    protected: Tensor | None = None,
    entry: FakeQuantize | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Runs ``torch.nn.functional.linear``, and then the chain, if there is one; ``entry`` quantizes ``x`` first."""
    steps = steps or FusedChain()
    alike = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    ordinary = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and type(x) is Tensor and alike
    scheme = None
    if entry is not None:
        modes = {(quantizer.learned, quantizer.training) for quantizer in (entry, *steps.quantizers)}
        scheme = entry.scheme_for(x) if ordinary and x.dim() == 2 and len(modes) == 1 else None
        if scheme is None:
            x, entry = entry(x, protected, groups), None
    learned = any(quantizer.learned for quantizer in (*steps.quantizers, *([] if entry is None else [entry])))
    shape, fits = (*x.shape[:-1], weight.size(0)), ordinary and (not learned or x.dim() == 2)
    ready = ready_chain(steps, x, protected, groups, shape, learned=learned) if fits else None
    if ready is None:
        x = x if entry is None else entry(x, protected, groups)
        return chain(nn.functional.linear(x, weight, bias), steps, protected, groups)
    given, first = ready.chain, None
    if entry is not None and scheme is not None:
        first = Ranged.of(scheme, entry.ends(x.numel()))
        given = given._replace(protected=protected if entry.training else None)
        if entry.grouped:
            entry.check_groups(groups, x.size(0))
            given = given._replace(groups=groups)
    if learned:
        return learned_linear(x, weight, bias, given, first)
    y, ends, range_ = quantize_linear(x, weight, bias, given, first)
    if entry is not None and scheme is not None:
        entry.take(scheme, range_)
    ready.take(ends)
    return y


def weights(values: Sequence[Tensor], quantizers: Sequence[FakeQuantize]) -> tuple[Tensor, ...]:
    """Quantizes several small tensors, each with its own quantizer."""
    schemes = [quantizer.scheme_for(value) for value, quantizer in zip(values, quantizers, strict=True)]
    used = [scheme for scheme in schemes if scheme is not None]
    usual = len(used) == len(values) and all(type(value) in (Tensor, nn.Parameter) for value in values)
    usual = usual and not any(quantizer.learned for quantizer in quantizers)
    usual = usual and not any(scheme.shared for scheme in used)  # what is no parameter as it is may differ by rank
    alike = len({(value.dtype, value.device) for value in values}) == 1 and values[0].dtype in LOOPED
    if not usual or not alike:
        return tuple(quantizer(value) for value, quantizer in zip(values, quantizers, strict=True))
    ranges = [end for value, quantizer in zip(values, quantizers, strict=True) for end in quantizer.ends(value.numel())]
    results, ends = quantize_parts(values, used, ranges)
    for place, (quantizer, scheme) in enumerate(zip(quantizers, used, strict=True)):
        quantizer.take(scheme, ends[2 * place : 2 * place + 2])
    return results


LOOPED = (torch.float32, torch.float64)
"""Types of weights that are quantized together."""


def batch_norm(
    x: Tensor,
    norm: nn.BatchNorm1d,
    steps: FusedChain | None = None,
    protected: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Runs a batch norm, and then the chain, if there is one; in training its running averages move as ever."""
    if steps is None:  # nothing is rounded: to the last bit
        return norm(x)
    alone = not isinstance(norm, nn.SyncBatchNorm)  # whose moments are those of all ranks
    usual = alone and norm.training and x.device.type == "cpu" and type(x) is Tensor and x.dim() == 2 and x.size(0) > 1
    one_type = norm.weight is None or norm.weight.dtype == x.dtype
    usual = usual and one_type and x.numel() >= LARGE
    later = steps if any(quantizer.learned for quantizer in steps.quantizers) else None
    ready = ready_chain(steps if later is None else FusedChain(), x, protected, groups) if usual else None
    if ready is None:
        return chain(norm(x), steps, protected, groups)
    y, ends, mean, var = quantize_batch_norm(x, norm.weight, norm.bias, norm.eps, ready.chain)
    ready.take(ends)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(var.to(norm.running_var.dtype) * (len(x) / (len(x) - 1)), momentum)
    return y if later is None else chain(y, later, protected, groups)


LARGE = 1 << 15
"""Values of which a batch norm or a product of our own is the faster one."""


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Runs ``torch.nn.functional.dropout``; ``inplace`` may be ignored, as no one else sees ``x``."""
    ordinary = x.device.type == "cpu" and x.is_floating_point() and x.is_contiguous()
    if not training or not ordinary or not 0 < p < 1:
        return nn.functional.dropout(x, p, training)
    return kernel_dropout(x, p)


def scale_rows(x: Tensor, factor: Tensor, dim: int = 0) -> Tensor:
    """Runs :func:`dqconvert.rewrite.norms.scale_rows`."""
    ordinary = x.device.type == "cpu" and type(x) is Tensor and x.dtype == factor.dtype and not factor.requires_grad
    if ordinary and dim == 0 and x.numel() >= LARGE:
        return kernel_scale_rows(x, factor)
    return x * factor.to(x.dtype).view(-1, *[1] * (x.dim() - 1 - dim))


__all__ = [
    "FusedChain",
    "batch_norm",
    "chain",
    "dropout",
    "linear",
    "ready_chain",
    "scale_rows",
    "weights",
]

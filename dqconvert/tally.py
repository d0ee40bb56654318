"""What quantizers make of the values that they are given: how many they clip, and which codes occur."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from dqconvert.calibrate import callee_of
from dqconvert.expect import expect_prepared
from dqconvert.kernels import along
from dqconvert.lower.replay import ShownRun, by_name
from dqconvert.prepared import PreparedModule
from dqconvert.quant import FakeQuantize
from dqconvert.trace.given import calls_of

_BINS, _BEYOND = 96, 0.25
"""How many bins the values of a quantizer are counted in, and how far beyond its grid they reach, as a share of it."""


class Tally:
    """Counts of the values that one quantizer was given, in units of its codes: every channel's or group's grid is one.

    Args:
        quantizer: The quantizer.

    Attributes:
        codes: int64 ``[levels]``, how often each code occurs, from ``quant_min`` on.
        bins: int64 ``[96]``, how many values lie in each equal part of ``span``; those beyond are in the outermost.
        span: The ends of the bins, in codes: the grid and a quarter of it on either side.
        clipped: How many values lie beyond the ends of the grid.
        values: How many there were; NaN and infinities do not count.
    """

    def __init__(self, quantizer: FakeQuantize) -> None:
        low, high = quantizer.quant_min, quantizer.quant_max
        self.quantizer = quantizer
        self.codes = torch.zeros(high - low + 1, dtype=torch.int64)
        self.bins = torch.zeros(_BINS, dtype=torch.int64)
        beyond = _BEYOND * (high - low)
        self.span = (low - beyond, high + beyond)
        self.clipped = 0
        self.values = 0

    @property
    def share(self) -> float:
        """The share of values that is clipped, 0 to 1."""
        return self.clipped / max(self.values, 1)

    @torch.no_grad()
    def add(self, x: Tensor, groups: Tensor | None = None) -> None:
        """Counts some values, float; ``groups``: the group of in-degrees of each row, where each has a grid."""
        quantizer = self.quantizer
        scale, zero = quantizer.scale.to(x.device), quantizer.zero_point.to(x.device)
        dim = quantizer.channel_dim
        if groups is not None:
            scale, zero, dim = scale[groups.long()], zero[groups.long()], quantizer.row_dim
        if dim is not None:
            scale, zero = along(scale, x, dim), along(zero, x, dim)
        x = x.clamp(min=0) if quantizer.from_zero else x  # only a ReLU reads it: what it cuts is no error
        at = (x.float() / scale + zero).flatten()
        at = at[at.isfinite()]
        low, high = quantizer.quant_min, quantizer.quant_max
        codes = at.round()
        self.clipped += int(((codes < low) | (codes > high)).sum())
        self.values += at.numel()
        self.codes += (codes.clamp(low, high) - low).long().bincount(minlength=high - low + 1).cpu()
        place = (at - self.span[0]) * (_BINS / (self.span[1] - self.span[0]))
        self.bins += place.clamp(0, _BINS - 1).long().bincount(minlength=_BINS).cpu()


def tallies(module: PreparedModule, data: Any, batches: int | None = None) -> dict[str, Tally]:
    """Returns a tally of each quantizer that data reaches in evaluation, by its path.

    Args:
        module: A prepared module with ranges; it is not changed.
        data: As :func:`dqconvert.calibrate` takes it.
        batches: How many calls to look at at most; ``None``: all.

    Raises:
        ObserverError: If a quantizer that is reached has no range yet.

    Example:
        >>> import dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4), "int8-ptq")
        >>> data = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> dqconvert.calibrate(module, data)
        >>> found = tallies(module, data)
        >>> found["quant.message"].values, found["lin_r.quant.weight"].share
        (24, 0.0)
    """
    expect_prepared(module, "tallies")
    found: dict[str, Tally] = {}
    run = ShownRun(module, _adding(found))
    for number, call in enumerate(calls_of(callee_of(module), data)):
        if batches is not None and number >= batches:
            break
        run.start(by_name(call))
    return found


def tallies_of(module: PreparedModule, call: inspect.BoundArguments) -> dict[str, Tally]:
    """Returns the same, of one call of the module."""
    found: dict[str, Tally] = {}
    ShownRun(module, _adding(found)).start(by_name(call))
    return found


def _adding(found: dict[str, Tally]) -> Any:
    def add(path: str, quantizer: FakeQuantize, x: Tensor, groups: Tensor | None) -> None:
        if quantizer.is_observed() and quantizer.fake_quant_enabled:
            found.setdefault(path, Tally(quantizer)).add(x, groups)

    return add

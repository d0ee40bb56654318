"""The grid of a quantizer, as its range says, which was observed and may be learned; and the state that holds it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dqconvert.errors import ConfigError
from dqconvert.kernels import nearest_seen, qparams
from dqconvert.kernels.derived import Derived
from dqconvert.qconfig import QSpec
from dqconvert.quant.learned import kept, learned_ends
from dqconvert.quant.observers import is_empty, observer_for


class ObservedGrid(nn.Module):
    """The base of :class:`dqconvert.quant.FakeQuantize`, whose docstring says what is here: range, scale, zero point.

    Args:
        spec: How to quantize.
        name: Of the quantizer, in messages.
        signed: Whether codes reach below zero.
        channels: The number of channels; required with ``spec.granularity="channel"``, else ignored.

    Raises:
        ConfigError: If ``channels`` is missing.
    """

    min_val: Tensor
    max_val: Tensor
    log_scale: nn.Parameter | None
    offset: nn.Parameter | None
    _held: tuple[Tensor, Tensor] | None = None

    def __init__(self, spec: QSpec, name: str, signed: bool, channels: int | None) -> None:
        super().__init__()
        shape: tuple[int, ...] = ()
        if spec.granularity == "channel":
            if channels is None:
                raise ConfigError(f"quantizer {name!r}: granularity='channel' needs the number of channels")
            shape = (channels,)
        if spec.groups_value is not None:
            shape = (spec.groups_value,)
        self.spec = spec
        self.name = name
        self.signed = signed
        self.grouped = spec.granularity == "degree"
        self.from_zero = spec.signed == "graph" and not signed
        self.quant_min, self.quant_max = spec.quant_range(signed)
        self.observer = observer_for(replace(spec, symmetric=False) if self.from_zero else spec)
        self.register_buffer("min_val", torch.full(shape, torch.inf, dtype=torch.float32))
        self.register_buffer("max_val", torch.full(shape, -torch.inf, dtype=torch.float32))
        learned = spec.range == "learned"
        self.register_parameter("log_scale", nn.Parameter(torch.zeros(shape)) if learned else None)
        shifted = learned and not (spec.symmetric or self.from_zero)
        self.register_parameter("offset", nn.Parameter(torch.zeros(shape)) if shifted else None)
        # Whether the range is known to hold something. The buffers are the truth; this spares looking at
        # them, which would wait for an accelerator, in every call.
        self._known_observed = False

    @property
    def scale(self) -> Tensor:
        return self._qparams()[0]

    @property
    def zero_point(self) -> Tensor:
        return self._qparams()[1]

    def _qparams(self) -> tuple[Tensor, Tensor]:
        # What is learned are the ends of an affine grid.
        symmetric = self.observer.spec.symmetric and self.log_scale is None
        return qparams(*self.range, self.quant_min, self.quant_max, symmetric)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The range in force: the one observed, of the nearest group if need be, or what training has made of it."""
        with torch.no_grad():
            return self._start if self.log_scale is None else self._ends(1)

    @property
    def _seen(self) -> tuple[Tensor, Tensor]:
        """The range observed; that of a group which saw nothing is that of the nearest which did."""
        return kept(_nearest_seen, self._apart) if self.grouped else (self.min_val, self.max_val)

    @property
    def _start(self) -> tuple[Tensor, Tensor]:
        if self.grouped or not (self.from_zero or self.log_scale is not None):
            low, high = self._seen
        else:
            low, high = self._apart
        return kept(_above_zero, (low,)) if self.from_zero else low, high

    @property
    def _apart(self) -> tuple[Tensor, Tensor]:
        """The range observed, as tensors that nobody else can write into: what is kept is derived from them."""
        ends, held = (self.min_val, self.max_val), self._held
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0
            or self.min_val.device.type != "cpu"
        ):
            return ends  # whose values are not to be waited for; what torch writes is noticed
        if held is None or not torch.equal(held[0], ends[0]) or not torch.equal(held[1], ends[1]):
            with torch.inference_mode(False):
                held = self._held = ends[0].clone(), ends[1].clone()
        return held

    @property
    def learned(self) -> bool:
        """True if the range is learned, and somebody takes gradients."""
        return self.spec.range == "learned" and torch.is_grad_enabled()

    def _ends(self, number: int) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale if self.spec.range == "learned" else None
        if log_scale is None or not self.is_observed():
            return self._seen
        return learned_ends(
            self._start,
            log_scale,
            self.offset,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            symmetric=self.observer.spec.symmetric,
            number=number // max(self.min_val.numel(), 1),
        )

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Sets the range, in place: the buffers may be shared between processes, or captured by compiled code."""
        self.min_val.copy_(low)
        self.max_val.copy_(high)

    @torch.no_grad()
    def _begin_again(self) -> None:
        """Forgets what was learned: the step is that of the range observed."""
        for learned in (self.log_scale, self.offset):
            if learned is not None:
                learned.zero_()

    def is_observed(self) -> bool:
        """True if every channel, or any group of in-degrees, has observed a value.

        Reads the buffers, which waits for an accelerator, only until the answer was once yes. ``eval()`` and
        ``load_state_dict`` look ahead, so that evaluating a trained or loaded quantizer waits for nothing.
        """
        if not self._known_observed and not self.min_val.is_meta:
            empty = is_empty((self.min_val, self.max_val))
            self._known_observed = not bool(empty.all() if self.grouped else empty.any())
        return self._known_observed

    def reset(self) -> None:
        """Forgets the range, as if nothing had been observed."""
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)
        self._begin_again()
        self._known_observed = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not mode:
            self.is_observed()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `fn` moves, shares or casts. A range is not cast: half precision would move the grid it was trained with.
        before = {"min_val": self.min_val, "max_val": self.max_val}
        learned = {name: old.data for name, old in self._parameters.items() if old is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != torch.float32:
                setattr(self, name, old.to(new.device))
        for name, old in learned.items():
            parameter = self.get_parameter(name)
            if parameter.dtype != torch.float32:
                parameter.data = old.to(parameter.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # With assign=True the buffers are the checkpoint's own tensors, in whatever type it has.
        self.min_val, self.max_val = self.min_val.float(), self.max_val.float()
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.float()
        self._known_observed = False
        self.is_observed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("log_scale", "offset"):  # pickled before there were any
            self._parameters.setdefault(name, None)
        self.__dict__.setdefault("grouped", self.spec.granularity == "degree")

    def _range_text(self) -> str:
        if self.min_val.is_meta or not self.is_observed():
            return "never observed"
        if self.min_val.dim() > 0:
            return f"{self.min_val.numel()} {'groups' if self.grouped else 'channels'}"
        lo, hi = self.range
        return f"[{lo.item():.6g}, {hi.item():.6g}]"


_nearest_seen, _above_zero = Derived(nearest_seen), Derived(functools.partial(torch.clamp, min=0))
"""Kept, as it takes longer than to round some rows."""

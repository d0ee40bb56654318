"""A training step that fails leaves no trace: ranges, running averages and random numbers are as they were."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dqconvert.quant import FakeQuantize

_RANGES = ("min_val", "max_val")
_AVERAGES = ("running_mean", "running_var", "num_batches_tracked")


class _Keepers(tuple[tuple[nn.Module, tuple[str, ...]], ...]):
    """The modules of a model that change in a forward, and what of them."""


_known: weakref.WeakKeyDictionary[nn.Module, _Keepers] = weakref.WeakKeyDictionary()


def _keepers(module: nn.Module) -> _Keepers:
    found = _known.get(module)
    if found is None:
        quantizers = [(m, _RANGES) for m in module.modules() if isinstance(m, FakeQuantize)]
        norms = [(m, _AVERAGES) for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        found = _known[module] = _Keepers((*quantizers, *norms))
    return found


def forget_keepers(module: nn.Module) -> None:
    """Has the modules looked for again, as when a model was changed."""
    _known.pop(module, None)


class Before:
    """How a model was before a forward.

    Args:
        module: The model.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> before = Before(norm)
        >>> _ = norm(torch.ones(3, 2)), before.restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, module: nn.Module) -> None:
        self._held = [b for m, names in _keepers(module) for name in names if (b := m._buffers.get(name)) is not None]
        self._values = _copies(self._held)
        self._random = torch.get_rng_state()
        self._device_random = [(d, torch.cuda.get_rng_state(d)) for d in _devices(self._held)]

    def restore(self) -> None:
        """Makes it so again."""
        with torch.no_grad():
            for held, value in zip(self._held, self._values, strict=True):
                held.copy_(value)
        torch.set_rng_state(self._random)
        for device, state in self._device_random:
            torch.cuda.set_rng_state(state, device)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies, of many small tensors of one type in one go."""
    small = [t for t in tensors if t.dim() == 0 and t.dtype == torch.float32 and t.device == tensors[0].device]
    with torch.no_grad():
        together = iter(torch.stack(small).unbind() if small else ())
        alike = set(map(id, small))
        return [next(together) if id(t) in alike else t.clone() for t in tensors]


def _devices(tensors: list[Tensor]) -> list[Any]:
    """The GPUs that random numbers may be drawn on; none while a graph of one is captured, which must not read them."""
    found = list({t.device for t in tensors if t.device.type == "cuda"})
    return [] if found and torch.cuda.is_current_stream_capturing() else found


__all__ = ["Before", "forget_keepers"]

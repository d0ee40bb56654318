"""A call that fails leaves no trace: ranges, running averages and random numbers are as they were."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dqconvert.quant import FakeQuantize

_SEEN, _LEARNED = ("min_val", "max_val"), ("log_scale", "offset")
_AVERAGES = ("running_mean", "running_var", "num_batches_tracked")


class _Keepers(NamedTuple):
    """The modules of a model that change in a forward."""

    quantizers: tuple[FakeQuantize, ...]
    norms: tuple[nn.Module, ...]


_known: weakref.WeakKeyDictionary[nn.Module, _Keepers] = weakref.WeakKeyDictionary()


def _keepers(module: nn.Module) -> _Keepers:
    found = _known.get(module)
    if found is None:
        parts = list(module.modules())
        quantizers = tuple(part for part in parts if isinstance(part, FakeQuantize))
        found = _known[module] = _Keepers(quantizers, tuple(p for p in parts if "running_mean" in p._buffers))
    return found


def forget_keepers(module: nn.Module) -> None:
    """Forgets the modules that change in a forward, as when a model was changed; they are looked for again."""
    _known.pop(module, None)


class Before:
    """The state of a model before a call, to go back to if it fails.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> before = Before(norm)
        >>> _ = norm(torch.ones(3, 2)), before.restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._quantizers, norms = _keepers(module)
        self._observed = [quantizer._known_observed for quantizer in self._quantizers]
        changing = [quantizer for quantizer in self._quantizers if quantizer.training or quantizer.calibrating]
        tables: list[tuple[nn.Module, dict[str, Any], tuple[str, ...]]] = [(q, q._buffers, _SEEN) for q in changing]
        tables += [(q, q._parameters, _LEARNED) for q in changing]
        tables += [(norm, norm._buffers, _AVERAGES) for norm in norms if norm.training]
        self._held = [
            (m, n, t) for m, table, names in tables for n in names if n in table and (t := table[n]) is not None
        ]
        self._values = _copies([buffer for *_, buffer in self._held])
        self._random = torch.get_rng_state()
        self._device_random = [(d, torch.cuda.get_rng_state(d)) for d in _devices([b for *_, b in self._held])]

    @classmethod
    def of(cls, module: nn.Module, part: nn.Module) -> Before | None:
        """Returns the state of a model, if a call of a part of it may change it; else ``None``."""
        changes = module.training or part.training or any(q.calibrating for q in _keepers(module).quantizers)
        return cls(module) if changes else None

    def restore(self) -> None:
        """Restores the state; quantizers that were added since are reset."""
        with torch.no_grad():
            for (module, name, held), value in zip(self._held, self._values, strict=True):
                held.copy_(value)
                if name in module._buffers:
                    module._buffers[name] = held  # some norms put others in their place
            for quantizer in set(_keepers(self._module).quantizers).difference(self._quantizers):
                quantizer.reset()
        for quantizer, observed in zip(self._quantizers, self._observed, strict=True):
            quantizer._known_observed = observed
        torch.set_rng_state(self._random)
        for device, state in self._device_random:
            torch.cuda.set_rng_state(state, device)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Returns copies; many small tensors of one dtype are copied at once."""
    single, device = torch.float32, tensors[0].device if tensors else None
    small = [i for i, t in enumerate(tensors) if not t.shape and t.dtype == single and t.device == device]
    with torch.no_grad():
        together = torch.stack([tensors[i] for i in small]).unbind() if small else ()
        copies = dict(zip(small, together, strict=True))
        return [copies[i] if i in copies else t.clone() for i, t in enumerate(tensors)]


def _devices(tensors: list[Tensor]) -> list[Any]:
    """Returns the GPUs that may draw random numbers; none while a CUDA graph is captured, which must not read them."""
    found = list({t.device for t in tensors if t.device.type == "cuda"})
    return [] if found and torch.cuda.is_current_stream_capturing() else found


__all__ = ["Before", "forget_keepers"]

"""Looking at the values that quantizers are given, and keeping a small part of them for advice.

Calibration and evaluation show each quantizer's values to :func:`looking`; ranges are the quantizer's own, whenever it
is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dqconvert.quant import FakeQuantize

_ROWS, _NUMBERS, _CALLS = 256, 8192, 4
"""The most rows and numbers that are kept of one call, and of how many calls."""


class Sample(NamedTuple):
    """A part of the values that a quantizer was given.

    Attributes:
        values: ``[rows, n]``.
        grid: int64 ``[rows]``, the group or the channel of each row; ``None``: there is one grid.
    """

    values: Tensor
    grid: Tensor | None


@dataclass
class _Seen:
    """The samples of a module, and the state of its parameters when they were taken."""

    versions: int
    samples: dict[str, list[Sample]] = field(default_factory=dict)


_SEEN: Any = WeakIdKeyDictionary()
"""By module, what was last seen of it: neither saved nor copied, and gone with the module."""


@contextmanager
def watching(quantizers: Iterable[tuple[str, FakeQuantize]], *show: Callable[..., None]) -> Iterator[None]:
    """Calls ``show(path, quantizer, x, groups)`` at each call of a quantizer, as long as they run one by one."""
    watched = list(quantizers)
    for path, quantizer in watched:
        # Not a hook: those of the user's have a prepared module generate its code anew.
        vars(quantizer)["forward"] = _shown(path, quantizer, show)
    try:
        yield
    finally:
        for _, quantizer in watched:
            del vars(quantizer)["forward"]


def _shown(path: str, quantizer: FakeQuantize, show: Sequence[Callable[..., None]]) -> Callable[..., Tensor]:
    forward = quantizer.forward

    def run(x: Tensor, protected: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
        for one in show:
            one(path, quantizer, x, groups)
        return forward(x, protected, groups)

    return run


def looking(module: Any) -> Callable[..., None]:
    """Returns what :func:`watching` is to show values to, so that there is advice on them; forgets earlier ones."""
    seen = _SEEN[module] = _Seen(_versions(module))

    def look(path: str, quantizer: FakeQuantize, x: Tensor, groups: Tensor | None) -> None:
        kept = seen.samples.setdefault(path, [])
        if len(kept) < _CALLS and x.dim() > 0 and x.numel() > 0 and x.layout is torch.strided:
            kept.append(_sample(quantizer, x.detach(), groups))

    return look


def enough(module: Any) -> bool:
    """True if as many calls of a module were seen as are kept."""
    samples = _SEEN[module].samples.values() if module in _SEEN else ()
    return bool(samples) and all(len(kept) >= _CALLS for kept in samples)


def seen_as(module: Any, other: Any) -> None:
    """Takes what was seen of a copy of a module as seen of the module."""
    _SEEN[module] = replace(_SEEN[other], versions=_versions(module))


def samples_of(module: Any) -> tuple[Mapping[str, Sequence[Sample]], bool]:
    """Returns the samples of a module by quantizer, and whether its parameters changed since: then there are none."""
    seen = _SEEN.get(module)
    stale = seen is not None and seen.versions != _versions(module)
    return ({} if seen is None or stale else seen.samples), stale


def _versions(module: Any) -> int:
    return sum(parameter._version for parameter in module.parameters() if not parameter.is_inference())


def _sample(quantizer: FakeQuantize, x: Tensor, groups: Tensor | None) -> Sample:
    """Returns some rows, evenly spaced, and some of the numbers in each."""
    dim = quantizer.row_dim if quantizer.channel_dim is None else quantizer.channel_dim
    rows = _spaced(x.size(dim), _ROWS, x)
    grid = rows if quantizer.channel_dim is not None else None if groups is None else groups.long()[rows]
    flat = x.index_select(dim, rows).movedim(dim, 0).flatten(1) if x.dim() > 1 else x[rows, None]
    columns = _spaced(flat.size(1), max(1, _NUMBERS // max(len(rows), 1)), x)
    return Sample(flat.index_select(1, columns), grid)


def _spaced(size: int, most: int, like: Tensor) -> Tensor:
    """Returns indices below ``size``, evenly spaced, so many at most."""
    number = min(size, most)
    return torch.arange(number, device=like.device) * size // max(number, 1)

"""Weights that layers compute from others whenever they are read (``torch.nn.utils.parametrize``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def computed_names(root: nn.Module) -> set[str]:
    """Returns the names of weights that are computed, and not stored."""
    return {
        f"{path}.{name}" if path else name
        for path, module in nn.Module.named_modules(root, remove_duplicate=False)
        for name in _parametrizations(module)
    }


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    """Returns a module's parametrizations by the name of the weight; never through a user's ``__getattr__``."""
    found = module._modules.get("parametrizations")
    return {} if not isinstance(found, nn.ModuleDict) else dict(found.items())


@contextmanager
def at_rest(root: nn.Module) -> Iterator[None]:
    """Keeps the reading of a computed weight from changing anything, inside.

    A spectral norm goes a step further with its estimate whenever its weight is read in training mode: right in a
    forward, and wrong where a weight is only looked at.

    Example:
        >>> import torch
        >>> from torch.nn.utils.parametrizations import spectral_norm
        >>> layer = spectral_norm(nn.Linear(4, 4))
        >>> with at_rest(layer):
        ...     torch.equal(layer.weight, layer.weight)
        True
    """
    woken = [
        part
        for module in nn.Module.modules(root)
        for parametrization in _parametrizations(module).values()
        for part in parametrization.modules()
        if part.training
    ]
    try:
        for part in woken:
            part.training = False
        yield
    finally:
        for part in woken:
            part.training = True

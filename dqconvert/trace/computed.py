"""Weights that layers compute from others whenever they are read (``torch.nn.utils.parametrize``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def computed_names(root: nn.Module) -> set[str]:
    """The names of weights that are computed, and not stored.

    Example:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> computed_names(nn.Sequential(weight_norm(nn.Linear(2, 2))))
        {'0.weight'}
    """
    return {
        f"{path}.{name}" if path else str(name)
        for path, module in nn.Module.named_modules(root, remove_duplicate=False)
        if is_parametrized(module)
        for name in module.parametrizations
    }


@contextmanager
def at_rest(root: nn.Module) -> Iterator[None]:
    """While this lasts, reading a computed weight changes nothing.

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
        if is_parametrized(module)
        for part in module.parametrizations.modules()  # type: ignore[union-attr]
        if part.training
    ]
    try:
        for part in woken:
            part.training = False
        yield
    finally:
        for part in woken:
            part.training = True

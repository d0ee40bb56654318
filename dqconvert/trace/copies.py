"""Copies of the user's model: one to work on, and ones to run once."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from dqconvert.errors import DQConvertError, TraceError
from dqconvert.trace.leaves import message_passing_layers

Model = TypeVar("Model", bound=nn.Module)
Value = TypeVar("Value")


def working_copy(model: nn.Module, *, caller: str = "prepare()", error: type[DQConvertError] = TraceError) -> nn.Module:
    """A deep copy without gradients, and without what layers with ``cached=True`` computed for an earlier graph.

    Args:
        model: Any module; stays as it is.
        caller: What works on the copy, as the message calls it.
        error: What to raise.

    Raises:
        DQConvertError: ``error``, if the model cannot be copied.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> working_copy(layer).weight.grad is None, layer.weight.grad is None
        (True, False)
    """
    try:
        root = deep_copy(model)
    except Exception as reason:  # whatever the attributes of a user's model raise
        raise error(
            f"{type(model).__name__} cannot be deep-copied ({reason}): {caller} works on a copy. Clear tensors with "
            f"gradient history that the model keeps as attributes."
        ) from reason
    for parameter in nn.Module.parameters(root):  # a model may have a method of that name for something else
        parameter.grad = None
    _clear_caches(root)
    return root


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy to run once. What layers know of their own signatures, half of the work, is shared."""
    shared = (layer.inspector for layer in message_passing_layers(model) if hasattr(layer, "inspector"))
    return deepcopy(model, clones(model, {id(inspector): inspector for inspector in shared}))


def deep_copy(module: Model) -> Model:
    """A deep copy, of what torch cannot deep-copy, too: see :func:`clones`."""
    return deepcopy(module, clones(module, {}))


def deepcopy(value: Value, memo: dict[Any, Any] | None = None) -> Value:
    """Returns ``copy.deepcopy(value, memo)``, with code of its own for each copy of a PyG ``Sequential``.

    Every copy of a ``Sequential`` generates its forward anew, under a name with a random number from :mod:`random`, and
    takes the code that already has that name. Copies made under a fixed seed, or before the generator's state is put
    back, would so get or give away another model's forward. Here the number comes from the system.
    """
    with _unrepeated_names():
        return copy.deepcopy(value, memo)


@contextmanager
def _unrepeated_names() -> Iterator[None]:
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def clones(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """The memo of a deep copy, with copies of what torch cannot deep-copy.

    Compressed sparse matrices; weights that the hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` compute
    before each forward; and what else a forward left among the attributes that has a gradient history: a loss, or
    attention coefficients, to be looked at.

    Example:
        >>> import torch
        >>> model = nn.Module()
        >>> model.register_buffer("adj", torch.eye(2).to_sparse_csr())
        >>> copy.deepcopy(model, clones(model, {})).adj.layout
        torch.sparse_csr
    """
    attributes = [value for value in vars(model).values() if isinstance(value, nn.Module)]
    for module in (part for tree in (model, *attributes) for part in nn.Module.modules(tree)):
        for value in module._buffers.values():
            if value is not None and value.layout not in (torch.strided, torch.sparse_coo) and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
        kept = (value for value in vars(module).values() if isinstance(value, Tensor | list | tuple | dict))
        for value in (leaf for one in kept for leaf in tree_leaves(one)):
            if isinstance(value, Tensor) and value.grad_fn is not None and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
        for hook in module._forward_pre_hooks.values():
            computed = vars(module).get(hook.name) if isinstance(hook, WeightNorm | SpectralNorm) else None
            if isinstance(computed, Tensor):
                memo[id(computed)] = computed.detach().clone()
    return memo


def set_mode(model: Model, training: bool) -> Model:
    """Puts a model in a mode as its own ``train`` and ``eval`` do it, whatever those return, and returns the model.

    Example:
        >>> class Own(nn.Linear):
        ...     def train(self, mode: bool = True) -> None:
        ...         super().train(mode)
        >>> set_mode(Own(2, 2), False).training
        False
    """
    if training:
        model.train()
    else:
        model.eval()
    return model


def _clear_caches(model: nn.Module) -> None:
    for module in nn.Module.modules(model):
        for name, value in list(vars(module).items()):
            if name.startswith("_cached") and value is not None and not callable(value):
                setattr(module, name, None)

"""A checkpoint's tensors into a float model, whatever wrapped the model when they were saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dqconvert.checkpoint.fit import check_fit, shapes_of
from dqconvert.errors import CheckpointError
from dqconvert.weights.names import fitted
from dqconvert.words import listed


def fill(model: nn.Module, state: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Loads a checkpoint's tensors into a model, in place.

    Names may be those of a wrapped model, or of one with wrapped parts, see :func:`dqconvert.weights.names.fitted`.

    Args:
        state: The tensors by name; and what modules say of themselves (``get_extra_state``).
        path: The file, as messages call it.

    Returns:
        The prefix that was taken off the names; ``""`` if none was.

    Raises:
        CheckpointError: If the tensors are not the model's, or hold values that are not finite. The model is then as
            it was.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> fill(model, {"module.weight": torch.zeros(1, 2), "module.bias": torch.ones(1)}, "model.pt")
        'module.'
        >>> model(torch.ones(2)).item()
        1.0
    """
    expected = shapes_of(model.state_dict(keep_vars=True))
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    prefix, tensors = fitted({name: value for name, value in state.items() if name not in extra}, model, expected)
    check_fit(model, expected, shapes_of(tensors), os.fspath(path))
    _check_types(model, tensors, path)
    check_finite(model, tensors, path)
    own = {name.removeprefix(prefix): value for name, value in extra.items()}
    known = {name for name in model.state_dict() if name.endswith("_extra_state")}
    try:
        model.load_state_dict({**tensors, **{name: own[name] for name in own if name in known}}, strict=False)
    except Exception as error:  # what a module's own set_extra_state raises
        raise CheckpointError(f"{path}: {type(model).__name__} does not take its state: {error}") from error
    return prefix


def _check_types(model: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and not is_lazy(value):
            floating = tensors[name].is_floating_point()
            if floating != value.is_floating_point():
                kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (tensors[name], value)]
                raise CheckpointError(f"{path}: {name!r} holds {kinds[0]} in the file and {kinds[1]} in the model.")


def check_finite(model: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raises unless all weights are finite; buffers may hold infinities (masks), but no NaN.

    Raises:
        CheckpointError: It names the tensors.
    """
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wrong = []
    for name, value in tensors.items():
        if not value.is_floating_point() and not value.is_complex():
            continue
        if bool(value.isnan().any()):
            wrong.append(f"{name!r} (NaN)")
        elif name in weights and not bool(value.isfinite().all()):
            wrong.append(f"{name!r} (infinite)")
    if wrong:
        raise CheckpointError(
            f"{path}: has values that are not finite in {listed(wrong)}: the training diverged; take an "
            f"earlier checkpoint."
        )

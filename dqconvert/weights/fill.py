"""A checkpoint's tensors into a float model, whatever wrapped the model when they were saved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dqconvert.checkpoint.fit import check_fit, shapes_of
from dqconvert.errors import CheckpointError

_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before the names."""


def fill(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> str:
    """Loads a checkpoint's tensors into a model, in place.

    Names may have the prefixes of DistributedDataParallel and torch.compile, or any one prefix that is common to all.

    Args:
        model: A float model.
        state: The tensors by name.
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
    prefix, tensors = _without_prefix(state, expected)
    check_fit(model, expected, shapes_of(tensors), os.fspath(path))
    _check_types(model, tensors, path)
    check_finite(model, tensors, path)
    model.load_state_dict(tensors)
    return prefix


def _without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, object]) -> tuple[str, Mapping[str, Tensor]]:
    """The reading of the names that fits the model, or else the one that fits best."""
    best: tuple[int, str, Mapping[str, Tensor]] = (-1, "", state)
    for prefix in _prefixes(list(state)):
        tensors = {name.removeprefix(prefix): value for name, value in state.items()}
        common = len(tensors.keys() & expected.keys())
        if common > best[0]:
            best = common, prefix, tensors
        if tensors.keys() == expected.keys():
            break
    return best[1:]


def _prefixes(names: list[str]) -> Iterator[str]:
    """Nothing, and what all names begin with, part by part; wrappers first."""
    yield ""
    prefix = ""
    while names and all(name.startswith(prefix) and "." in name[len(prefix) :] for name in names):
        first = next((w for w in _WRAPPERS if names[0].startswith(prefix + w)), None)
        prefix += first or names[0][len(prefix) :].partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix


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
        rest = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise CheckpointError(
            f"{path}: has values that are not finite in {', '.join(wrong[:10])}{rest}: the training diverged; take an "
            f"earlier checkpoint."
        )

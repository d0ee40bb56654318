"""A float checkpoint in any form that users have them, as names and tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dqconvert.checkpoint.container import is_prepared
from dqconvert.errors import CheckpointError, CheckpointKeyError
from dqconvert.weights.archive import load_archive, read_start
from dqconvert.words import kind_of

_KEYS = ("state_dict", "model_state_dict", "model")
"""Where training checkpoints keep the weights; Lightning's is the first."""


@dataclass(frozen=True)
class Weights:
    """What a float checkpoint holds.

    Attributes:
        state: Tensors by name, as in the file.
        module: The module itself, where the file holds a pickled one.
        found: Where in the file they were, for people: ``"state_dict"``, or ``""`` at its top.
    """

    state: dict[str, Tensor]
    module: nn.Module | None = None
    found: str = ""


def read_weights(path: str | os.PathLike[str], *, key: str | None = None, trust_pickle: bool = False) -> Weights:
    """Reads a float checkpoint.

    Args:
        path: A ``state_dict`` saved by ``torch.save`` or as safetensors; a training checkpoint that holds one under
            ``state_dict``, ``model_state_dict``, ``model`` or ``key``; with trust, a pickled module.
        key: Where in the file to look, with dots for nested dicts: ``"ema.model"``.
        trust_pickle: Whether to run the code that the file names.

    Raises:
        CheckpointError: If the file is missing, damaged, or something else, or holds no weights.

    Example:
        >>> torch.save({"epoch": 3, "model_state_dict": nn.Linear(2, 1).state_dict()}, "/tmp/linear.pt")
        >>> weights = read_weights("/tmp/linear.pt")
        >>> list(weights.state), weights.found
        (['weight', 'bias'], 'model_state_dict')
    """
    start = read_start(path)
    if is_prepared(path):
        raise CheckpointError(
            f"{path}: is a prepared file already: load it with dqconvert.load(path, model=...), or look at it with "
            f"`dqconvert inspect`."
        )
    if os.fspath(path).endswith(".safetensors") or start[8:9] == b"{":
        return _select(_read_safetensors(path), key, path)
    return _select(load_archive(path, trust=trust_pickle), key, path)


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # the library raises errors of many kinds for damaged files
        raise CheckpointError(
            f"{path}: is truncated or damaged, or no safetensors file ({type(error).__name__}: {error}). Take another "
            f"copy of it."
        ) from error


def _select(content: Any, key: str | None, path: str | os.PathLike[str]) -> Weights:
    """Finds the weights in what a file holds."""
    if key is not None:
        for part in key.split("."):
            content = _step(content, part, key, path)
        return _weights(content, key, path)
    if isinstance(content, Mapping) and not _is_state(content):
        for name in _KEYS:
            if isinstance(content.get(name), Mapping | nn.Module):
                return _weights(content[name], name, path)
    return _weights(content, "", path)


def _step(content: Any, part: str, key: str, path: str | os.PathLike[str]) -> Any:
    if not isinstance(content, Mapping) or part not in content:
        there = _names(content) if isinstance(content, Mapping) else f"{kind_of(content)}"
        raise CheckpointKeyError(f"{path}: has no {part!r} of --key {key}; there is: {there}.")
    return content[part]


def _weights(content: Any, found: str, path: str | os.PathLike[str]) -> Weights:
    if isinstance(content, nn.Module):
        module = _unwrap(content)
        return Weights(_tensors(module.state_dict(), path), module, found)
    if isinstance(content, Mapping) and _is_state(content):
        return Weights(_tensors(content, path), found=found)
    where = f"under {found!r}" if found else "at its top"
    if isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: has no weights {where}, where there is: {_names(content)}. Name the place with --key."
        )
    raise CheckpointError(f"{path}: has {kind_of(content)} {where}, not the weights of a model.")


def _is_state(content: Mapping[Any, Any]) -> bool:
    """Whether a dict is a ``state_dict``: names, and tensors but for what a layer keeps beside."""
    named = [value for name, value in content.items() if isinstance(name, str) and not name.endswith("_extra_state")]
    return bool(named) and len(named) >= len(content) // 2 and all(isinstance(value, Tensor) for value in named)


def _tensors(state: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    found = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in found.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            kind = "meta" if value.is_meta else str(value.dtype if value.is_quantized else value.layout)[6:]
            raise CheckpointError(f"{path}: {name!r} is a {kind} tensor, not plain numbers.")
    return found


def _unwrap(module: nn.Module) -> nn.Module:
    """The user's module under DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _names(content: Mapping[Any, Any]) -> str:
    names = [repr(name) for name in content]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "nothing"

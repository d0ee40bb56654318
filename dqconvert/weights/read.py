"""A float checkpoint in any form that users have them, as names and tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dqconvert.checkpoint.container import is_prepared
from dqconvert.checkpoint.limits import read_json
from dqconvert.errors import CheckpointError, CheckpointKeyError
from dqconvert.files import open_file
from dqconvert.weights.archive import load_archive, read_start
from dqconvert.words import kind_of, listed

_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "model_state")
"""Keys of the weights in training checkpoints; Lightning's is the first."""


@dataclass(frozen=True)
class Weights:
    """The content of a float checkpoint.

    Attributes:
        state: Tensors by name, as in the file.
        module: The module itself, where the file holds a pickled one.
        found: Where in the file they were, for people: ``"state_dict"``, or ``""`` at its top.
        others: Where else there are tensors of the same names and shapes: of an average, say.
    """

    state: dict[str, Any]
    module: nn.Module | None = None
    found: str = ""
    others: tuple[str, ...] = ()


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
    if os.fspath(path).endswith(".index.json"):
        return _select(_read_shards(path), key, path)
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


def _read_shards(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the tensors of several files beside an index that says which tensor is where."""
    with open_file(path) as file:
        text = file.read()
    try:
        places = read_json(text, len(text))["weight_map"]
        files = sorted({str(places[name]) for name in places})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is no index of weights in several files: it has no weight_map.") from error
    found: dict[str, Tensor] = {}
    for name in files:
        if os.path.basename(name) != name or not name:
            raise CheckpointError(f"{path}: names the file {name!r}, which is not beside it.")
        found |= read_weights(os.path.join(os.path.dirname(os.fspath(path)), name)).state
    missing = [name for name in places if name not in found]
    if missing:
        raise CheckpointError(f"{path}: its files lack {listed(map(repr, missing))}.")
    return {name: found[name] for name in places}


def _select(content: Any, key: str | None, path: str | os.PathLike[str]) -> Weights:
    """Finds the weights in what a file holds."""
    if key is not None:
        for part in key.split("."):
            content = _step(content, part, key, path)
        return _weights(content, key, path)
    if isinstance(content, Mapping) and not _is_state(content):
        states = dict(_states(content))
        first = next((name for name in _KEYS if isinstance(content.get(name), Mapping | nn.Module)), None)
        if first is None and len(states) == 1:
            first = next(iter(states))
        if first is not None and (first in states or first in content):
            weights = _weights(states.get(first, content.get(first)), first, path)
            return replace(
                weights, others=tuple(name for name in states if name != first and _same(states[name], weights))
            )
        if states:
            keys = ", ".join(f"--key {name}" for name in states)
            raise CheckpointError(f"{path}: holds several sets of weights: choose one, with {keys}.")
    return _weights(content, "", path)


def _states(content: Mapping[Any, Any], before: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Returns every dict of weights in a training checkpoint by its key, without the state of optimizers."""
    for name, value in content.items():
        if isinstance(name, str) and "optim" not in name and isinstance(value, Mapping) and depth > 0:
            if _is_state(value):
                yield before + name, value
            else:
                yield from _states(value, f"{before}{name}.", depth - 1)


def _same(state: Mapping[str, Any], weights: Weights) -> bool:
    """True if a state would fit where these weights do, wrappers and counts aside."""

    def shapes(tensors: Mapping[str, Any]) -> set[tuple[str, ...]]:
        return {
            (name.removeprefix("module.").removeprefix("_orig_mod."), str(tuple(value.shape)))
            for name, value in tensors.items()
            if isinstance(value, Tensor) and name != "n_averaged"
        }

    return shapes(state) == shapes(weights.state)


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
    """True if a dict is a ``state_dict``: names, and tensors but for what a layer keeps beside."""
    named = [value for name, value in content.items() if isinstance(name, str) and not name.endswith("_extra_state")]
    tensors = [value for value in named if isinstance(value, Tensor)]
    plain = all(isinstance(value, Tensor | bool | int | float | str | None) for value in named)
    return len(tensors) > 0 and len(named) >= len(content) // 2 and plain and 2 * len(tensors) > len(named)


def _tensors(state: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the tensors and the modules' extra state; other numbers and strings are left out."""
    found = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in found.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            kind = "meta" if value.is_meta else str(value.dtype if value.is_quantized else value.layout)[6:]
            raise CheckpointError(
                f"{path}: {name!r} is a {'nested' if value.is_nested else kind} tensor, not plain numbers."
            )
        if value.is_floating_point() and value.dtype.itemsize == 1:
            raise CheckpointError(
                f"{path}: {name!r} is a {str(value.dtype)[6:]} tensor, which was quantized already: take the "
                f"checkpoint before that, or cast it to float32 by its scales."
            )
        if name.endswith("_flat_param"):
            raise CheckpointError(
                f"{path}: holds flat parameters of FSDP ({name!r}): save the model under "
                f"StateDictType.FULL_STATE_DICT, or by torch.distributed.checkpoint.state_dict.get_model_state_dict."
            )
    return {**found, **{name: value for name, value in state.items() if str(name).endswith("_extra_state")}}


def _unwrap(module: nn.Module) -> nn.Module:
    """Returns the user's module under DistributedDataParallel, DataParallel and torch.compile."""
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

"""The names of a checkpoint's tensors as the model has them, whatever wrapped the model, or parts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from dqconvert.checkpoint.document import aliases_of

State = Mapping[str, Tensor]

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch.compile, FSDP and activation checkpoints insert wherever they wrap a module."""

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of DistributedDataParallel and torch.compile."""

_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""The parameters of weight norms, the old one's and the new one's: the lengths, and the directions."""


def fitted(state: State, model: nn.Module, expected: Mapping[str, object]) -> tuple[str, State]:
    """Returns the reading of a checkpoint's names that fits the model, or else the one that fits best.

    Wrappers are taken off at every level, and one prefix that is common to all. Weight norms are read into the form
    that the model has, and computed where it has plain weights. A tensor that is stored under one of its names is there
    under the others. How many states an average is of (``AveragedModel``) is left out.

    Returns:
        The prefix that was taken off, and the tensors by the model's names.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> state = {"module.0._orig_mod.weight": torch.ones(1, 2), "module.0._orig_mod.bias": torch.ones(1)}
        >>> prefix, tensors = fitted({**state, "n_averaged": torch.tensor(3)}, model, model.state_dict())
        >>> prefix, list(tensors)
        ('module.', ['0.weight', '0.bias'])
    """
    if "n_averaged" not in expected and any(name.startswith("module.") for name in state):
        state = {name: value for name, value in state.items() if name != "n_averaged"}
    prefix, tensors = _without_prefix(state, expected)
    if tensors.keys() != expected.keys():
        bare = _renamed(state, lambda name: name if name in expected else _without(name, _WRAPPERS))
        prefix, tensors = _without_prefix(bare, expected)
    if tensors.keys() != expected.keys():
        tensors = _renamed(tensors, lambda name: _unwrapped(name, expected))
        tensors = _tied(_normed(tensors, expected), model, expected)
    return prefix, tensors


def _renamed(state: State, rename: Callable[[str], str]) -> State:
    """Renames the tensors, unless two would have one name."""
    renamed = {rename(name): value for name, value in state.items()}
    return renamed if len(renamed) == len(state) else state


def _without(name: str, steps: tuple[str, ...]) -> str:
    return ".".join(step for step in name.split(".") if step not in steps)


def _unwrapped(name: str, expected: Mapping[str, object]) -> str:
    found = _without(name, ("module",))
    return found if name not in expected and found in expected else name


def _without_prefix(state: State, expected: Mapping[str, object]) -> tuple[str, State]:
    best: tuple[int, str, State] = (-1, "", state)
    for prefix in _prefixes(list(state)):
        tensors = {name.removeprefix(prefix): value for name, value in state.items()}
        common = len(tensors.keys() & expected.keys())
        if common > best[0]:
            best = common, prefix, tensors
        if tensors.keys() == expected.keys():
            break
    return best[1:]


def _prefixes(names: list[str]) -> Iterator[str]:
    """Yields the empty prefix, and those that all names have in common, part by part; wrappers first."""
    yield ""
    prefix = ""
    while names and all(name.startswith(prefix) and "." in name[len(prefix) :] for name in names):
        first = next((w for w in _PREFIXES if names[0].startswith(prefix + w)), None)
        prefix += first or names[0][len(prefix) :].partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix


def _normed(state: State, expected: Mapping[str, object]) -> State:
    """Returns weight norms in the model's form: one of both, or the weight itself."""
    found = dict(state)
    for (length, direction), (other_length, other_direction) in (_NORMS, _NORMS[::-1]):
        for name in list(found):
            owner = name.removesuffix(length)
            if not name.endswith(length) or owner + direction not in found or name in expected:
                continue
            lengths, directions = found.pop(name), found.pop(owner + direction)
            if owner + other_length in expected:
                found |= {owner + other_length: lengths, owner + other_direction: directions}
            elif f"{owner}weight" in expected:
                found[f"{owner}weight"] = _weight(lengths, directions)
            else:
                found |= {name: lengths, owner + direction: directions}
    return found


def _weight(lengths: Tensor, directions: Tensor) -> Tensor:
    """Computes the weight of a norm, whose lengths have size 1 along all dimensions but the norm's own."""
    if lengths.dim() == 0:
        return directions * (lengths / directions.norm())
    own = [dim for dim in range(lengths.dim()) if lengths.size(dim) > 1]
    return torch._weight_norm(directions, lengths, own[0] if own else 0)


def _tied(state: State, model: nn.Module, expected: Mapping[str, object]) -> State:
    """Tensors under all of their names, of which ``safetensors.torch.save_model`` keeps one."""
    aliases = aliases_of({n: v for n, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)})
    groups: dict[str, list[str]] = {}
    for name in (*aliases, *aliases.values()):
        groups.setdefault(aliases.get(name, name), []).append(name)
    found = dict(state)
    for names in groups.values():
        kept = next((name for name in names if name in state), None)
        if kept is not None:
            found |= {name: state[kept] for name in names if name in expected and name not in state}
    return found

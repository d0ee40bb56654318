"""Hooks that users registered: which there are, and how a graph calls those of modules that it looks into.

A module that stays whole runs its hooks itself, and so does the root. Those of the modules between are calls in the
graph, at the place where torch or PyG runs them.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph
from torch.nn.modules import module as torch_module

from dqconvert.errors import GuardError

_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_OWN = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")

Hook = tuple[str, str, int]
"""Path of the module, name of the table that the hook is in, and its key there."""


def call_hook(module: nn.Module, table: str, key: int, changes: bool, *given: Any) -> Any:
    """Runs a hook where the float model runs it.

    Args:
        module: What it is registered on.
        table: The attribute of the module that holds it.
        changes: Whether it returned something when the model was prepared, which then stands for what it was given.

    Raises:
        GuardError: If it returns something now and did not then, or the other way round.
    """
    hook = getattr(module, table).get(key)
    result = None if hook is None else hook(module, *given)
    if (result is not None) is changes:
        return result
    then, now = ("something", "nothing") if changes else ("nothing", "something")
    raise GuardError(
        f"a hook of {type(module).__name__} ({table}) returned {then} when the model was prepared, and returns {now} "
        f"now (or was removed): prepare the float model again, with its hooks as they are."
    )


def tables(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the tables of a module's forward hooks that are not empty, PyG's hooks of stages among them."""
    for name, table in vars(module).items():
        if isinstance(table, dict) and table and name.endswith(("_forward_hooks", "_forward_pre_hooks")):
            yield name, table


def has_tables(module: nn.Module) -> bool:
    """Returns True if a module has forward hooks, or its parts have."""
    return next(tables(module), None) is not None


def hooks_of(root: nn.Module) -> set[Hook]:
    """Returns all hooks of the modules under a root, which runs its own."""
    return {
        (path, name, key)
        for path, module in nn.Module.named_modules(root)
        if path
        for name, table in vars(module).items()
        if isinstance(table, dict) and table
        if name in _BACKWARD or name.endswith(("_forward_hooks", "_forward_pre_hooks"))
        for key, hook in table.items()
        if not of_torch(hook)
    }


def replace_hooks(module: nn.Module, wrapped: Callable[[str, int, Any], Any]) -> None:
    """Puts others in the place of a module's forward hooks, under their keys."""
    for name, table in list(tables(module)):
        changed = OrderedDict(
            (key, hook if of_torch(hook) else wrapped(name, key, hook)) for key, hook in table.items()
        )
        module.__dict__[name] = changed


def of_torch(hook: Any) -> bool:
    """Returns True if a hook is one that computes a weight from others: the recording sees what it does."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def share_hooks(module: nn.Module, other: nn.Module) -> None:
    """Gives another module the forward hooks of a module itself, not of its parts."""
    for name in _OWN:
        getattr(other, name).update(getattr(module, name))


def global_hooks() -> bool:
    """Returns True if hooks are registered for all modules at once."""
    return any(getattr(torch_module, name) for name in _GLOBAL)


GLOBAL_REMARK = (
    "hooks for all modules at once (torch.nn.modules.module.register_module_…_hook) run on the model and on the layers "
    "that stay whole alone"
)


def new_hook_number() -> int:
    """Returns a number that changes once a hook is registered, anywhere."""
    return torch.utils.hooks.RemovableHandle.next_id


def warn_of_lost(hooks: set[Hook], graphs: list[Graph]) -> None:
    """Warns of hooks that no graph runs: of modules that are looked into, registered after that."""
    whole = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    for path, table, _ in sorted(hooks):
        if not any(f"{path}.".startswith(f"{called}.") for called in whole):
            kind = table.strip("_").removesuffix("s").replace("_", " ")
            warnings.warn(
                f"the {kind} of module {path!r} was registered after the model was prepared and does not run: the "
                f"graph computes what the module does without calling it. Register it on the float model and prepare "
                f"that.",
                stacklevel=6,
            )


def refuse_weight_hooks(root: nn.Module, graphs: list[Graph]) -> None:
    """Checks that graphs read no weight that a hook of ``torch.nn.utils`` computes, which they do not call.

    Hooks of the root run before its graph does, and so what they compute is read.

    Raises:
        GuardError: If they do: such a hook (``prune``, ``spectral_norm``) was registered after they were traced.
    """
    read = {str(node.target) for graph in graphs for node in graph.find_nodes(op="get_attr")}
    for path, module in nn.Module.named_modules(root):
        if module is root:
            continue
        for hook in filter(of_torch, module._forward_pre_hooks.values()):
            name = str(getattr(hook, "_tensor_name", None) or getattr(hook, "name", "weight"))
            if f"{path}.{name}" in read:
                raise GuardError(
                    f"{name!r} of module {path} is computed by a {type(hook).__name__} of torch.nn.utils, registered "
                    f"after the model was prepared: the graph would not run it, and the weight would stay as it is. "
                    f"Register it on the float model and prepare that; or make the weight a parameter again, by "
                    f"prune.remove, remove_weight_norm or remove_spectral_norm of torch.nn.utils; or use "
                    f"torch.nn.utils.parametrizations, which are followed."
                )

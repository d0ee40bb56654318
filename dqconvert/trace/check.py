"""Checks that what a forward reads is what it was when the forward was recorded."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from dqconvert.errors import GuardError
from dqconvert.trace.check_code import LISTS, NUMBERS, generate, is_large, never, same
from dqconvert.trace.unchanged import (
    ASIDE,
    GLOBAL,
    MISSING,
    Condition,
    equal,
    followed,
    global_value,
    global_words,
    reached,
    type_name,
    words,
)

_THEN = "when the model was prepared"


class Check:
    """Checks that the modules under a root are what they were when a graph was recorded.

    What is compared by identity, or with a copy, a module keeps among its attributes: so it is copied together with
    what it is compared with.
    """

    def __init__(self, root: nn.Module, entries: Iterable[Condition]) -> None:
        self.entries = tuple(dict.fromkeys(_with_lists(root, list(entries))))
        objects = vars(root).setdefault("_objects", {})
        for entry in self.entries:
            if entry.kind in ("object", "equal", "class") and entry not in objects:
                objects[entry] = _kept(root, entry)
        changed = next(self._changes(root), None) is not None
        self._holds: Callable[[Any, Any], bool] = (
            never  # generated at the first call: parts change their class till then
        )
        self._holds_compiled = never if changed else generate(root, self.entries, whole=False)

    def __call__(self, root: Any) -> None:
        """Does nothing where all is as it was.

        Raises:
            GuardError: It names the attribute.
        """
        compiling = torch.compiler.is_compiling()  # torch guards what is read here, and compiles again where it changes
        held = self._holds_compiled(root, None) if compiling else self._holds(root, root._objects)
        if not held:
            self._explain(root)
            if not compiling:  # something else was added to a module
                self._holds = generate(root, self.entries, whole=True)

    def _changes(self, root: nn.Module) -> Iterator[str]:
        known: dict[Condition, Any] = vars(root)["_objects"]
        modules: dict[str, Any] = {}
        for entry in self.entries:
            if entry.kind not in GLOBAL and entry.path not in modules:  # most modules have many entries
                modules[entry.path] = reached(root, entry.path, ())
            change = _change(modules.get(entry.path), entry, known.get(entry))
            if change is not None:
                yield change

    def _explain(self, root: nn.Module) -> None:
        for change in self._changes(root):
            raise GuardError(
                f"{change}: the graph was made for what it was. Set it back; or set it so on the float model and "
                f"prepare that, and take weights and ranges over with load_state_dict(module.state_dict())."
            )


def _with_lists(root: nn.Module, entries: list[Condition]) -> Iterator[Condition]:
    """Yields the entries, and one for each list of modules of which some are called."""
    holders: dict[str, None] = {}
    for entry in entries:
        path = entry.path
        while entry.kind == "class" and path:
            path = path.rpartition(".")[0]
            holders.setdefault(path)
    for path in holders:
        module = reached(root, path, ())
        if path and isinstance(module, LISTS):
            yield Condition(path, (), "class", type_name(module))
    yield from entries


def _kept(root: nn.Module, entry: Condition) -> Any:
    """Returns what an object will be compared with."""
    if entry.kind not in ("object", "equal", "class"):
        return None
    found = reached(root, entry.path, entry.steps)
    if entry.kind == "class":
        return frozenset(found._modules) if isinstance(found, nn.Module) else None
    return copy.deepcopy(found) if entry.kind == "equal" and not is_large(found) else found


def _has_parts(module: nn.Module, parts: frozenset[str]) -> bool:
    """Returns True if a module still has its parts, and a list of modules no others."""
    return module._modules.keys() == parts if isinstance(module, LISTS) else module._modules.keys() >= parts


def _change(module: Any, entry: Condition, known: Any) -> str | None:
    """Returns what changed of a module (:data:`MISSING` if it is gone), in words; ``None`` if nothing did."""
    path, steps, kind, was = entry
    if kind in GLOBAL:
        found = global_value(entry) if path in sys.modules else was
        now = "is gone" if found is MISSING else "has other contents" if kind == "contents" else f"is {_short(found)}"
        then = "" if kind == "contents" else f"was {_short(was)} {_THEN}, and "
        return None if equal(found, was) else f"{global_words(entry)} {then}{now} now"
    name = words((path, steps))
    found = followed(module, steps)
    if kind == "class":
        if known is not None and isinstance(found, nn.Module) and not _has_parts(found, known):
            return f"module {path} had the parts {sorted(known)} {_THEN}, and has {sorted(found._modules)} now"
        is_now = "gone" if found is MISSING else f"a {type_name(found)}"
        return None if is_now == f"a {was}" else f"module {path} was a {was} {_THEN}, and is {is_now} now"
    if kind in ("absent", "method") and module is not MISSING:
        owner = vars(module)
        owner = {**owner, **owner.get(ASIDE, {})}
        if steps[0][1] not in owner or (kind == "method" and _bound(owner, steps[0][1])):
            return None
        what = "was not there" if kind == "absent" else "was a method of its class"
        return f"{name} {what} {_THEN}, and was set since"
    if found is MISSING:
        return None if kind == "not in" else f"{name} is gone since the model was prepared"
    if kind == "number":
        return None if type(found) in NUMBERS else f"{name} was a number {_THEN}, and is {_short(found)} now"
    if kind in ("none", "some"):
        if (found is None) is (kind == "none"):
            return None
        return f"{name} was {'None' if kind == 'none' else 'there'} {_THEN}, and is {_short(found)} now"
    if kind == "in":
        return None
    if kind == "not in":
        return f"{name} was not there {_THEN}, and was set since"
    if kind == "len":
        return None if len(found) == was else f"{name} had {was} items {_THEN}, and has {len(found)} now"
    if kind == "keys":
        return None if tuple(found) == was else f"{name} had the keys {list(was)} {_THEN}, and has {list(found)} now"
    if kind in ("object", "equal"):
        held = found is known if kind == "object" else same(found, known)
        return None if held else f"{name} was {_short(known)} {_THEN}, and is {_short(found)} now"
    held = equal(found, was)
    return None if held else f"{name} was {_short(was)} {_THEN}, and is {_short(found)} now"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, torch.Tensor) else f"a tensor of shape {list(value.shape)}"
    return text if len(text) < 60 else f"{text[:57]}…"


def _bound(owner: dict[str, Any], name: str) -> bool:
    return getattr(owner.get(name), "__self__", None) is not None

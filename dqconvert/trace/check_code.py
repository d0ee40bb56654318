"""Generates the check of what a forward reads, as code that takes a few microseconds."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import numpy as np
from torch import nn

from dqconvert.trace.unchanged import GLOBAL, Condition, Step, frozen

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""Modules of which all parts count, also those that are added."""

NUMBERS = frozenset((int, float, bool, *(kind for kind in np.sctypeDict.values() if issubclass(kind, np.number))))
"""Types of what may stand for a number that is followed."""


def is_large(value: Any) -> bool:
    """Returns True for an array that is too large to be compared in every forward."""
    return isinstance(value, np.ndarray) and value.nbytes > 1 << 12


def same(value: Any, known: Any) -> bool:
    """Returns True if a collection holds what it held; for a large array, if it is the same object."""
    if value is known:
        return True
    if isinstance(known, np.ndarray):
        return not is_large(known) and isinstance(value, np.ndarray) and np.array_equal(value, known)
    return bool(type(value) is type(known) and value == known)


def never(root: Any, objects: Any) -> bool:
    """Returns False: stands in where something has changed already."""
    return False


def generate(root: nn.Module, entries: Iterable[Condition], *, whole: bool) -> Callable[[Any, Any], bool]:
    """Generates a function of the root and of the kept objects that returns True if everything is as it is now.

    It says no as well where a module has got more attributes or parts: one may be a method that hides its class's.

    Args:
        whole: Also what torch.compile need not, or cannot, look at.
    """
    writer = _Whole(root) if whole else _Plain(root)
    for entry in entries:
        writer.entry(entry)
    lines = ["def holds(self, objects):", *writer.lines, f"    return {' and '.join(writer.conditions) or True}"]
    if whole:
        body = [f"    {line}" for line in lines[1:]]
        lines = [lines[0], "    try:", *body, "    except Exception:", "        return False"]
    names: dict[str, Any] = dict(writer.constants)
    exec(_compiled("\n".join(lines)), names)
    return names["holds"]


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> CodeType:
    """Returns the code of a source; graphs of one model, one after the other, are checked by the same."""
    return compile(source, "<what must stay>", "exec")


class _Plain:
    """Writes the conditions that torch.compile guards, in terms of attributes."""

    def __init__(self, root: nn.Module) -> None:
        self.found = dict(nn.Module.named_modules(root, remove_duplicate=False))
        self.lines: list[str] = []
        self.conditions: list[str] = []
        self.constants: dict[str, Any] = {"same": same, "numbers": NUMBERS, "frozen": frozen}
        self.modules: dict[str, str] = {}

    def entry(self, entry: Condition) -> None:
        """Writes the condition of one entry."""
        if entry.kind in GLOBAL:
            condition = self.of_global(entry)
        else:
            condition = self.condition(entry, self.found[entry.path], self.module(entry.path))
        if condition:
            self.conditions.append(condition)

    def of_global(self, entry: Condition) -> str:
        """Returns the condition of a global name; ``""`` where nobody has imported its module."""
        if entry.path not in sys.modules:
            return ""
        text = self.constant(sys.modules[entry.path])
        text += "".join(f".{name}" if kind == "attr" else f"[{name!r}]" for kind, name in entry.steps)
        found = f"frozen({text})" if entry.kind == "contents" else text
        return f"{found} == {self.constant(entry.value)}"

    def condition(self, entry: Condition, module: nn.Module, owner: str) -> str:
        """Returns the condition of an entry as code; ``""`` if there is none."""
        kind, was = entry.kind, entry.value
        if kind in ("none", "some"):
            return f"{self.registered(owner, module, entry)} is {'' if kind == 'none' else 'not '}None"
        if kind == "value":
            value = self.value(owner, module, entry.steps)
            if was is None or isinstance(was, bool):
                return f"{value} is {was}"
            return f"{value} == {was!r}" if isinstance(was, int | str) else f"{value} == {self.constant(was)}"
        if kind == "len":
            return f"len({self.value(owner, module, entry.steps)}) == {was}"
        if kind in ("in", "not in"):
            return f"{entry.steps[-1][1]!r} {kind} {self.value(owner, module, entry.steps[:-1])}"
        return ""

    def module(self, path: str) -> str:
        """Returns the name of the variable that holds a module."""
        if path not in self.modules:
            self.modules[path] = f"m{len(self.modules)}"
            steps = "".join(f"._modules[{part!r}]" for part in path.split(".") if part)
            self.lines.append(f"    {self.modules[path]} = self{steps}")
        return self.modules[path]

    def registered(self, owner: str, module: nn.Module, entry: Condition) -> str:
        """Returns code that reads a parameter, a buffer or a submodule that may be absent."""
        name = str(entry.steps[0][1])
        for table in ("_parameters", "_buffers", "_modules"):
            if name in vars(module)[table]:
                return f"{self.attribute(owner, module, table)}.get({name!r})"
        return self.attribute(owner, module, name)

    def attribute(self, owner: str, module: nn.Module, name: str) -> str:
        """Returns code that reads an attribute of a module."""
        return f"{owner}.{name}"

    def value(self, owner: str, module: nn.Module, steps: tuple[Step, ...]) -> str:
        """Returns code that reads a value of a module, or a part of one."""
        text = self.attribute(owner, module, str(steps[0][1]))
        return text + "".join(f".{name}" if kind == "attr" else f"[{name!r}]" for kind, name in steps[1:])

    def constant(self, value: Any) -> str:
        """Returns the name of the variable that holds a value."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name


class _Whole(_Plain):
    """Writes all conditions, in terms of the modules' ``__dict__``: a third of the time that attributes take."""

    def condition(self, entry: Condition, module: nn.Module, owner: str) -> str:
        if entry.kind == "class":
            return f"type({owner}) is {self.constant(type(module))}"
        if entry.kind in ("absent", "method"):
            return ""  # the number of attributes is compared
        found = super().condition(entry, module, owner)
        if found:
            return found
        value = self.value(owner, module, entry.steps)
        if entry.kind == "number":
            return f"type({value}) in numbers"
        if entry.kind == "keys":
            return f"tuple({value}) == {self.constant(entry.value)}"
        place = f"objects[{self.constant(entry)}]"
        return f"{value} is {place}" if entry.kind == "object" else f"same({value}, {place})"

    def module(self, path: str) -> str:
        if path not in self.modules:
            above, _, name = path.rpartition(".")
            source = f"d{self.module(above)[1:]}['_modules'][{name!r}]" if path else "self"
            module = self.found[path]
            number = len(self.modules)
            self.modules[path] = f"m{number}"
            self.lines += [f"    m{number} = {source}", f"    d{number} = m{number}.__dict__"]
            if path:  # the root sets attributes of its own in a forward
                self.conditions.append(f"len(d{number}) == {len(vars(module))}")
            self.conditions.append(f"len(d{number}['_modules']) == {len(module._modules)}")
        return self.modules[path]

    def attribute(self, owner: str, module: nn.Module, name: str) -> str:
        return f"d{owner[1:]}[{name!r}]" if name in vars(module) else f"{owner}.{name}"

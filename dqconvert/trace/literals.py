"""Floats that recorded code holds: ``0.5 * x.size(0)`` asks the literal first, which would answer with a constant.

While a forward is recorded, the literals, defaults and constants of its code are :class:`KeptFloat`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from dqconvert.trace.names import closed_over, module_of, unwrapped
from dqconvert.trace.patching import is_library
from dqconvert.trace.values import KeptFloat


def kept(value: Any) -> Any:
    """Returns a constant with every float in it, also in tuples and nested code, as a :class:`KeptFloat`.

    Example:
        >>> type(kept(0.5)).__name__, kept(2), kept((1.0, "a"))
        ('KeptFloat', 2, (1.0, 'a'))
    """
    if type(value) is float:
        return KeptFloat(value)
    if type(value) is tuple:
        parts = tuple(kept(part) for part in value)
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    return _kept_code(value, value.co_filename) if isinstance(value, CodeType) else value


@functools.lru_cache(maxsize=8192)
def _kept_code(code: CodeType, file: str) -> CodeType:  # code that is equal may stand in several files
    constants = kept(code.co_consts)
    return code if constants is code.co_consts else code.replace(co_consts=constants)


def literal_changes(spaces: Sequence[dict[str, Any]], model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Yields the changes that keep the floats of code: (place, name, value) as ``patched`` takes them.

    Args:
        spaces: The global names of the code.
        model: The model that runs it. Its classes and the functions among its attributes need not be in ``spaces``.
    """
    found = _Changes()
    known = {id(names) for names in spaces}
    for names in spaces:
        module = names.get("__name__")
        if is_library(module, names):
            yield from _of_library(module, len(names))
        else:
            found.of_namespace(names)
    for owner in nn.Module.modules(model):
        for cls in type(owner).__mro__:
            if any(type(f) is FunctionType and id(f.__globals__) in known for f in vars(cls).values()):
                found.of_class(cls)
        for value in vars(owner).values():
            if type(value) is FunctionType and id(value.__globals__) in known:
                found.of_function(value)
    yield from found.changes


@functools.lru_cache(maxsize=4096)
def _of_library(module: str, size: int) -> tuple[tuple[Any, str, Any], ...]:
    """Returns the changes to make in a library's module; computed anew once the module has gained names."""
    found = _Changes()
    found.of_namespace(vars(sys.modules[module]))
    return tuple(change for change in found.changes if isinstance(change[0], FunctionType))


class _Changes:
    """Collects changes, each place once."""

    def __init__(self) -> None:
        self.changes: list[tuple[Any, str, Any]] = []
        self._seen: set[int] = set()

    def of_namespace(self, names: dict[str, Any]) -> None:
        for name, value in list(names.items()):
            if type(value) is float:
                self.changes.append((names, name, KeptFloat(value)))
            elif type(value) is FunctionType and value.__globals__ is names:
                self.of_function(value)
            elif issubclass(type(value), type) and module_of(value) == names.get("__name__"):
                self.of_class(value)

    def of_class(self, cls: type) -> None:
        if id(cls) in self._seen:
            return
        self._seen.add(id(cls))
        for name, member in list(vars(cls).items()):
            if type(member) is float:
                self.changes.append((cls, name, KeptFloat(member)))
            plain = unwrapped(member)
            if type(plain) is FunctionType:
                self.of_function(plain)

    def of_function(self, function: FunctionType) -> None:
        """Collects the changes of a function, and of those that it wraps or closes over."""
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        code, defaults = kept(function.__code__), kept(function.__defaults__)
        if code is not function.__code__:
            self.changes.append((function, "__code__", code))
        if defaults is not function.__defaults__:
            self.changes.append((function, "__defaults__", defaults))
        for inner in closed_over(function):
            if type(inner) is FunctionType:
                self.of_function(inner)

"""Temporary changes to functions and names while a forward is recorded, undone whatever happens."""

from __future__ import annotations

import functools
import math
import pathlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch

from dqconvert.trace.names import is_code, module_of, names_of
from dqconvert.trace.values import BUILTIN_NAMES, MATH_NAMES

_lock = threading.RLock()
_MISSING = object()


@contextmanager
def patched(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets names in places (a module's ``__dict__``, a class, a module, a function), and restores them at the end.

    One recording at a time: another thread that records waits for its turn, and looks for its changes only then.
    """
    with _lock:
        undo: list[tuple[Any, str, Any]] = []
        try:
            for place, name, value in list(changes):
                undo.append((place, name, _get(place, name)))
                _set(place, name, value)
            yield
        finally:
            for place, name, value in reversed(undo):
                _set(place, name, value)


def _get(place: Any, name: str) -> Any:
    if isinstance(place, FunctionType):
        return getattr(place, name)
    return (place if isinstance(place, dict) else vars(place)).get(name, _MISSING)


def _set(place: Any, name: str, value: Any) -> None:
    if not isinstance(place, dict):
        delattr(place, name) if value is _MISSING else setattr(place, name, value)
    elif value is _MISSING:
        place.pop(name, None)
    else:
        place[name] = value


def namespaces(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Returns the global names of the code that a recording of ``model`` runs through.

    PyG's modules, the modules that define the classes of ``model``, and the modules whose functions those use.
    torch and the standard library are left alone.
    """
    classes = {cls for kind in {type(module) for module in torch.nn.Module.modules(model)} for cls in kind.__mro__}
    own = {module_of(cls) for cls in classes}
    for name in list(own):
        for value in list(names_of(name).values()):
            if is_code(value):
                own.add(module_of(value))
    library = _library(tuple(sys.modules))
    names = [*sorted(name for name in own if is_foreign(name) and name not in library), *library]
    found = [space for name in names if (space := names_of(name))]
    # Code that PyG generates lives in modules that are in sys.modules under names of their own, or in none.
    generated = {
        id(function.__globals__): function.__globals__
        for cls in classes
        if is_foreign(module_of(cls))
        for function in vars(cls).values()
        if type(function) is FunctionType
    }
    known = {id(names) for names in found}
    return found + [names for key, names in generated.items() if key not in known]


@functools.lru_cache(maxsize=1)
def _library(modules: tuple[str, ...]) -> dict[str, None]:
    """Returns the names of PyG's modules among those that are imported."""
    return dict.fromkeys(sorted(name for name in modules if name[:16] in ("torch_geometric", "torch_geometric.")))


def is_foreign(module: str) -> bool:
    """Returns True for a module of neither torch, the standard library, numpy nor this package."""
    if not module:
        return False
    top = module.split(".")[0]
    return (top not in sys.stdlib_module_names and top not in ("torch", "dqconvert", "numpy")) or top == "__main__"


def in_place_of(
    spaces: Iterable[dict[str, Any]], functions: dict[int, Callable[..., Any]]
) -> Iterator[tuple[Any, str, Any]]:
    """Yields the changes that replace functions, given by their ``id`` in ``functions``, by others."""
    wanted = _same_set(frozenset(functions))
    for names in spaces:
        module = names.get("__name__")
        known = _library_has(module, len(names), wanted) if is_library(module, names) else _has(names, wanted)
        for name in known:
            if (function := functions.get(id(names.get(name)))) is not None:
                yield names, name, function


def is_library(module: Any, names: dict[str, Any]) -> bool:
    """Returns True for the namespace of a module of PyG: looked at again only where it has got more names."""
    return type(module) is str and module.startswith("torch_geometric.") and names_of(module) is names


@functools.lru_cache(maxsize=4096)
def _library_has(module: str, size: int, wanted: frozenset[int]) -> tuple[str, ...]:
    return _has(names_of(module), wanted)


def _has(names: dict[str, Any], wanted: frozenset[int]) -> tuple[str, ...]:
    if wanted.isdisjoint(map(id, names.values())):  # as in most modules
        return ()
    return tuple(name for name, value in names.items() if id(value) in wanted)


@functools.lru_cache(maxsize=16)
def _same_set(wanted: frozenset[int]) -> frozenset[int]:
    """Returns a set that is equal, the same each time: it is compared by identity first."""
    return wanted


@functools.cache
def _builtins_called(file: str | None) -> tuple[str, ...]:
    """Returns which of :data:`BUILTIN_NAMES` a module's source calls; all of them if there is no source."""
    try:
        text = pathlib.Path(file or "").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return tuple(BUILTIN_NAMES)
    return tuple(name for name in BUILTIN_NAMES if f"{name}(" in text)


def replacements(
    spaces: Iterable[dict[str, Any]], functions: dict[int, Callable[..., Any]]
) -> Iterator[tuple[Any, str, Any]]:
    """Yields the changes that make recorded code see traced numbers and recorded functions.

    Args:
        spaces: From :func:`namespaces`.
        functions: ``id`` of a function to the function to call instead, wherever it was imported to.
    """
    spaces = list(spaces)
    yield from in_place_of(spaces, functions)
    for names in spaces:
        for name in _builtins_called(names.get("__file__")):
            if name not in names:
                yield names, name, BUILTIN_NAMES[name]
    for name, value in MATH_NAMES.items():
        yield math, name, value

"""Tensors that a model's code reads from global names: ``data.x``, where ``data`` is a variable of its module.

Scripts write so: the forward takes no arguments, or not all that it uses. A graph reads such a tensor when it runs, and
so follows what the script does to the name later.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from dqconvert.errors import ExportError, GuardError
from dqconvert.trace.names import closed_over, module_of, unwrapped
from dqconvert.trace.patching import is_foreign

GlobalName = tuple[str, str, tuple[tuple[bool, Any], ...]]
"""A module's name, a global name in it, and the way from there: what is taken as an item, and what as an attribute."""

_DEEP, _LONG = 4, 256
"""Steps from a global name to a tensor, and items of a list, that are looked at."""

_LIBRARIES = ("torch", "torch_geometric", "numpy", "lightning", "pytorch_lightning")


def read_global(module: str, name: str, path: tuple[tuple[bool, Any], ...], *others: GlobalName) -> Tensor:
    """Returns the tensor that a global name leads to now.

    Args:
        module: The name of the module whose variable it is.
        path: How it leads from there to the tensor: pairs of whether it is an item (or an attribute), and which.
        others: Where the same tensor was found while tracing. Nobody knows which of them the model means.

    Raises:
        GuardError: If no tensor is there any more, or not the same one everywhere.
        ExportError: While the module is exported, which would make a constant of it.

    Example:
        >>> import sys, torch
        >>> sys.modules[__name__].GIVEN = {"x": torch.ones(2)}
        >>> read_global(__name__, "GIVEN", ((True, "x"),))
        tensor([1., 1.])
        >>> read_global(__name__, "GIVEN", ((True, "y"),))
        Traceback (most recent call last):
            ...
        dqconvert.errors.GuardError: the forward reads the global GIVEN['y'] of module ...
    """
    if torch.compiler.is_exporting():
        raise ExportError(
            f"the forward reads the global {place_name(name, path)} of module {module!r}, which an exported program "
            f"would hold as it is now: pass it as an argument of the forward to export the module."
        )
    found = _follow((module, name, path))
    if not isinstance(found, Tensor):
        raise GuardError(
            f"the forward reads the global {place_name(name, path)} of module {module!r}, and there is no tensor now: "
            f"set it, or pass it as an argument of the forward."
        )
    for other in others:
        if _follow(other) is not found:
            raise GuardError(
                f"the forward was traced where the globals {place_name(name, path)} of module {module!r} and "
                f"{place_name(*other[1:])} of {other[0]!r} were one tensor, and now they are two: it is not known "
                f"which of them it reads. Prepare the model again, or pass the tensor as an argument of the forward."
            )
    return found


def _follow(place: GlobalName) -> Any:
    module, name, path = place
    value: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    for item, key in path:
        try:
            value = value[key] if item else getattr(value, key)
        except (LookupError, AttributeError, TypeError):
            return None
    return value


def place_name(name: str, path: tuple[tuple[bool, Any], ...]) -> str:
    """Returns the expression by which code names such a tensor."""
    return name + "".join(f"[{key!r}]" if item else f".{key}" for item, key in path)


class Globals:
    """The tensors in the global names that a model's code uses, as they are before a forward runs.

    A tensor that the forward itself puts into a global is none of them.
    """

    def __init__(self, model: nn.Module) -> None:
        code = _Code(model)
        self._words = code.words
        self._places: dict[int, tuple[Tensor, int, list[GlobalName]]] = {}
        for module, name, value in code.globals:
            for path, tensor in self._tensors(value, (), ()):
                places = self._places.setdefault(id(tensor), (tensor, _version(tensor), []))[2]
                if (module, name, path) not in places:
                    places.append((module, name, path))

    def places(self, tensor: Tensor) -> list[GlobalName]:
        """Returns where a tensor is found; an empty list if that is unknown, or if it is trained."""
        known, _, places = self._places.get(id(tensor), (None, 0, []))
        return places if known is tensor and not tensor.requires_grad else []

    def found(self, place: GlobalName) -> GlobalName | None:
        """Returns the place in this program of a tensor that a file names; its module may have another name here.

        Returns:
            ``None`` if no code of the model reads a tensor of that name, or that of several modules.
        """
        places = [one for *_, some in self._places.values() for one in some if one[1:] == place[1:]]
        return place if place in places else places[0] if len(places) == 1 else None

    def changed(self, tensor: Tensor) -> bool:
        """Returns True if such a tensor was written into since."""
        return self._places[id(tensor)][1] != _version(tensor)

    def _tensors(self, value: Any, path: tuple[Any, ...], holders: tuple[int, ...]) -> Iterator[tuple[Any, Tensor]]:
        if isinstance(value, Tensor):
            yield path, value
        elif len(path) < _DEEP and id(value) not in holders:
            for step, part in self._parts(value):
                yield from self._tensors(part, (*path, *step), (*holders, id(value)))

    def _parts(self, value: Any) -> Iterator[tuple[tuple[tuple[bool, Any], ...], Any]]:
        """Yields what a value holds, and the steps there."""
        if isinstance(value, BaseData):
            for store in value.stores:
                owner = () if store._key is None else ((True, store._key),)
                yield from (((*owner, (False, name)), part) for name, part in store.items())
        elif isinstance(value, dict):
            yield from ((((True, key),), part) for key, part in list(value.items())[:_LONG] if _is_word(key))
        elif isinstance(value, tuple | list):
            yield from ((((True, index),), part) for index, part in enumerate(value[:_LONG]))
        elif not isinstance(value, nn.Module) and _is_users(value):
            names = vars(value) if hasattr(value, "__dict__") else {}
            yield from ((((False, name),), names[name]) for name in self._words if name in names)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_word(key: Any) -> bool:
    return isinstance(key, str | int) or (isinstance(key, tuple) and all(map(_is_word, key)))


def _is_users(value: Any) -> bool:
    """Returns True for an object, class or module that may be one of the user's that holds tensors."""
    if isinstance(value, ModuleType):
        return is_own(value.__name__)
    kind = value if isinstance(value, type) else type(value)
    return not isinstance(value, FunctionType) and (is_own(module_of(kind)) or module_of(kind) == "types")


def is_own(module: str) -> bool:
    """Returns True for the name of a module that may be the user's."""
    return is_foreign(module) and module.split(".")[0] not in _LIBRARIES


class _Code:
    """The functions that a model's own classes run, and what they name.

    Attributes:
        words: All names in them.
        globals: The variables among these that are neither functions nor classes: module, name and value.
    """

    def __init__(self, model: nn.Module) -> None:
        self.words: dict[str, None] = {}
        self.globals: list[tuple[str, str, Any]] = []
        self._seen: set[int] = set()
        for module in nn.Module.modules(model):
            for cls in type(module).__mro__:
                self._of(cls)
            hooks = (module._forward_pre_hooks, module._forward_hooks)
            for value in (*vars(module).values(), *(hook for some in hooks for hook in some.values())):
                self._of(unwrapped(value))

    def _of(self, value: Any) -> None:
        """Takes in what a function or a class of the user's names; anything else is neither."""
        pending = [value]
        while pending:
            one = pending.pop()
            if id(one) in self._seen:
                continue
            if isinstance(one, type) and is_own(module_of(one)):
                self._seen.add(id(one))
                pending += map(unwrapped, vars(one).values())
            elif type(one) is FunctionType and is_own(one.__globals__.get("__name__", "")):
                self._seen.add(id(one))
                pending += self._of_function(one)

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        """Takes in what a function names, and returns the functions and classes among that."""
        space = function.__globals__
        module = space["__name__"]
        known = getattr(sys.modules.get(module), "__dict__", None) is space
        for name in _names(function.__code__):
            self.words[name] = None
            value = space.get(name)
            if type(value) is FunctionType or isinstance(value, type):
                yield value
            if known and value is not None and type(value) is not FunctionType:
                self.globals.append((module, name, value))
        yield from (value for value in closed_over(function) if type(value) is FunctionType)


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """Returns the names in a function's code, and in the functions in it."""
    inner = (name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant))
    return tuple(dict.fromkeys((*code.co_names, *inner)))

"""Origins of functions and classes, read off objects that may answer anything, or raise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any


def is_code(value: Any) -> bool:
    """Returns True for a function or a class, by its type alone: an object may pretend to be another."""
    return type(value) is FunctionType or issubclass(type(value), type)


def unwrapped(member: Any) -> Any:
    """Returns the function of a property, or of a static, class or bound method; anything else as it is."""
    kind = type(member)
    if kind is FunctionType or not issubclass(kind, _WRAPPERS):  # most are
        return member
    return member.fget if issubclass(kind, property) else member.__func__


_WRAPPERS = (property, staticmethod, classmethod, MethodType)


def closed_over(function: FunctionType) -> Iterator[Any]:
    """Yields the values that a function closes over."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents


def module_of(value: Any) -> str:
    """Returns the name of the module that a function or class comes from; ``""`` if none, as for generated code."""
    try:
        name = value.__module__
    except AttributeError:  # a metaclass may answer so
        return ""
    return name if isinstance(name, str) else ""


def names_of(module: str) -> dict[str, Any]:
    """Returns the namespace of an imported module; an empty one if what is imported is no real module."""
    found = sys.modules.get(module)
    return found.__dict__ if issubclass(type(found), ModuleType) and found is not None else {}

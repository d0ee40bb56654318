"""Where functions and classes come from: asked of objects that may answer anything, or not at all."""

from __future__ import annotations

import sys
from types import FunctionType, ModuleType
from typing import Any


def is_code(value: Any) -> bool:
    """Whether a value is a function or a class. Its type alone is asked: an object may answer for another one."""
    return type(value) is FunctionType or issubclass(type(value), type)


def module_of(value: Any) -> str:
    """The name of the module that a function or a class says it is of; ``""``: of none, as generated code is.

    Example:
        >>> module_of(dict), module_of(eval("lambda: 0", {}))
        ('builtins', '')
    """
    try:
        name = value.__module__
    except AttributeError:  # a metaclass may answer so
        return ""
    return name if isinstance(name, str) else ""


def names_of(module: str) -> dict[str, Any]:
    """The names in a module that is imported; none where what is imported is no module (something made on demand)."""
    found = sys.modules.get(module)
    return found.__dict__ if issubclass(type(found), ModuleType) and found is not None else {}

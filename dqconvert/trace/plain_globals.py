"""Plain constants that a forward reads from global names: ``ALPHA``, or ``config.ALPHA``.

A graph holds such a number, flag or word as it was. Which global names a forward reads is taken from the code of the
functions that ran, and of those that they name; a later change is an error, as that of an attribute is.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from dqconvert.trace.constants import literal
from dqconvert.trace.globals import is_own
from dqconvert.trace.names import closed_over, unwrapped
from dqconvert.trace.unchanged import ATOMS, Entry


class _Names(NamedTuple):
    """The global names in a function's code.

    Attributes:
        read: Those that it reads, each with the attribute that it takes of it at once, or ``""``.
        written: Those that it sets.
    """

    read: tuple[tuple[str, str], ...]
    written: frozenset[str]


def functions_of(module: nn.Module, names: Iterable[str]) -> Iterator[FunctionType]:
    """Yields the methods of these names of a module's class and its bases: one may call the next by ``super()``."""
    for name in names:
        for value in [vars(module).get(name), *(vars(cls).get(name) for cls in type(module).__mro__)]:
            if (found := _function(value)) is not None:
                yield found


def plain_globals(functions: Iterable[FunctionType]) -> list[Entry]:
    """Returns what must stay among the global names that functions of the user's read.

    Args:
        functions: The functions that ran. What they name is looked at, too; what one of them sets is left out.
    """
    found: dict[tuple[str, str], Any] = {}
    written: set[tuple[str, str]] = set()
    pending, seen = list(functions), set()
    while pending:
        function = pending.pop()
        space = function.__globals__
        module = str(space.get("__name__", ""))
        if id(function) in seen or not is_own(module) or vars(sys.modules.get(module, _NO_MODULE)) is not space:
            continue
        seen.add(id(function))
        names = _names(function.__code__)
        written.update((module, name) for name in names.written)
        for name, attribute in names.read:
            value: Any = space.get(name)
            place = module, name
            if type(value) is ModuleType and attribute and is_own(value.__name__):
                value, place = vars(value).get(attribute), (value.__name__, attribute)
                if vars(sys.modules.get(place[0], _NO_MODULE)).get(attribute) is not value:
                    continue
            if (called := _function(value)) is not None:
                pending.append(called)
            elif place[1] in vars(sys.modules[place[0]]) and _is_plain(value):
                found[place] = value
        pending += [inner for value in closed_over(function) if (inner := _function(value)) is not None]
    return [
        Entry(module, (("attr", name),), "global", literal(value))
        for (module, name), value in found.items()
        if (module, name) not in written
    ]


_NO_MODULE = ModuleType("none")


def _function(value: Any) -> FunctionType | None:
    found = unwrapped(value)
    return found if type(found) is FunctionType else None


def _is_plain(value: Any) -> bool:
    """Returns True for a constant that is equal to itself, and for a tuple of such."""
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return isinstance(literal(value), (float, *ATOMS)) and value == value


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> _Names:
    read: dict[tuple[str, str], None] = {}
    written: set[str] = set()
    steps = list(dis.get_instructions(code))
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.opname == "LOAD_GLOBAL":
            attribute = following is not None and following.opname in ("LOAD_ATTR", "LOAD_METHOD")
            read[str(step.argval), str(following.argval) if attribute and following is not None else ""] = None
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(str(step.argval))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names = _names(inner)
            read |= dict.fromkeys(names.read)
            written |= names.written
    return _Names(tuple(read), frozenset(written))

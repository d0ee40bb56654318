"""Constants that a forward reads from global names: ``ALPHA``, ``config.ALPHA``, ``CFG["alpha"]``, ``args.alpha``.

A graph holds such a number, flag or word as it was. Which global names a forward reads, and what it takes of them, is
read off the code of the functions that ran, and of those that they name; a later change is an error, as that of an
attribute is. Of a collection of which the code does not say what it takes (``CFG[key]``), all constants count.
"""

from __future__ import annotations

import argparse
import dis
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from torch import nn
from torch.fx import Graph

from dqconvert.trace.constants import literal
from dqconvert.trace.globals import is_own
from dqconvert.trace.names import closed_over, module_of, unwrapped
from dqconvert.trace.runtime import unchanged
from dqconvert.trace.unchanged import (
    ATOMS,
    GLOBAL,
    MISSING,
    Condition,
    Reads,
    Step,
    equal,
    frozen,
    global_value,
    global_words,
    reads_of,
)


class _Names(NamedTuple):
    """The global names in a function's code.

    Attributes:
        read: Those that it reads, each with the steps that it takes from there at once.
        written: Those that it sets.
    """

    read: tuple[tuple[str, tuple[Step, ...]], ...]
    written: frozenset[str]


def functions_of(module: nn.Module, names: Iterable[str]) -> Iterator[FunctionType]:
    """Yields the methods of these names of a module's class and its bases: one may call the next by ``super()``."""
    for name in names:
        for value in [vars(module).get(name), *(vars(cls).get(name) for cls in type(module).__mro__)]:
            if (found := _function(value)) is not None:
                yield found


def plain_globals(functions: Iterable[FunctionType]) -> list[Condition]:
    """Returns what must stay among the global names that functions of the user's read.

    Args:
        functions: The functions that ran. What they name is looked at, too; what one of them sets is left out.
    """
    found: dict[Condition, None] = {}
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
        for name, steps in names.read:
            value: Any = space.get(name)
            place = module, name
            if type(value) is ModuleType and steps and is_own(value.__name__):
                place, steps = (value.__name__, str(steps[0][1])), steps[1:]
                value = vars(value).get(place[1])
                if vars(sys.modules.get(place[0], _NO_MODULE)).get(place[1]) is not value:
                    continue
            if (called := _function(value)) is not None:
                pending.append(called)
            elif place[1] in vars(sys.modules[place[0]]) and (entry := _entry(*place, value, steps)) is not None:
                found[entry] = None
        pending += [inner for value in closed_over(function) if (inner := _function(value)) is not None]
    return [entry for entry in found if (entry.path, entry.steps[0][1]) not in written]


def leave_out_changing(graphs: Iterable[Graph]) -> list[str]:
    """Leaves out, in place, what the recorded forwards have changed themselves; returns remarks."""
    nodes = [node for graph in graphs for node in graph.find_nodes(op="call_function", target=unchanged)]
    found = [one for node in nodes for one in reads_of(node).entries if one.kind in GLOBAL]
    changing = {one[:2]: one for one in found if not equal(global_value(one), one.value)}
    for node in nodes if changing else ():
        node.args = (Reads(tuple(one for one in reads_of(node).entries if one[:2] not in changing)),)
    return [f"{global_words(one)}, which the forward changes, is in the graph as it was" for one in changing.values()]


def _entry(module: str, name: str, value: Any, steps: tuple[Step, ...]) -> Condition | None:
    """Returns what must stay of a global name of which code takes a part; ``None`` if nothing is known to."""
    taken: list[Step] = [("attr", name)]
    for step in steps:
        part = MISSING if _is_plain(value) else _part(value, step)
        if part is MISSING:
            break
        value = part
        taken.append(step)
    if _is_plain(value):
        return Condition(module, tuple(taken), "global", literal(value))
    rest = steps[len(taken) - 1 :]
    if (rest and rest[0][1] in _CHANGES) or not isinstance(value, dict | list | tuple | set | frozenset | Namespaces):
        return None
    return Condition(module, tuple(taken), "contents", frozen(value))


Namespaces = SimpleNamespace | argparse.Namespace
"""Objects that are nothing but their attributes."""

_READS = {*dir(tuple), *dir(frozenset), "get", "keys", "values", "items"}
_CHANGES = frozenset(dir(list) + dir(dict) + dir(set)) - _READS
"""Methods that change a collection: what code uses so, it does not read as a setting."""


def _part(value: Any, step: Step) -> Any:
    """Returns a part of a value that no code has to run for; :data:`MISSING` if there is none."""
    kind, key = step
    if kind == "item":
        known = isinstance(value, dict | list | tuple)
        try:
            return value[key] if known else MISSING
        except (LookupError, TypeError):
            return MISSING
    owner = value if isinstance(value, type) else type(value)
    if not isinstance(value, Namespaces) and not is_own(module_of(owner)):
        return MISSING
    found = inspect.getattr_static(value, str(key), MISSING)
    return MISSING if hasattr(type(found), "__get__") else found


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
    read: dict[tuple[str, tuple[Step, ...]], None] = {}
    written: set[str] = set()
    lines = [one for one in dis.get_instructions(code) if one.opname not in ("EXTENDED_ARG", "PUSH_NULL", "NOP")]
    for place, one in enumerate(lines):
        if one.opname == "LOAD_GLOBAL":
            read[str(one.argval), _steps(lines[place + 1 :])] = None
        elif one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(str(one.argval))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names = _names(inner)
            read |= dict.fromkeys(names.read)
            written |= names.written
    return _Names(tuple(read), frozenset(written))


def _steps(lines: list[dis.Instruction]) -> tuple[Step, ...]:
    """Returns the attributes and the constant items that code takes, one of the other, of what it has loaded."""
    found: list[Step] = []
    while lines and (lines[0].opname in ("LOAD_ATTR", "LOAD_METHOD") or _takes_item(lines)):
        of_object = lines[0].opname in ("LOAD_ATTR", "LOAD_METHOD")
        found.append(("attr" if of_object else "item", lines[0].argval))
        lines = lines[1 if of_object else 2 :]
    return tuple(found)


def _takes_item(lines: list[dis.Instruction]) -> bool:
    constant = lines[0].opname in ("LOAD_CONST", "LOAD_SMALL_INT") and isinstance(lines[0].argval, str | int | tuple)
    return constant and len(lines) > 1 and (lines[1].opname == "BINARY_SUBSCR" or lines[1].argrepr == "[]")

"""Schemas of torch's operators, by which the arguments of calls are bound that Python knows no signature of."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.jit._builtins import _find_builtin

from dqconvert.ops import op_named
from dqconvert.trace.constants import literal
from dqconvert.trace.values import plain

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

NUMPYS = {"axis": "dim", "keepdims": "keepdim", "x2": "other"}
"""NumPy's names of parameters, which torch takes as well."""

_FIRST = frozenset(("input", "x", "a", "x1", "self"))
"""Names that torch's functions take for their first parameter."""


@functools.lru_cache(maxsize=4096)
def builtin_name(function: Any) -> str:
    """Returns the name of the operator that a function of torch is; ``""`` if it is none, or is written in Python."""
    name = str(_find_builtin(function) or "")
    return name.removeprefix("aten::") if name.startswith("aten::") and not inspect.isfunction(function) else ""


class _Parameter(NamedTuple):
    """A parameter of a schema: reading one off torch's own takes longer than all that is asked of it."""

    name: str
    type: str
    N: int | None
    kwarg_only: bool
    optional: bool


class _Schema(NamedTuple):
    name: str
    parameters: tuple[_Parameter, ...]


@functools.lru_cache(maxsize=4096)
def schemas(name: str) -> tuple[_Schema, ...]:
    """Returns the schemas of an operator, without the variants that write somewhere else."""
    if not name:
        return ()
    found = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return tuple(
        _Schema(
            schema.name,
            tuple(
                _Parameter(one.name, str(one.type), getattr(one, "N", None), one.kwarg_only, one.has_default_value())
                for one in schema.arguments
            ),
        )
        for schema in found
        if not schema.overload_name.startswith("prim_") and not any(argument.is_out for argument in schema.arguments)
    )


def bind_schema(schema: _Schema, args: tuple[Any, ...], kwargs: dict[str, Any], method: bool) -> Arguments | None:
    """Binds arguments to the parameters of one schema; returns ``None`` if they do not fit it."""
    parameters = schema.parameters
    if method and (not parameters or parameters[0].name != "self"):
        return None
    ordered = [parameter for parameter in parameters if not parameter.kwarg_only]
    given: dict[str, Any] = {}
    rest = list(args)
    for parameter in ordered:
        if not rest:
            break
        if _takes_ints(parameter) and parameter.N is None and all(_is_int(value) for value in rest):
            given[parameter.name], rest = tuple(rest), []  # one number after the other
        else:
            given[parameter.name] = rest.pop(0)
    names = {parameter.name: parameter for parameter in parameters}
    for key, value in kwargs.items():
        name = key
        if name not in names:
            name = ordered[0].name if ordered and key in _FIRST and ordered[0].name in _FIRST else NUMPYS.get(key, key)
            name = "self" if key == "input" and "self" in names else name  # as of torch.where, where it is the second
        if name not in names or name in given:
            return None
        given[name] = value
    if rest or not all(_fits(names[name], value) for name, value in given.items()):
        return None
    if any(p.name not in given and not p.optional for p in parameters):
        return None
    always = op_named(schema.name.removeprefix("aten::")).by_position
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in (one for one in parameters if one.name in given):
        value = _one(parameter, given[parameter.name])
        if parameter.kwarg_only or (parameter.optional and parameter.name not in always):
            named[parameter.name] = value
        else:
            positional.append(value)
    return tuple(positional), named


def _one(parameter: _Parameter, value: Any) -> Any:
    """Returns a list of one dimension as that dimension."""
    single = parameter.N == 1 and _takes_ints(parameter) and isinstance(value, tuple | list) and len(value) == 1
    return value[0] if single else value


def _is_int(value: Any) -> bool:
    value = literal(plain(value))
    return isinstance(value, int) and not isinstance(value, bool)


def _takes_ints(parameter: _Parameter) -> bool:
    return "List[int]" in parameter.type or "List[SymInt]" in parameter.type


def _fits(parameter: _Parameter, value: Any) -> bool:
    """Returns True if a parameter takes a value, as far as that tells schemas apart."""
    kind = parameter.type
    if kind.startswith("Optional["):
        if value is None:
            return True
        kind = kind.removeprefix("Optional[")[:-1]
    value = literal(plain(value))
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return kind in ("int", "Any") and parameter.name in ("dtype", "layout", "memory_format")
    if parameter.name in ("dtype", "layout", "memory_format") and kind == "int":
        return False
    if kind in ("int", "SymInt"):
        return _is_int(value)
    if kind in ("float", "number") and isinstance(value, Tensor):
        return value.dim() == 0
    if kind in _KINDS:
        return isinstance(value, _KINDS[kind])
    if kind.startswith("List["):
        inner = kind.removeprefix("List[")[:-1]
        if not isinstance(value, tuple | list):
            return parameter.N is not None and inner in ("int", "SymInt", "float") and _is_number(value, inner)
        if inner in ("int", "SymInt"):
            return all(_is_int(item) for item in value)
        return all(isinstance(item, Tensor) or item is None for item in value) if "Tensor" in inner else True
    return True


def _is_number(value: Any, kind: str) -> bool:
    return isinstance(value, int | float) if kind == "float" else _is_int(value)


_KINDS: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "bool": (bool,),
    **dict.fromkeys(("float", "number"), (bool, int, float, complex)),
    "str": (str,),
    "Device": (torch.device, str, int),
}
"""Python's types for torch's."""

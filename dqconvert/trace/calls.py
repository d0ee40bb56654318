"""One normal form for each call, however it was spelled: what later passes read off a node never depends on that.

``torch.cat([a, b], axis=1)``, ``torch.concat(tensors=[a, b], dim=1)`` and ``torch.hstack([a, b])`` are all recorded as
``torch.cat([a, b], dim=1)``: aliases get the name that the function is known by, arguments are bound to the parameters
of the function, those without a default are passed by position, all others by keyword. Python functions and modules
have a signature; for the others torch tells the schemas that it binds by itself.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from dqconvert.ops import ALIASES, OPERATORS, op_named
from dqconvert.trace.schemas import NUMPYS, Arguments, bind_schema, builtin_name, schemas


class Call(NamedTuple):
    """A call as a graph holds it.

    Attributes:
        op: ``"call_function"`` or ``"call_method"``.
        target: The function, or the name of the method.
        args: What is passed by position.
        kwargs: What is passed by keyword.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def normal_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Returns the normal form of a call of one of torch's functions or methods.

    Example:
        >>> x = torch.ones(2, 3)
        >>> call = normal_call(torch.concat, (), {"tensors": [x, x], "axis": 1})
        >>> call.target is torch.cat, len(call.args), call.kwargs
        (True, 1, {'dim': 1})
        >>> normal_call(torch.Tensor.swapaxes, (x, 0), {"axis1": 1}).target
        'transpose'
        >>> normal_call(torch.permute, (x,), {"dims": (1, 0)})[:2]
        ('call_method', 'permute')
    """
    target, own = _target(func)
    args, kwargs = _bound(own, args, kwargs)
    if kwargs.get("inplace") is False:
        kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    if target in _STACKS:
        return _stacked(target, args, kwargs)
    if target is torch.embedding and len(args) == 2:
        return _embedding(args, kwargs)
    if target is torch.where and len(args) == 1:
        return Call("call_function", torch.nonzero, args, {"as_tuple": True})
    if target is torch.dropout and len(args) == 3:
        return Call("call_function", nn.functional.dropout, args[:1], {"p": args[1], "training": args[2]})
    if not isinstance(target, str) and op_named(name := builtin_name(target)).as_method and not name.endswith("_"):
        target = name
    if not isinstance(target, str):
        return Call("call_function", target, args, kwargs)
    if op_named(target).spreads and not target.endswith("_") and len(args) == 2 and isinstance(args[1], tuple | list):
        args = (args[0], *args[1])
    if target == "select" and args[1:2] == (0,) and len(args) == 3:
        return Call("call_function", operator.getitem, (args[0], args[2]), {})
    if target == "__getitem__":
        args = (args[0], plain_index(args[1]))
    operands = 1 if target in ("neg", "__invert__") else 2
    if target in OPERATORS and len(args) == operands and not kwargs:
        function, swapped = OPERATORS[target]
        return Call("call_function", function, args[::-1] if swapped else args, {})
    return Call("call_method", target, args, kwargs)


def plain_index(index: Any) -> Any:
    """Returns an index without trailing full slices: ``x[i, :]`` is ``x[i]``.

    Example:
        >>> plain_index((0, slice(None), ...)), plain_index((slice(None), 0)), plain_index(...)
        (0, (slice(None, None, None), 0), Ellipsis)
    """
    if not isinstance(index, tuple):
        return index
    while len(index) > 1 and (index[-1] is ... or (isinstance(index[-1], slice) and index[-1] == slice(None))):
        index = index[:-1]
    return index[0] if len(index) == 1 else index


def bind_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Returns the normal form of the arguments of a Python function, or of a module's ``forward``.

    Example:
        >>> bind_call(nn.Linear(2, 2).forward, (), {"input": 1})
        ((1,), {})
    """
    signature = _signature(getattr(function, "__func__", function))
    if signature is None:
        return args, kwargs
    bound_self = (None,) if inspect.ismethod(function) else ()
    found = _bind_python(signature, (*bound_self, *args), kwargs)
    return (args, kwargs) if found is None else (found[0][len(bound_self) :], found[1])


# -- which function it is ------------------------------------------------------------------------------------------


def _target(func: Any) -> tuple[Any, Any]:
    """Returns a function, or a method's name, under its usual name, and the function that names its arguments."""
    # Functions are equal where they are one in C: `torch.mm`, `torch.spmm` and `torch.dsmm` are.
    return _target_of(torch.mm if func == torch.mm else func, getattr(func, "__name__", ""))


@functools.lru_cache(maxsize=4096)
def _target_of(func: Any, called: str) -> tuple[Any, Any]:
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _of_aten(func)
    qualified = resolve_name(func) or ""
    if qualified.startswith("torch.Tensor."):
        name = qualified.rsplit(".", 1)[1]
        return _alias(name), name
    name = builtin_name(func)
    known = _alias(name)
    return (getattr(torch, known, func) if known != name else func), func


def _alias(name: str) -> str:
    stem, in_place = (name[:-1], "_") if name.endswith("_") and not name.endswith("__") else (name, "")
    return ALIASES.get(stem, stem) + in_place


def _of_aten(func: Any) -> tuple[Any, Any]:
    """Returns torch's own function or method for one of ``torch.ops.aten``; else the operator itself."""
    packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
    space, _, name = str(packet._qualified_op_name).rpartition("::")
    if space != "aten":
        return func, func
    for place in (torch, nn.functional, torch._C._nn):
        found = getattr(place, name, None)
        if builtin_name(found) == name:
            return _target(found)
    return (_alias(name), name) if inspect.ismethoddescriptor(getattr(Tensor, name, None)) else (func, func)


_STACKS: dict[Any, int] = dict(
    zip((torch.hstack, torch.vstack, torch.column_stack, torch.dstack), (1, 0, 1, 2), strict=True)
)


def _stacked(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Stacks of tensors that have the dimension to be joined along."""
    parts, dim = args[0] if args else (), _STACKS[target]
    ndims = {part.dim() for part in parts if isinstance(part, Tensor)} if isinstance(parts, tuple | list) else set()
    least = 2 if target is torch.vstack else dim + 1
    if target is torch.hstack and ndims == {1}:
        least, dim = 1, 0
    if not ndims or min(ndims) < least or kwargs:
        return Call("call_function", target, args, kwargs)
    return Call("call_function", torch.cat, args, {"dim": dim})


def _embedding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Turns ``torch.embedding(weight, indices)`` into ``torch.nn.functional.embedding(indices, weight)``."""
    padding = kwargs.get("padding_idx", -1)
    given: dict[str, Any] = {name: value for name, value in kwargs.items() if name != "padding_idx"}
    given["padding_idx"] = None if padding == -1 else padding
    return Call("call_function", nn.functional.embedding, (args[1], args[0]), given)


# -- binding its arguments -----------------------------------------------------------------------------------------


def _bound(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    function = getattr(Tensor, target, None) if isinstance(target, str) else target
    signature = _signature(function)
    if signature is not None:
        return _bind_python(signature, args, kwargs) or (args, kwargs)
    name = target if isinstance(target, str) else builtin_name(target)
    for schema in schemas(name):
        found = bind_schema(schema, args, kwargs, isinstance(target, str))
        if found is not None:
            return found
    return args, {NUMPYS.get(key, key): value for key, value in kwargs.items()}


@functools.lru_cache(maxsize=4096)
def _signature(function: Any) -> inspect.Signature | None:
    if not inspect.isfunction(function):
        return None
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in found.parameters.values()}
    return None if inspect.Parameter.VAR_POSITIONAL in kinds else found


def _bind_python(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # the call itself says what is wrong
        return None
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= value
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            positional.append(value)
        else:
            named[name] = value
    return tuple(positional), named

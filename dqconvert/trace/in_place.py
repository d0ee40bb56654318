"""Calls that write into their arguments, as calls that return what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dqconvert.ops import OPS, InPlace, op_named, op_of_layer
from dqconvert.trace import runtime
from dqconvert.trace.calls import Call, normal_call, plain_index
from dqconvert.trace.nested import tensors_in
from dqconvert.trace.runtime import ON_COPIES, on_a_copy, setitem

_FROM_RESULT = {op.name: getattr(runtime, op.name) for op in OPS if op.in_place is InPlace.FROM_RESULT}
"""Run on a copy the functions whose gradient is computed from the result where they run in place."""


class Written(NamedTuple):
    """A call that writes.

    Attributes:
        target: The tensor that it writes into.
        call: What returns the tensor's new value.
    """

    target: Tensor
    call: Call


def runs_alike(module: nn.Module) -> bool:
    """Returns True if a module with ``inplace=True`` computes the same values and gradients without, bit for bit."""
    return (op := op_of_layer(module)).known and op.in_place is InPlace.NAMESAKE


def becomes_a_view(name: str) -> bool:
    """Returns True if a method makes a tensor, in place, a view of what it was."""
    return name.endswith("_") and op_named(name).in_place is InPlace.VIEW


def written(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written | None:
    """Returns the tensor that a call writes into and a call that returns the new value; ``None`` if there is none.

    Example:
        >>> import operator
        >>> x = torch.ones(2)
        >>> written(torch.Tensor.add_, "add_", (x, 1), {}).call.target is operator.add
        True
        >>> written(torch.relu_, "relu_", (x,), {}).call.target is torch.relu
        True
        >>> written(nn.functional.relu, "relu", (x,), {"inplace": True}).call.kwargs
        {}
    """
    name = name.removesuffix(".default")
    if name == "__setitem__":
        target, index, value = args
        return Written(target, Call("call_function", setitem, (target, plain_index(index), value), {}))
    if isinstance(kwargs.get("out"), Tensor):
        rest = {key: value for key, value in kwargs.items() if key != "out"}
        return Written(kwargs["out"], normal_call(func, args, rest))
    target = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if target is None:
        return None
    if kwargs.get("inplace") is True:
        if name in _FROM_RESULT:
            rest = {key: value for key, value in kwargs.items() if key != "inplace"}
            return Written(target, Call("call_function", _FROM_RESULT[name], args, rest))
        return Written(target, normal_call(func, args, {**kwargs, "inplace": False}))
    if name.startswith("__i"):
        name = _OPERATORS.get(name, f"__{name[3:]}")
    if not name.endswith("_"):
        return None
    stem = name if name.startswith("__") else name[:-1]
    if stem in _FROM_RESULT:
        return Written(target, Call("call_function", _FROM_RESULT[stem], args, kwargs))
    method = _METHODS.get(name, name)
    always = op_named(method).in_place is InPlace.ON_COPY
    if method in ON_COPIES and (always or not _keeps_dtype(target, (args, kwargs))):
        given = args if args else (target,)
        rest = kwargs if args else {key: value for key, value in kwargs.items() if value is not target}
        return Written(target, Call("call_function", on_a_copy, (method, *given), rest))
    twin = next((found for place in _places(func) if (found := getattr(place, stem, None)) is not None), None)
    return None if twin is None else Written(target, normal_call(twin, args, kwargs))


_OPERATORS = {"__iadd__": "add_", "__isub__": "sub_", "__imul__": "mul_", "__itruediv__": "div_", "__idiv__": "div_"}
_METHODS = {"__pow__": "pow_", "__floordiv__": "floor_divide_", "__mod__": "remainder_"}


def _places(func: Any) -> tuple[Any, ...]:
    """Returns where to look for a function, in order: first beside the one that writes."""
    if getattr(func, "__objclass__", None) is not None:
        return Tensor, torch, functional
    return torch, functional, Tensor


def _keeps_dtype(target: Tensor, arguments: Any) -> bool:
    """Returns True if arithmetic with these arguments has the tensor's own dtype without rounding to it."""
    return all(value.dtype == target.dtype for value in tensors_in(arguments))

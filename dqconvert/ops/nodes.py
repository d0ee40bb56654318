"""What a node of a graph calls, and with which arguments."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dqconvert.ops.record import Op, Storage
from dqconvert.ops.table import OPS, op_named, op_of_function, op_of_layer

if TYPE_CHECKING:
    from torch.fx import Node

OPERATORS: MappingProxyType[str, tuple[Callable[..., Any], bool]] = MappingProxyType(
    {
        method: (getattr(operator, op.operator), method in op.swapped)
        for op in OPS
        for method in (*op.methods, *op.swapped)
    }
)
"""How a tensor's methods are written in the graph: the operator, and whether the operands are swapped."""

_TRANSPOSES = ("T", "mT", "H", "mH")


def op_of(node: Node, layer: object = None) -> Op:
    """The record of what a node calls.

    Args:
        node: Of any graph.
        layer: The module that it calls, if it calls one.

    Returns:
        One that says nothing if there is none, or if the node calls nothing.

    Example:
        >>> import torch
        >>> from torch.fx import Graph
        >>> graph = Graph()
        >>> x = graph.placeholder("x")
        >>> calls = graph.call_method("swapaxes", (x, 0, 1)), graph.call_function(torch.mm, (x, x)), x
        >>> [op_of(node).name for node in calls]
        ['transpose', 'matmul', 'placeholder']
    """
    if node.op == "call_function":
        if node.target is getattr:
            return op_named("t" if node.args[1] in _TRANSPOSES else "getattr")
        return op_of_function(node.target)  # type: ignore[arg-type]
    if node.op == "call_method":
        return op_named(str(node.target))
    return op_of_layer(layer) if layer is not None else op_named(node.op)


def op_name(node: Node) -> str:
    """The short name of what a node calls, the same for functions, methods, operators and in-place variants.

    ``call_module`` nodes give ``"call_module"``: what they call is the module's type.
    """
    return op_of(node).name


def qualified_name(node: Node) -> str:
    """The fx target's qualified name, as rules match it: ``torch.nn.functional.linear``, ``operator.mul``, ``view``."""
    if node.op in ("call_method", "call_module", "get_attr", "placeholder", "output"):
        return str(node.target)
    target = node.target
    module = str(getattr(target, "__module__", None) or "torch")
    name = str(getattr(target, "__qualname__", None) or getattr(target, "__name__", target))
    module = {"_operator": "operator", "torch._C._nn": "torch.nn.functional", "torch._C": "torch"}.get(module, module)
    if name.startswith(("_VariableFunctionsClass.", "_VariableFunctions.")):
        module, name = "torch", name.split(".", 1)[1]
    return f"{module}.{name}"


def argument(node: Node, name: str, default: Any = None) -> Any:
    """An argument of a call by the name of the parameter: given by keyword, or one that the operation's record names.

    Args:
        node: The call.
        name: As torch spells it, the first one ``"input"``.
        default: What it is where it is not given.

    Example:
        >>> import torch
        >>> from torch.fx import Graph
        >>> graph = Graph()
        >>> x = graph.placeholder("x")
        >>> calls = ((([x],),), (([x],), {"dim": 1}), (([x], 2),))
        >>> [argument(graph.call_function(torch.cat, *call), "dim", 0) for call in calls]
        [0, 1, 2]
    """
    if name in node.kwargs:
        return node.kwargs[name]
    names = op_of(node).parameters
    position = names.index(name) if name in names else len(node.args)
    return node.args[position] if position < len(node.args) else default


def storage_of(node: Node) -> Storage:
    """Returns where the result of a call lies; one that writes in place returns the memory of an argument."""
    of_lists = node.target in (operator.add, operator.mul) and any(isinstance(arg, list | tuple) for arg in node.args)
    return Storage.SHARED if of_lists or writes(node) else op_of(node).storage


def writes(node: Node) -> bool:
    """True if a call of a function or method changes one of its arguments in place."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if name == "requires_grad_":  # changes no value
        return False
    from_operator = getattr(node.target, "__module__", "") == "_operator"
    special = name.startswith("__") or from_operator
    return (
        (node.op == "call_function" and op_of(node).writes)
        or (from_operator and name in _IN_PLACE)
        or (special and (name.startswith("__i") or name == "__setitem__") and name not in ("__invert__", "__index__"))
        or (not special and name.endswith("_"))
        or node.kwargs.get("out") is not None
        or not _is_false(node.kwargs.get("inplace", False))
        or (node.op == "call_function" and _asked_in_place(node))
    )


_IN_PLACE = frozenset(
    (
        *("setitem", "delitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
)
"""Of module ``operator``."""


def _asked_in_place(node: Node) -> bool:
    """True if a function of ``torch.nn.functional`` is asked by position to work in place: ``relu(x, True)``."""
    if "inplace" in node.kwargs or getattr(node.target, "__module__", "") != "torch.nn.functional":
        return False
    at = _position_of_inplace(node.target)
    return at is not None and at < len(node.args) and not _is_false(node.args[at])


@functools.lru_cache(maxsize=256)
def _position_of_inplace(function: Callable[..., Any]) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _is_false(flag: Any) -> bool:
    return isinstance(flag, bool | int | None) and not flag

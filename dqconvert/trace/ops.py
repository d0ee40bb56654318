"""One name per operation, however it is written: ``x @ w``, ``x.matmul(w)``, ``torch.matmul(x, w)`` are ``matmul``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import Node

from dqconvert.trace.runtime import store

# How Tensor's special methods are written in the graph: the operator, and whether the operands are swapped.
OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "add": (operator.add, False),
    "sub": (operator.sub, False),
    "mul": (operator.mul, False),
    "div": (operator.truediv, False),
    "true_divide": (operator.truediv, False),
    "neg": (operator.neg, False),
    "matmul": (operator.matmul, False),
    "__pow__": (operator.pow, False),
    "__floordiv__": (operator.floordiv, False),
    "__mod__": (operator.mod, False),
    "remainder": (operator.mod, False),
    "__rsub__": (operator.sub, True),
    "__rtruediv__": (operator.truediv, True),
    "__rdiv__": (operator.truediv, True),
    "__rpow__": (operator.pow, True),
    "__rfloordiv__": (operator.floordiv, True),
    "__rmod__": (operator.mod, True),
    "__rmatmul__": (operator.matmul, True),
    "__eq__": (operator.eq, False),
    "ne": (operator.ne, False),
    "lt": (operator.lt, False),
    "le": (operator.le, False),
    "gt": (operator.gt, False),
    "ge": (operator.ge, False),
    "__and__": (operator.and_, False),
    "__or__": (operator.or_, False),
    "__xor__": (operator.xor, False),
    "__invert__": (operator.invert, False),
    "__getitem__": (operator.getitem, False),
}

_SHORT = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "iadd": "add",
    "imul": "mul",
    "isub": "sub",
    "itruediv": "div",
    "mv": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "absolute": "abs",
    "concat": "cat",
    "concatenate": "cat",
    "getitem": "getitem",
}


def op_name(node: Node) -> str:
    """The short name of what a node calls, the same for functions, methods, operators and in-place variants.

    ``call_module`` nodes give ``"call_module"``: what they call is the module's type.
    """
    if node.op == "call_module":
        return "call_module"
    if node.op == "call_method":
        name = str(node.target)
    elif node.target is getattr:
        return "t" if node.args[1] in ("T", "mT", "H", "mH") else "getattr"
    elif node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
    else:
        return node.op
    if name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    name = name.strip("_")
    return _SHORT.get(name, name)


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


_PARAMETERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cat", "stack"), ("tensors", "dim")),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "prod", "std", "var"), ("input", "dim", "keepdim", "dtype")),
    **dict.fromkeys(("chunk", "split"), ("input", "split_size", "dim")),
    **dict.fromkeys(("squeeze", "unsqueeze", "softmax"), ("input", "dim")),
    **dict.fromkeys(("select", "index_select", "gather"), ("input", "dim", "index")),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"), ("input", "p", "training")
    ),
    "unbind": ("input", "dim"),
    "flatten": ("input", "start_dim", "end_dim"),
    "narrow": ("input", "dim", "start", "length"),
    "linear": ("input", "weight", "bias"),
    "embedding": ("input", "weight", "padding_idx", "max_norm"),
}
"""By :func:`op_name`: the names of parameters in their order, for calls that were not brought into normal form."""


def argument(node: Node, name: str, default: Any = None) -> Any:
    """An argument of a call by the name of the parameter: one of the functions in a table here, or given by keyword.

    Args:
        node: The call.
        name: As :mod:`dqconvert.trace.calls` spells it.
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
    names = _PARAMETERS.get(op_name(node), ())
    position = names.index(name) if name in names else len(node.args)
    return node.args[position] if position < len(node.args) else default


_IN_PLACE: frozenset[Callable[..., Any]] = frozenset(
    (
        operator.setitem,
        operator.delitem,
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
        operator.ipow,
        operator.imatmul,
        operator.iand,
        operator.ior,
        operator.ixor,
        operator.ilshift,
        operator.irshift,
        store,
    )
)


def writes(node: Node) -> bool:
    """Whether a call of a function or method changes one of its arguments in place."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    special = name.startswith("__") or getattr(node.target, "__module__", "") == "_operator"
    if name == "requires_grad_":  # changes no value
        return False
    return (
        node.target in _IN_PLACE
        or (special and (name.startswith("__i") or name == "__setitem__") and name not in ("__invert__", "__index__"))
        or (not special and name.endswith("_"))
        or node.kwargs.get("out") is not None
        or node.kwargs.get("inplace") is True
        # `torch.nn.functional.relu(x, True)`
        or (node.op == "call_function" and _functional(node.target) and any(a is True for a in node.args))
    )


def _functional(target: Any) -> bool:
    return getattr(target, "__module__", "") == "torch.nn.functional"

"""Caching modules: one for all calls that probably compute the same of the same edges.

Each checks its arguments, so two calls that share one and differ cost time, not correctness.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Node

from dqconvert.fuse.context import Context
from dqconvert.ops import op_of
from dqconvert.rewrite.place import attach, container_name
from dqconvert.trace.note import note_of


def memo(context: Context, name: str, key: Any, make: Callable[[], nn.Module]) -> str:
    """Returns the path of the module that caches the results for a key.

    Args:
        context: Its ``root`` gets the module where it has none of that path yet, from an earlier fusing.
        name: What the path is to say.
        key: From :func:`origin`, equal for calls that probably ask for the same.
    """
    if key not in context.memos:
        path = f"{container_name(context.root)}.{name}{context.tag}_{len(context.memos)}"
        if path not in context.modules:
            context.modules[path] = make()
            attach(context.root, path, context.modules[path])
        context.memos[key] = path
    return context.memos[key]


def origin(value: Any) -> Any:
    """Returns a structural key: equal for nodes that probably hold the same; that is verified at run time."""
    if isinstance(value, slice):
        return "slice", origin(value.start), origin(value.stop), origin(value.step)
    if isinstance(value, dict):
        return tuple((name, origin(item)) for name, item in value.items())
    if not isinstance(value, Node):
        return tuple(map(origin, value)) if isinstance(value, tuple | list) else value
    if value.target is getattr and value.args[1] == "dtype":
        return "dtype", note_of(value.args[0]).dtype if isinstance(value.args[0], Node) else None
    if value.target is operator.getitem or (value.op == "call_function" and op_of(value).of_graph):
        kwargs = tuple((name, origin(item)) for name, item in sorted(value.kwargs.items()))
        return value.target, tuple(map(origin, value.args)), kwargs
    return size_of(value)


def size_of(value: Any) -> Any:
    """Returns the dimension that a size is read off, so that two nodes that read the same one count as one."""
    if isinstance(value, Node) and op_of(value).name == "size":
        source, dim = value.args
        if isinstance(source, Node) and isinstance(dim, int) and note_of(source).sizes:
            return tuple(shape[dim] for shape in note_of(source).sizes)
    return value

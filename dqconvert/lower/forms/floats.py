"""Nodes that stay as they are, in float."""

from __future__ import annotations

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.lower.lowering import Lowering
from dqconvert.lower.report import Float
from dqconvert.lower.values import Plain, Value
from dqconvert.trace.names import module_of
from dqconvert.trace.note import note_of


def keep_differentiated(lowering: Lowering, node: Node) -> Value | None:
    """Keeps a node through which the forward itself takes a gradient: codes have none."""
    return keep(lowering, node, "its gradient is taken in the forward") if node in lowering.differentiated else None


def keep(lowering: Lowering, node: Node, reason: str = "it has no integer form here") -> Value:
    """Keeps any node, on float values, and reports it if its value is a float."""
    args, kwargs = lowering.plain_arguments(node)
    if node.op == "call_module":
        module = lowering.context.modules[str(node.target)]
        lowering.program.module(str(node.target), module)
        if not module_of(type(module)).startswith("torch.nn."):
            args, kwargs = map_arg((args, kwargs), lambda value: _own(lowering, value))
    new = lowering.program.copy(node, args, kwargs)
    if note_of(node).is_float and node.op != "output":
        lowering.floats[new] = Float.of(node, reason)
    return Plain(new)


def _own(lowering: Lowering, value: Node) -> Node:
    """Returns a copy of a value that was made here, for a user's module, which may write into it."""
    note = note_of(value)
    return lowering.program.call(torch.clone, (value,), note) if note.is_float and value.op != "placeholder" else value

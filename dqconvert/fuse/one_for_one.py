"""Replaces functions and modules by counterparts of ours, one for one, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.fx import Node

from dqconvert.fuse.context import Context
from dqconvert.fuse.memos import memo, origin
from dqconvert.ops import OURS, TORCH, op_of, op_of_layer
from dqconvert.quant.fused import batch_norm, dropout, linear, scale_rows
from dqconvert.quant.memo import Remembered
from dqconvert.trace.note import annotate, note_of

_STAND_INS: Mapping[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {(TORCH, "linear"): linear, (TORCH, "dropout"): dropout, (OURS, "scale_rows"): scale_rows}
)
"""Functions that have a counterpart with the same results, by the package and name of their operation."""


def put_stand_ins(context: Context) -> None:
    """Replaces functions, and the modules of dropout and batch norm, by their counterparts."""
    for node in list(context.graph.nodes):
        if any(note_of(value).sparse for value in node.all_input_nodes):  # features as a sparse matrix: torch's affair
            continue
        op, layer = op_of(node), context.plain_module(node)
        if node.op == "call_function" and (op.package, op.name) in _STAND_INS:
            node.target = _STAND_INS[op.package, op.name]
        elif op_of_layer(layer).name == "dropout":
            _open_dropout(context, node)
        elif type(layer) is nn.BatchNorm1d and len(node.args) == 1 and not node.kwargs:
            with context.graph.inserting_before(node):
                module = context.graph.get_attr(str(node.target))
                new = context.graph.call_function(batch_norm, (node.args[0], module))
            node.replace_all_uses_with(annotate(new, note_of(node)))
            context.graph.erase_node(node)


def drop_identities(context: Context) -> None:
    """Erases calls of modules that do nothing (PyG's models have them for norms), so that what they part is fused."""
    for node in list(context.graph.nodes):
        if type(context.plain_module(node)) is nn.Identity and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            context.graph.erase_node(node)


def _open_dropout(context: Context, node: Node) -> None:
    """Replaces the module by the function, with its probability and mode read at each call: both may change later."""
    graph = context.graph
    with graph.inserting_before(node):
        p, training = (graph.get_attr(f"{node.target}.{name}") for name in ("p", "training"))
        new = graph.call_function(dropout, (node.args[0], p, training))
    node.replace_all_uses_with(annotate(new, note_of(node)))
    graph.erase_node(node)


def remember(context: Context) -> None:
    """Caches the results of functions of the edges alone, for the graph often stays the same."""
    paths = {
        node: memo(context, f"remembered_{op_of(node).name}", origin(node), partial(Remembered, node.target))
        for node in context.graph.nodes
        if node.op == "call_function" and op_of(node).of_graph and _of_the_graph_alone(node)
    }
    # Not before all have their paths: where a value comes from is read off the functions.
    for node, path in paths.items():
        node.op, node.target = "call_module", path


def _of_the_graph_alone(node: Node) -> bool:
    tensors = [note_of(n) for n in node.all_input_nodes if note_of(n).is_tensor]
    return not any(note.is_float or note.sparse for note in tensors)

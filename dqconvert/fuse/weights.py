"""Quantizes small weights, each with its own quantizer, in one operator: calls would cost more than the work."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import nn
from torch.fx import Node

from dqconvert.fuse.context import Context, groups_of, protection_of
from dqconvert.quant.fused import weights
from dqconvert.report import Fusion
from dqconvert.trace.note import annotate, note_of

MOST = 1 << 16
"""Values from which a weight is worth an operator of its own."""


def fuse_weights(context: Context) -> None:
    """Replaces the calls of quantizers on small parameters by one of :func:`dqconvert.quant.fused.weights`.

    Each is called once, however often its weight is used. A group ends where the graph writes in place.
    """
    groups: list[list[Node]] = []
    for node in [node for node in context.graph.nodes if _of_a_small_parameter(context, node)]:
        if groups and context.undisturbed((groups[-1][-1], node)):
            groups[-1].append(node)
        else:
            groups.append([node])
    for group in groups:
        if len(group) > 1:
            _write(context, group)


def _of_a_small_parameter(context: Context, node: Node) -> bool:
    if not context.is_quantizer(node) or protection_of(node) is not None or groups_of(node) is not None:
        return False
    (value,) = node.all_input_nodes
    if value.op != "get_attr":
        return False
    path, _, name = str(value.target).rpartition(".")
    parameter = getattr(context.root.get_submodule(path), name, None)
    return isinstance(parameter, nn.Parameter) and parameter.numel() < MOST


def _write(context: Context, group: Sequence[Node]) -> None:
    graph, first = context.graph, group[0]
    with graph.inserting_before(first):
        values = tuple(annotate(graph.get_attr(str(value.target)), note_of(value)) for value in map(_only_input, group))
        quantizers = tuple(graph.get_attr(str(node.target)) for node in group)
        new = graph.call_function(weights, (values, quantizers))
        for place, node in enumerate(group):
            one = annotate(graph.call_function(operator.getitem, (new, place)), note_of(node))
            node.replace_all_uses_with(one)
    for node in group:
        value = _only_input(node)
        graph.erase_node(node)
        if not value.users:
            graph.erase_node(value)
    names = tuple(node.name for node in group)
    context.fusions[new] = Fusion(op="weights", quantizers=tuple(str(node.target) for node in group), nodes=names)


def _only_input(node: Node) -> Node:
    (value,) = node.all_input_nodes
    return value

"""A GCN norm on the nodes: the numbers that rows are multiplied by are part of the epilogue that makes their codes."""

from __future__ import annotations

import torch
from torch.fx import Node

from dqconvert.lower.lowering import Lowering
from dqconvert.lower.values import Codes, GroupCodes, Plain, Value
from dqconvert.rewrite.norms import node_norm, scale_rows
from dqconvert.trace.note import note_of


def lower_node_norm(lowering: Lowering, node: Node) -> Value | None:
    """Keeps the norm of the nodes, which follows from the graph alone, in the type that it had."""
    if node.target is not node_norm:
        return None
    edges, num_nodes, flow, _ = map(lowering.plain, node.args)
    return Plain(lowering.program.copy(node, (edges, num_nodes, flow, note_of(node).dtype or torch.float32), {}))


def lower_scaled_rows(lowering: Lowering, node: Node) -> Value | None:
    """Takes rows that are scaled as the epilogue before has made them."""
    source = node.args[0] if node.args else None
    if node.target is not scale_rows or not isinstance(source, Node) or source not in lowering.scaled:
        return None
    value = lowering.values[source]
    return value if isinstance(value, Codes | GroupCodes) else None

"""What depends on the graph alone, by the fastest way there is to compute it for a new one."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.lower.runtime import check_edges, in_edge_order
from dqconvert.ops import op_of
from dqconvert.trace.note import annotate, note_of

_NORM = inspect.signature(gcn_norm)


def one_dtype(graph: Graph) -> None:
    """Norms are computed in the type that they had when the model was traced, not in that of the first layer's rows.

    They are rounded to codes anyway, and so all layers share one.

    Args:
        graph: An integer graph.
    """
    for node in list(graph.nodes):
        dtype = note_of(node.args[0]).dtype if node.target is getattr and isinstance(node.args[0], Node) else None
        if dtype is not None and node.args[1] == "dtype" and all(op_of(user).of_graph for user in node.users):
            for user in list(node.users):
                user.args = tuple(dtype if arg is node else arg for arg in user.args)
                user.kwargs = {name: dtype if arg is node else arg for name, arg in user.kwargs.items()}


def order_norms(graph: Graph) -> None:
    """Sums of messages whose weights are a GCN's norm, and codes: the norm is computed edge by edge, in order.

    Args:
        graph: An integer graph.
    """
    for node in list(graph.nodes):
        if node.target is receiver_order and (norm := _normed(node)) is not None:
            _order_norm(graph, node, norm)


def _normed(order: Node) -> Node | None:
    """The norm whose edges, unweighted, a call puts in order."""
    sender, receiver, num_source, num_target = order.args
    ends = _part(sender, 0)
    norm = _part(ends, 0)
    if norm is None or norm.target is not gcn_norm or num_source is not num_target:
        return None
    if _part(receiver, 1) is not ends and not _alike(_part(receiver, 1), ends):
        return None
    given = _given(norm)
    plain = given["edge_weight"] is None and given["flow"] == "source_to_target" and given["dtype"] is torch.float32
    of_all = given["num_nodes"] is num_source and isinstance(given["add_self_loops"], bool)
    edges = given["edge_index"]
    known = isinstance(edges, Node) and edges.target is check_edges
    return norm if plain and of_all and known and all(_weighs(user, norm) for user in _positions(order)) else None


def _given(norm: Node) -> dict[str, Any]:
    bound = _NORM.bind(*norm.args, **norm.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _part(value: object, k: int) -> Node | None:
    """What a node takes its part number ``k`` from, if it does."""
    if isinstance(value, Node) and value.target is operator.getitem and value.args[1] == k:
        source = value.args[0]
        return source if isinstance(source, Node) else None
    return None


def _alike(one: Node | None, other: Node | None) -> bool:
    """Whether two nodes are the same part of the same."""
    return one is not None and other is not None and one.target is other.target and one.args == other.args


def _positions(order: Node) -> list[Node]:
    """Who asks where the edges were in the list."""
    parts = [user for user in order.users if user.target is operator.getitem and user.args[1] == 2]
    return [user for part in parts for user in part.users]


def _weighs(user: Node, norm: Node) -> bool:
    """Whether a node puts codes of the weights in order, one column of them."""
    if user.op != "call_method" or user.target != "index_select" or user.args[1] != 0:
        return False
    codes = user.args[0]
    quantized = isinstance(codes, Node) and codes.target is quantize and not codes.kwargs.get("packed")
    if not quantized or _part(codes.args[0], 1) is not norm:  # type: ignore[union-attr]
        return False
    return all(column.op == "call_method" and column.target == "unsqueeze" for column in user.users)


def _order_norm(graph: Graph, order: Node, norm: Node) -> None:
    given = _given(norm)
    with graph.inserting_after(order):
        args = (given["edge_index"], given["num_nodes"])
        found = graph.call_function(gcn_order, args, {"loops": given["add_self_loops"]})
    with graph.inserting_after(found):
        parts = [graph.call_function(operator.getitem, (found, k)) for k in range(3)]
    for part in [user for user in order.users if user.args[1] in (0, 1)]:
        part.replace_all_uses_with(parts[int(part.args[1])])  # type: ignore[arg-type]
    for weights in _positions(order):
        codes = weights.args[0]
        assert isinstance(codes, Node)
        for column in list(weights.users):
            with graph.inserting_before(column):
                new = graph.call_function(gcn_codes, (*parts, codes.args[1]))
            column.replace_all_uses_with(annotate(new, note_of(column)))
    for ends in [user for user in norm.users if user.args[1] == 0]:
        for size in [user for user in ends.users if user.target == "size" and user.args[1:] == (0,)]:
            size.replace_input_with(ends, given["edge_index"])  # both are [2, edges]


def join_orders(graph: Graph) -> None:
    """Takes in the order of the receivers, in place, what was in that order before it was put in that of the list."""
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "index_select" and node.args[1] == 0:
            listed = node.args[0]
            if isinstance(listed, Node) and listed.target is in_edge_order and listed.args[1] is node.args[2]:
                node.replace_all_uses_with(listed.args[0])
                graph.erase_node(node)


def look_once(graph: Graph) -> None:
    """What nobody wants is not computed: positions of edges, and whether there are nodes that a sort would miss, too.

    Args:
        graph: An integer graph without unused nodes.
    """
    for node in list(graph.nodes):
        if node.target is receiver_order and not _positions(node):
            node.kwargs = {**node.kwargs, "positions": False}
    for node in list(graph.nodes):
        if node.target is check_edges and all(_checks(user, node) for user in node.users):
            node.kwargs = {**node.kwargs, "ends": False}


def _checks(user: Node, edges: Node) -> bool:
    """Whether a node looks itself whether the nodes are there, or does not care."""
    if user.target is gcn_order:
        return user.args[1] is edges.args[1]
    if user.op == "call_method":
        return user.target == "size"
    sizes = [edges.args[1]] * 2
    return user.target is operator.getitem and all(
        order.target is receiver_order and list(order.args[2:]) == sizes and order.args[:2].count(user) == 1
        for order in user.users
    )

"""Orders of edges and norms: computed once for all layers, in the order in which messages are summed."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.lower.patterns import part_of, same, taken
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import check_edges, in_edge_order
from dqconvert.ops import op_of
from dqconvert.trace.note import annotate, note_of

_NORM = inspect.signature(gcn_norm)


def pin_norms(program: Program) -> Program:
    """Computes norms in the dtype that they had when the model was traced, not in that of a layer's rows.

    They are rounded to codes anyway, and so all layers share one.
    """
    for node in list(program.graph.nodes):
        dtype = note_of(node.args[0]).dtype if node.target is getattr and isinstance(node.args[0], Node) else None
        if dtype is not None and node.args[1] == "dtype" and all(op_of(user).of_graph for user in node.users):
            for user in list(node.users):
                user.args = tuple(dtype if arg is node else arg for arg in user.args)
                user.kwargs = {name: dtype if arg is node else arg for name, arg in user.kwargs.items()}
    return program


def order_norms(program: Program) -> Program:
    """Computes the codes of a GCN's norm edge by edge, in the order in which messages are summed."""
    for node in list(program.graph.nodes):
        if node.target is receiver_order and (norm := _normed(node)) is not None:
            _order_norm(program.graph, node, norm)
    return program


def _normed(order: Node) -> Node | None:
    """Returns the norm whose edges, unweighted, a call puts in order; None if it is not all that the order is for."""
    sender, receiver, num_source, num_target = order.args
    ends = part_of(sender, 0)
    norm = part_of(ends, 0)
    if norm is None or norm.target is not gcn_norm or num_source is not num_target:
        return None
    if not same(part_of(receiver, 1), ends):
        return None
    given = _given(norm)
    plain = given["edge_weight"] is None and given["flow"] == "source_to_target" and given["dtype"] is torch.float32
    of_all = given["num_nodes"] is num_source and isinstance(given["add_self_loops"], bool)
    edges = given["edge_index"]
    known = isinstance(edges, Node) and edges.target is check_edges
    return norm if plain and of_all and known and all(_weighs(user, norm) for user in _positions(order)) else None


def _given(norm: Node) -> dict[str, Any]:
    """Returns the arguments of a norm by name, defaults included."""
    bound = _NORM.bind(*norm.args, **norm.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _positions(order: Node) -> list[Node]:
    """Returns the nodes that read where the edges were in the list."""
    parts = [user for user in order.users if user.target is operator.getitem and user.args[1] == 2]
    return [user for part in parts for user in part.users]


def _weighs(user: Node, norm: Node) -> bool:
    """True if a node only puts the codes of a norm in order, one column of them."""
    codes, _ = taken(user) or (None, None)
    if codes is None or codes.target is not quantize or codes.kwargs.get("packed"):
        return False
    return part_of(codes.args[0], 1) is norm and all(
        column.op == "call_method" and column.target == "unsqueeze" for column in user.users
    )


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


def cancel_orders(program: Program) -> Program:
    """Cancels a permutation followed by its inverse: from the order of the receivers to that of the list, and back."""
    for node in list(program.graph.nodes):
        listed, order = taken(node) or (None, None)
        if listed is not None and listed.target is in_edge_order and listed.args[1] is order:
            node.replace_all_uses_with(listed.args[0])
            program.graph.erase_node(node)
    return program


def drop_checks(program: Program) -> Program:
    """Drops results that nobody reads: positions of edges, and checks of edges that the sort makes, too."""
    for node in list(program.graph.nodes):
        if node.target is receiver_order and not _positions(node):
            node.kwargs = {**node.kwargs, "positions": False}
        elif node.target is check_edges and all(_checks(user, node) for user in node.users):
            node.kwargs = {**node.kwargs, "ends": False}
    return program


def _checks(user: Node, edges: Node) -> bool:
    """True if a node checks itself that both ends of each edge exist, or needs no check."""
    if user.target is gcn_order:
        return user.args[1] is edges.args[1]
    if user.op == "call_method":
        return user.target == "size"
    sizes = [edges.args[1]] * 2
    return user.target is operator.getitem and all(
        order.target is receiver_order and list(order.args[2:]) == sizes and order.args[:2].count(user) == 1
        for order in user.users
    )

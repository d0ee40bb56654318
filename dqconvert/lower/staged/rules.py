"""What the rows of each value are, found node by node: the first rule that applies says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops

from dqconvert.kernels.integer.attention import attention_codes, attention_sums, softmax_codes
from dqconvert.kernels.integer.edge_products import edge_products
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.lower.runtime import check_edges, group_order, in_edge_order
from dqconvert.lower.staged import alike, along
from dqconvert.lower.staged.kinds import Kind, Whole, is_argument
from dqconvert.lower.staged.rows import Rows
from dqconvert.ops import op_of, writes
from dqconvert.quant import groups_of_nodes
from dqconvert.rewrite.norms import node_norm

Rule = Callable[[Rows, Node], Kind | None]

_OF_TARGETS: dict[Any, Rule] = {
    check_edges: lambda known, node: known.kind(node.args[0]),
    receiver_order: along.sorting,
    group_order: along.sorting_groups,
    gcn_order: along.gcn_sorting,
    gcn_codes: along.gcn_weighing,
    integer_propagate: along.propagating,
    attention_codes: along.attending,
    attention_sums: along.attending,
    softmax_codes: along.softening,
    in_edge_order: along.listing_again,
    edge_products: along.multiplying,
    groups_of_nodes: along.grouping,
    node_norm: along.norming,
    remove_self_loops: along.looping,
    add_self_loops: along.looping,
    add_remaining_self_loops: along.looping,
}

_OTHERS: tuple[Rule, ...] = (
    along.picking,
    alike.numbering,
    alike.going_row_by_row,
    along.reducing,
    alike.following_from_edges,
)


def rows_of(graph: Graph, root: nn.Module) -> Rows:
    """Returns what the rows of each value of a graph are, and marks in it where rows of other nodes are read.

    Args:
        graph: From :func:`dqconvert.lower.staged.unfold.unfolded`.
        root: The module that it is of.

    Raises:
        LoweringError: For an operation that may read other rows in a way that is not known.
    """
    known = Rows(graph, root)
    for node in list(graph.nodes):
        if node.op != "output":
            known.kinds[node] = _kind(known, node)
    for pick in known.picks:
        known.mark_pick(*pick)
    return known


def _kind(known: Rows, node: Node) -> Kind:
    if node.op == "get_attr" or op_of(node).checks:
        return Whole()
    if is_argument(node):
        return known.of_whole(node)
    if writes(node):
        raise known.refuse(node, "it changes a value in place")
    rule = _OF_TARGETS.get(node.target)
    for find in (rule, *_OTHERS):
        found = find(known, node) if find is not None else None
        if found is not None:
            return found
    product = op_of(node, known.layer(node)).product
    float_product = "the last bits of a product in float may depend on the number of rows"
    raise known.refuse(node, float_product if product else "it may read the rows of other nodes")

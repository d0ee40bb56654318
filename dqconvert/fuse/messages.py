"""Fuses message passing: gather, product with an edge weight, quantizer of the message, aggregation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from dqconvert.fuse.context import Context, groups_of, only_user, protection_of
from dqconvert.fuse.memos import memo, origin, size_of
from dqconvert.ops import Moves, op_of, op_of_layer
from dqconvert.quant import gather_protected, groups_of_edges
from dqconvert.quant.fused_messages import message_passing
from dqconvert.quant.memo import EdgeOrders
from dqconvert.rewrite.connectivity import Gather, end_of_edges, gather
from dqconvert.rewrite.derive import Size
from dqconvert.rewrite.dropouts import drop_messages
from dqconvert.trace.note import annotate, note_of

_REDUCTIONS = ("sum", "mean", "max")
"""What there is an operator for."""


def fuse_messages(context: Context) -> None:
    """Replaces gather, product, quantizer and aggregation by :func:`dqconvert.quant.fused_messages.message_passing`.

    Messages are then never all in memory. Only those of the form ``x_j`` or ``w * x_j`` whose quantizer has the
    protection of the nodes that send; others stay as they are.
    """
    orders: dict[Any, Node] = {}
    for node in list(context.graph.nodes):
        found = matched(context, node) if context.is_quantizer(node) else None
        # A maximum knows no groups: that of the products of a quantizer of its own is computed as it stands.
        known = found is not None and (
            found.groups is None or (found.how != "max" and found.message.weight is not None)
        )
        if found is not None and known and context.undisturbed(found.nodes):
            context.replace(found.nodes, _written(context, found, orders), "message passing")


@dataclass(frozen=True)
class Message:
    """The nodes that compute a message.

    Attributes:
        gather: Of the senders' rows.
        weight: What they are multiplied by; ``None``: nothing.
        nodes: From the gather to the message.
    """

    gather: Gather
    weight: Node | None
    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """The nodes of one message passing, which become one operator.

    Attributes:
        message: What is sent.
        quantize: The call of its quantizer.
        protected: Which senders are protected; ``None``: none is.
        groups: The groups of in-degrees of the nodes that receive, if messages have the range of theirs.
        aggregate: The sum, mean or maximum.
        receiver: The other ends of the edges.
        num_nodes: How many nodes receive.
        how: Which of these.
        drop: The call that drops messages by their coefficients, before they are aggregated; ``None``: none are.
    """

    message: Message
    quantize: Node
    protected: Any
    groups: Any
    aggregate: Node
    receiver: Node
    num_nodes: Any
    how: str
    drop: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in order."""
        drop = () if self.drop is None else (self.drop,)
        return *self.message.nodes, self.quantize, *drop, self.aggregate


# -- finding them ------------------------------------------------------------------------------------------------


def matched(context: Context, quantize: Node, *, shared: bool = False) -> Propagation | None:
    """Returns the group around the call of a quantizer; ``None`` if it is none that the operator computes.

    Args:
        shared: Whether the gathered rows may serve something else, too: then they are not saved.
    """
    aggregate, product, drop = only_user(quantize), quantize.args[0], None
    if aggregate is not None and aggregate.target is drop_messages:
        aggregate, drop = only_user(aggregate), aggregate
    layer = None if aggregate is None else context.plain_module(aggregate)
    how = op_of_layer(layer).reduces
    message = _message(product, shared) if isinstance(product, Node) else None
    if aggregate is None or how not in _REDUCTIONS or message is None:
        return None
    taken = message.gather
    receiver = aggregate.kwargs.get("index", aggregate.args[1] if len(aggregate.args) > 1 else None)
    if taken.dim != 0 or not isinstance(receiver, Node) or note_of(taken.edge_index).sparse:
        return None
    if end_of_edges(receiver) != (taken.edge_index, 1 - taken.row):
        return None
    ptr, size, dim = (aggregate.kwargs.get(name) for name in ("ptr", "dim_size", "dim"))
    if ptr is not None or size is None or dim not in (0, -note_of(message.nodes[-1]).ndim):
        return None
    if drop is not None and (how == "max" or not _drops_weights(drop, message.weight)):
        return None
    mask = protection_of(quantize)
    if mask is not None and not _is_of_ends(mask, gather_protected, taken, taken.row):
        return None
    groups = groups_of(quantize)
    if groups is not None and not _is_of_ends(groups, groups_of_edges, taken, 1 - taken.row):
        return None
    return Propagation(
        message=message,
        quantize=quantize,
        protected=None if mask is None else mask.args[0],
        groups=None if groups is None else groups.args[0],
        aggregate=aggregate,
        receiver=receiver,
        num_nodes=size,
        how=how,
        drop=drop,
    )


def _drops_weights(drop: Node, weight: Node | None) -> bool:
    """True if messages are dropped by numbers of which each weight has one."""
    like = drop.args[1]
    return weight is not None and isinstance(like, Node) and note_of(like).sizes == note_of(weight).sizes


def _message(message: Node, shared: bool) -> Message | None:
    """Returns the nodes of a message; ``None`` if it is not ``x_j``, or ``x_j`` times a weight of its edge."""
    if (taken := gather(message)) is not None:
        return Message(taken, None, (message,))
    if op_of(message).name != "mul" or len(message.args) != 2:
        return None
    for rows, factor in (message.args, message.args[::-1]):
        if not isinstance(rows, Node) or not isinstance(factor, Node) or (taken := gather(rows)) is None:
            continue
        if (len(rows.users) > 1 and not shared) or note_of(rows).sizes != note_of(message).sizes:
            continue
        weight = _per_edge(factor, note_of(message).sizes)
        if weight is not None:
            return Message(taken, weight, (rows, message) if weight is factor else (rows, factor, message))
    return None


def _per_edge(factor: Node, sizes: tuple[Size, ...]) -> Node | None:
    """Returns the weights, ``[E]`` or ``[E, heads]``, behind a factor that is broadcast over a message's channels."""
    shape = note_of(factor).sizes
    spread = tuple((*size[:-1], 1) for size in sizes)
    if shape != spread:
        return None
    if op_of(factor).moves is Moves.RESHAPE and isinstance(factor.args[0], Node):
        inner = factor.args[0]
        if note_of(inner).sizes == tuple(size[:-1] for size in sizes):
            return inner
    return factor


def _is_of_ends(value: Any, function: Callable[..., Any], taken: Gather, row: int) -> bool:
    """True if a function gave each message what the node at one end of its edge has."""
    if not isinstance(value, Node) or value.target is not function:
        return False
    index = value.args[1]
    return isinstance(index, Node) and end_of_edges(index) == (taken.edge_index, row)


# -- writing them ------------------------------------------------------------------------------------------------


def _written(context: Context, found: Propagation, orders: dict[Any, Node]) -> Node:
    """Writes the call of the operator, before the aggregation.

    Args:
        orders: The calls that group edges, by which: one serves all layers of a graph.
    """
    graph, taken, receiver = context.graph, found.message.gather, found.receiver
    with graph.inserting_before(found.aggregate):
        senders = graph.call_method("size", (taken.source, 0))
        by_receiver = _order(context, orders, receiver, taken.index, found.num_nodes)
        by_sender = _order(context, orders, taken.index, receiver, senders)
        module = graph.get_attr(str(found.quantize.target))
        ends = (taken.index, receiver, found.num_nodes, by_receiver, by_sender)
        drop = None if found.drop is None else tuple(found.drop.args[2:])
        more = () if found.groups is None else (None, None, found.groups)
        args = (taken.source, found.message.weight, *ends, module, found.protected, found.how, drop, *more)
        new = graph.call_function(message_passing, args)
        return annotate(new, note_of(found.aggregate))


def _order(context: Context, orders: dict[Any, Node], index: Node, other: Node, size: Any) -> Node:
    """Returns the call that groups edges by ``index``."""
    # Every layer takes the ends of edges out of edge_index for itself, or out of an edge_index of its own.
    edge_index, row = end_of_edges(index) or (index, 0)
    one = (edge_index, row, size_of(size))
    if one not in orders:
        path = memo(context, "edge_order", (origin(edge_index), row, size_of(size)), EdgeOrders)
        orders[one] = context.graph.call_module(path, (index, other, size))
    return orders[one]

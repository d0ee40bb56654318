"""Message passing in fused graphs: gather, product, quantizer, reduction and a chain, in one call.

As in :mod:`.fused`, it is done step by step where a quantizer would not observe and round as usual.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from dqconvert.kernels import NO_CHAIN, EdgeOrder, Ranged, Sent, learned_propagate, observe_messages, propagate
from dqconvert.quant.degrees import groups_of_edges
from dqconvert.quant.fake_quantize import FakeQuantize
from dqconvert.quant.fused import FusedChain, chain, dropout, ready_chain
from dqconvert.quant.protection import gather_protected


def message_passing(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    num_nodes: int,
    by_receiver: EdgeOrder | None,
    by_sender: EdgeOrder | None,
    quantizer: FakeQuantize,
    senders_protected: Tensor | None,
    reduce: str,
    drop: tuple[float, bool] | None = None,
    steps: FusedChain | None = None,
    protected: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Gathers ``x`` along the edges, multiplies by ``weight``, quantizes, reduces per receiver; a chain.

    Args:
        x: ``[num_senders, *features]``.
        weight: ``[num_edges]`` or, for features ``[heads, channels]``, ``[num_edges, heads]``; ``None``: the message
            is ``x_j``.
        sender: int64 ``[num_edges]``.
        receiver: int64 ``[num_edges]``.
        num_nodes: The number of nodes that receive.
        by_receiver: From :class:`dqconvert.quant.memo.EdgeOrders`; ``None`` on devices that do without.
        by_sender: Likewise.
        quantizer: The quantizer of the messages.
        senders_protected: bool ``[num_senders]``, or ``None``.
        reduce: ``"sum"``, ``"mean"``, or ``"max"``, the largest by feature; 0 where there is no message. Maxima go
            through no chain, and their messages have no groups: :mod:`dqconvert.fuse` asks for neither.
        drop: A probability, and whether it is in training: then messages are dropped, once they are rounded, each with
            all channels that one number of ``weight`` multiplies. ``None``: none are.
        steps: The chain of the aggregates.
        protected: bool ``[num_nodes]``, for the quantizers of the chain.
        groups: uint8 ``[num_nodes]``, the group of in-degrees of each node, for those quantizers that have a range for
            each; messages have that of the node that receives them.

    Returns:
        ``[num_nodes, *features]``.
    """
    steps = steps or FusedChain()
    scheme = quantizer.scheme_for(x) if by_receiver is not None and by_sender is not None else None
    fits = weight is None or weight.dtype == x.dtype
    p = 0.0 if drop is None or not drop[1] else drop[0]
    kept = dropout(torch.ones_like(weight, requires_grad=False), p) if weight is not None and p > 0 else None
    # What is dropped is zero, and would have a say in an offset that is learned.
    alone = p >= 1 or (quantizer.learned and kept is not None)
    alone = alone or (reduce == "max" and quantizer.learned)
    if scheme is None or by_receiver is None or by_sender is None or not fits or alone:
        own = groups if quantizer.grouped else None
        edges = (x, weight, sender, receiver, num_nodes)
        passed = _message_by_message(*edges, quantizer, senders_protected, reduce, own, kept)
        return chain(passed, steps, protected, groups)
    features = math.prod(x.shape[1:])
    rows = x if x.dim() == 2 else x.reshape(x.size(0), features)
    senders = senders_protected if quantizer.training else None
    ends = quantizer.ends(sender.size(0) * features)
    sent = Sent.of(
        rows, None if weight is None else _by_head(weight), sender, receiver, by_receiver, by_sender, senders
    )
    later, factor = None, 1.0
    if weight is not None and kept is not None:
        # A message that is zero is zero when it is rounded: what is dropped has no weight, but is observed with it.
        if scheme.observe:
            quantizer.take(scheme, observe_messages(sent, Ranged.of(scheme, ends)))
            scheme, ends = scheme._replace(observe=False), quantizer.ends(sender.size(0) * features)
        sent, factor = sent._replace(weight=_by_head(weight * (kept != 0))), 1 / (1 - p)
        steps, later = FusedChain(), steps
    messages = Ranged.of(scheme, ends)
    if quantizer.learned:
        if quantizer.grouped:
            quantizer.check_groups(groups, num_nodes)
        out = learned_propagate(sent, messages, reduce == "mean", groups if quantizer.grouped else None)
        return chain(out.view(out.size(0), *x.shape[1:]), steps, protected, groups)
    plain = x.dim() == 2 or steps.bias is None
    ready = ready_chain(steps, x, protected, groups, (num_nodes, features)) if plain else None
    given = NO_CHAIN if ready is None else ready.chain
    if quantizer.grouped:
        quantizer.check_groups(groups, num_nodes)
        given = given._replace(groups=groups)
    if given.other is not None and given.other.dim() != 2:
        # As it is where it can be: x itself, say, whose gradients are then added up on the way.
        given = given._replace(other=given.other.reshape(num_nodes, features))
    out, new, range_ = propagate(sent, messages, given, reduce)
    quantizer.take(scheme, range_)
    out = out.view(out.size(0), *x.shape[1:])
    if later is not None:
        return chain(out if factor == 1 else out * factor, later, protected, groups)
    if ready is None:
        return chain(out, steps, protected, groups)
    ready.take(new)
    return out


def _by_head(weight: Tensor) -> Tensor:
    """Returns ``[num_edges, heads]`` of weights that may have no dimension for heads, or one more for channels."""
    return weight.unsqueeze(1) if weight.dim() == 1 else weight.squeeze(2) if weight.dim() == 3 else weight


def _message_by_message(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    num_nodes: int,
    quantizer: FakeQuantize,
    protected: Tensor | None,
    how: str,
    groups: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    message = x.index_select(0, sender)
    if weight is not None:
        message = weight.reshape(*weight.shape, *[1] * (message.dim() - weight.dim())) * message
    own = None if groups is None else groups_of_edges(groups, receiver)
    message = quantizer(message, gather_protected(protected, sender), own)
    if kept is not None:
        message = message * kept.to(message.dtype).reshape(*kept.shape, *[1] * (message.dim() - kept.dim()))
    return scatter(message, receiver, 0, num_nodes, how)

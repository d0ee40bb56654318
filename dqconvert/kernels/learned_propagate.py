"""Message passing as in :mod:`dqconvert.kernels.propagate`, where the range of the messages is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme, grid_of
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import ends_of
from dqconvert.kernels.cpu import learned_propagate as _loops
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.learned import plain_grid_back
from dqconvert.kernels.messages import (
    GRAPH,
    NO_GRADIENTS,
    Passing,
    Sent,
    averaged,
    fake_messages_back,
    messages_back,
    plain_messages,
    plain_sums,
)


def plain_learned_propagate(
    sent: Sent, groups: Tensor | None, range_: Tensor, ints: Sequence[int], floats: Sequence[float]
) -> Tensor:
    """Defines the values: those of :func:`dqconvert.kernels.propagate.plain_propagate`, without a chain.

    `groups`: uint8 `[num_nodes]`, of those that receive; then `range_` is `[2, groups]`.
    """
    scheme, mean, _ = Passing.unpacked(ints, floats)
    own = None if groups is None else (groups, sent.receiver)
    return plain_sums(plain_messages(*sent[:3], sent.protected, range_, scheme, own)[0], sent, mean)


def plain_learned_propagate_grad(
    grad: Tensor,
    sent: Sent,
    out: Tensor,
    groups: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines the gradients of `x`, of the weights (`[0, 0]` without any) and of the range, message by message."""
    scheme, mean, _ = Passing.unpacked(ints, floats)
    grad = averaged(grad, sent) if mean else grad
    every = sent.sender.new_ones(sent.x.size(0), dtype=torch.bool)
    own = None if groups is None else (groups, sent.receiver)
    message, _, _ = plain_messages(*sent[:3], every, range_, scheme, own)
    rows = None if sent.protected is None else sent.protected.index_select(0, sent.sender)
    of_edges = None if groups is None else groups.index_select(0, sent.receiver)
    args = (message, range_, scheme, rows, of_edges)
    to_message, to_ends = plain_grid_back(grad.index_select(0, sent.receiver), *args)
    return *messages_back(to_message, sent, True), torch.stack(to_ends).float()


def _on_cpu(sent: Sent, groups: Tensor | None, range_: Tensor, ints: Sequence[int], floats: Sequence[float]) -> Tensor:
    scheme, mean, _ = Passing.unpacked(ints, floats)
    return torch.from_numpy(sums.sums_of(sent, grid_of(scheme, *range_.tolist()), mean, groups).rows())


def _grad_on_cpu(
    grad: Tensor,
    sent: Sent,
    out: Tensor,
    groups: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    scheme, mean, _ = Passing.unpacked(ints, floats)
    return _loops.propagate_back(grad, sent, out, groups, grid_of(scheme, *range_.tolist()), range_, mean)


def _serves(x: Tensor, weight: Tensor | None, *rest: Any) -> bool:
    # Rows that are sent as they are, are rounded once for all who receive them.
    return sums.serves(x, weight) and not (weight is None and rest[-4] is not None)


learned_propagate_grad = Operator(
    "learned_propagate_grad",
    plain_learned_propagate_grad,
    fake=lambda grad, sent, out, groups, range_, *_: (*fake_messages_back(sent, True), torch.empty_like(range_)),
    cpu=_grad_on_cpu,
    serves=lambda grad, x, weight, *rest: grad.dtype == x.dtype and _serves(x, weight, *rest),
    takes=Takes(
        "learned_propagate_grad",
        grad="real [num_nodes, columns]",
        **GRAPH | {"x": "grad [senders, columns]"},
        out="grad [num_nodes, columns]",
        groups="uint8? [num_nodes]",
        range_="float32 [2] | [2, groups]",
        ints="free",
        floats="free",
        also=sums.check_heads,
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    groups, range_, ctx.ints, ctx.floats = inputs[8:]
    ctx.save_for_backward(*Sent(*inputs[:8]).tensors(), output, groups, range_)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    sent, (out, groups, range_) = Sent.saved(ctx.saved_tensors)
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_propagate_grad if torch.is_grad_enabled() else learned_propagate_grad
    given = sent._replace(x=sent.x.contiguous())
    to_x, to_weight, to_range = back(grad.contiguous(), given, out, groups, range_, ctx.ints, ctx.floats)
    return to_x, None if sent.weight is None else to_weight, *NO_GRADIENTS, None, to_range, None, None


learned_propagate_operator = Operator(
    "learned_propagate",
    plain_learned_propagate,
    fake=lambda sent, *_: sent.x.new_empty((sent.num_nodes, sent.x.size(1))),
    cpu=_on_cpu,
    serves=_serves,
    takes=Takes(
        "learned_propagate",
        **GRAPH,
        groups="uint8? [num_nodes]",
        range_="float32 [2] | [2, groups]",
        ints="free",
        floats="free",
        also=sums.check_heads,
    ),
    setup=_setup,
    backward=_backward,
)


def learned_propagate(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: EdgeOrder,
    by_sender: EdgeOrder,
    scheme: Scheme,
    ends: tuple[Tensor, Tensor],
    senders_protected: Tensor | None = None,
    mean: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    """Sums, or averages, the quantized messages that reach each node.

    The arguments are those of :func:`dqconvert.kernels.propagate`; the scheme is affine and observes nothing.

    Returns:
        `[num_receivers, heads * channels]`. Gradients reach `x`, `weight` and `ends`.

    Source: see :func:`dqconvert.kernels.learned_fake_quantize`.

    Example:
        >>> from dqconvert.kernels import edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0, momentum=-1, observe=False, clip=False)
        >>> x, ends = torch.tensor([[15.0, 1.6], [0.4, 3.0]]), (torch.tensor(-8.0), torch.tensor(7.0))
        >>> learned_propagate(x, None, sender, receiver, *orders, scheme, ends).tolist()
        [[0.0, 3.0], [7.0, 5.0]]
    """
    sent = Sent.of(x, weight, sender, receiver, by_receiver, by_sender, senders_protected)
    y: Tensor = learned_propagate_operator(sent, groups, ends_of(ends), *Passing(scheme, mean).packed())
    return y

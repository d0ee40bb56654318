"""Message passing as in :mod:`dqconvert.kernels.propagate`, where the range of the messages is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import RANGED, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu import learned_propagate as _loops
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.learned import plain_grid_back
from dqconvert.kernels.messages import (
    GRAPH,
    Sent,
    averaged,
    fake_messages_back,
    messages_back,
    plain_messages,
    plain_sums,
)


def plain_learned_propagate(sent: Sent, messages: Ranged, mean: bool, groups: Tensor | None) -> Tensor:
    """Defines the values: those of :func:`dqconvert.kernels.propagate.plain_propagate`, without a chain."""
    own = None if groups is None else (groups, sent.receiver)
    message, _, _ = plain_messages(*sent[:3], sent.protected, messages.range_, messages.scheme, own)
    return plain_sums(message, sent, mean)


def plain_learned_propagate_grad(
    grad: Tensor, sent: Sent, out: Tensor, messages: Ranged, mean: bool, groups: Tensor | None, for_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines the gradients of `x` (`[0, 0]` unless `for_x`), of the weights (`[0, 0]` without any) and of the range,
    message by message."""
    scheme, range_ = messages.scheme, messages.range_
    grad = averaged(grad, sent) if mean else grad
    every = sent.sender.new_ones(sent.x.size(0), dtype=torch.bool)
    own = None if groups is None else (groups, sent.receiver)
    message, _, _ = plain_messages(*sent[:3], every, range_, scheme, own)
    rows = None if sent.protected is None else sent.protected.index_select(0, sent.sender)
    of_edges = None if groups is None else groups.index_select(0, sent.receiver)
    args = (message, range_, scheme, rows, of_edges)
    to_message, to_ends = plain_grid_back(grad.index_select(0, sent.receiver), *args)
    to_x, to_weight = messages_back(to_message, sent, True)
    return to_x if for_x else to_x.new_empty((0, 0)), to_weight, torch.stack(to_ends).float()


def _serves(sent: Sent, groups: Tensor | None) -> bool:
    # Rows that are sent as they are, are rounded once for all who receive them.
    return sums.serves(sent) and (sent.weight is not None or groups is None)


def _on_cpu(sent: Sent, messages: Ranged, mean: bool, groups: Tensor | None) -> Tensor:
    return torch.from_numpy(sums.sums_of(sent, messages.grid(), mean, groups).rows())


def _fake_grad(grad: Tensor, sent: Sent, out: Tensor, messages: Ranged, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    to_x, to_weight = fake_messages_back(sent, True)
    return to_x if rest[-1] else to_x.new_empty((0, 0)), to_weight, torch.empty_like(messages.range_)


learned_propagate_grad = Operator(
    "learned_propagate_grad",
    plain_learned_propagate_grad,
    fake=_fake_grad,
    cpu=_loops.propagate_back,
    serves=lambda grad, sent, *rest: grad.dtype == sent.x.dtype and _serves(sent, rest[-2]),
    takes=Takes(
        "learned_propagate_grad",
        grad="real [num_nodes, columns]",
        **GRAPH | {"x": "grad [senders, columns]"},
        out="grad [num_nodes, columns]",
        **RANGED,
        mean="flag",
        groups="uint8? [num_nodes]",
        for_x="free",
        also=sums.check_heads,
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sent, (range_, *ctx.scheme), ctx.mean, groups = inputs
    ctx.save_for_backward(*sent.tensors(), output, range_, groups)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    sent, (out, range_, groups) = Sent.saved(ctx.saved_tensors)
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_propagate_grad if torch.is_grad_enabled() else learned_propagate_grad
    given = sent._replace(x=sent.x.contiguous())
    for_x, messages = ctx.needs_input_grad[0], Ranged(range_, *ctx.scheme)
    to_x, to_weight, to_range = back(grad.contiguous(), given, out, messages, ctx.mean, groups, for_x)
    to_sent = Sent.gradients(to_x if for_x else None, None if sent.weight is None else to_weight)
    return to_sent, (to_range, None, None), None, None


learned_propagate_operator = Operator(
    "learned_propagate",
    plain_learned_propagate,
    fake=lambda sent, *_: sent.x.new_empty((sent.num_nodes, sent.x.size(1))),
    cpu=_on_cpu,
    serves=lambda sent, messages, mean, groups: _serves(sent, groups),
    check=lambda sent, *_: sent.check(),
    takes=Takes(
        "learned_propagate", **GRAPH, **RANGED, mean="flag", groups="uint8? [num_nodes]", also=sums.check_heads
    ),
    setup=_setup,
    backward=_backward,
)


def learned_propagate(sent: Sent, messages: Ranged, mean: bool = False, groups: Tensor | None = None) -> Tensor:
    """Sums, or averages, the quantized messages that reach each node.

    The arguments are those of :func:`dqconvert.kernels.propagate`; the scheme is affine and observes nothing. `groups`:
    uint8 `[num_receivers]`, if ranges differ by group.

    Returns:
        `[num_receivers, heads * channels]`. Gradients reach `x`, `weight` and the range.

    Source: see :func:`dqconvert.kernels.learned_fake_quantize`.

    Example:
        >>> from dqconvert.kernels import Scheme, edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0, momentum=-1, observe=False, clip=False)
        >>> sent = Sent.of(torch.tensor([[15.0, 1.6], [0.4, 3.0]]), None, sender, receiver, *orders)
        >>> learned_propagate(sent, Ranged.of(scheme, (torch.tensor(-8.0), torch.tensor(7.0)))).tolist()
        [[0.0, 3.0], [7.0, 5.0]]
    """
    return learned_propagate_operator(sent, messages, mean, groups)

"""Messages: rows sent along edges, times weights of theirs, and quantized; what all operators that pass them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels.chain import of_rows, plain_observe, round_rows
from dqconvert.kernels.degree import in_degree
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.fake_quantize import scheme_qparams


class Sent(NamedTuple):
    """Rows and the edges that they are sent along, as operators take them.

    Attributes:
        x: Floating `[num_senders, heads * channels]`.
        weight: `[num_edges, heads]` in `x`'s type, what each edge multiplies its message by; or None.
        sender, receiver: int64 `[num_edges]`.
        by_receiver, by_sender: The edges in the order of either, see :class:`EdgeOrder`. Definitions do without.
        num_nodes: How many nodes receive.
        protected: bool `[num_senders]`, whose messages are neither observed nor rounded; or None.
    """

    x: Tensor
    weight: Tensor | None
    sender: Tensor
    receiver: Tensor
    by_receiver: Sequence[Tensor]
    by_sender: Sequence[Tensor]
    num_nodes: int
    protected: Tensor | None

    @staticmethod
    def of(
        x: Tensor,
        weight: Tensor | None,
        sender: Tensor,
        receiver: Tensor,
        by_receiver: EdgeOrder,
        by_sender: EdgeOrder,
        protected: Tensor | None = None,
    ) -> Sent:
        """Returns what is sent along edges that are in order, for all nodes that receive and that send."""
        num_nodes = by_receiver.ptr.size(0) - 1
        return Sent(x, weight, sender, receiver, list(by_receiver), list(by_sender), num_nodes, protected)

    def check(self) -> None:
        """Raises `TypeError` or `ValueError` for a mask that does not fit."""
        if self.protected is not None:
            check_rows(self.protected, self.x, 0, name="senders_protected")

    @staticmethod
    def gradients(x: Tensor | None, weight: Tensor | None) -> Sequence[Any]:
        """Returns gradients by attribute."""
        return x, weight, None, None, [None] * 3, [None] * 3, None, None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Returns what to save for the backward pass."""
        return (self.x, self.weight, self.sender, self.receiver, self.protected, *self.by_receiver, *self.by_sender)

    @staticmethod
    def saved(tensors: Sequence[Any]) -> tuple[Sent, Sequence[Any]]:
        """Returns what was saved, and what was saved behind it."""
        x, weight, sender, receiver, protected, *orders = tensors[:11]
        num_nodes = orders[0].size(0) - 1
        return Sent(x, weight, sender, receiver, orders[:3], orders[3:], num_nodes, protected), tensors[11:]


GRAPH: dict[str, Any] = {
    "x": "real [senders, columns]",
    "weight": "x? [edges, heads]",
    "sender": "index [edges]",
    "receiver": "index [edges]",
    "by_receiver": "order [num_nodes, edges, senders]",
    "by_sender": "order [senders, edges, num_nodes]",
    "num_nodes": "size",
    "senders_protected": "bool? [senders]",
}
"""What the loops take of :class:`Sent`."""


def plain_messages(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    scheme: Scheme,
    own: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every message, quantized, `[num_edges, features]`; the new range; and which values were clipped.

    `own`: the groups of the nodes that receive, and the receiver of each edge; None: there is one grid.
    """
    message = x.index_select(0, sender)
    if weight is not None:
        heads = (weight.size(0), weight.size(1), x.size(1) // max(weight.size(1), 1))
        message = (message.view(heads) * weight.unsqueeze(2)).view_as(message)
    rows = None if protected is None else protected.index_select(0, sender)
    lo, hi = plain_observe(message, range_[0], range_[1], scheme, rows)
    grid = of_rows(scheme_qparams(scheme, lo, hi), *(own or (None,)))
    rounded, clipped = round_rows(message, grid, scheme, rows)
    return rounded, torch.stack([lo, hi]), clipped & scheme.clip


def plain_sums(message: Tensor, sent: Sent, mean: bool) -> Tensor:
    """Sums, or averages, of the messages that reach each node."""
    out = message.new_zeros((sent.num_nodes, message.size(1))).index_add(0, sent.receiver, message)
    return averaged(out, sent) if mean else out


def averaged(sums: Tensor, sent: Sent) -> Tensor:
    """Divides rows by the number of messages that reach their nodes, 1 where none does."""
    return sums / in_degree([sent.receiver], sums.size(0)).to(sums.dtype).clamp(min=1).unsqueeze(1)


def messages_back(to_message: Tensor, sent: Sent, for_weight: bool) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `x` and, if `for_weight`, of the weights (else `[0, 0]`), by that of every message."""
    x, weight, sender = sent[:3]
    to_weight = x.new_empty((0, 0))
    if weight is not None:
        heads = (weight.size(0), weight.size(1), x.size(1) // max(weight.size(1), 1))
        if for_weight:
            to_weight = (to_message.view(heads) * x.index_select(0, sender).view(heads)).sum(2)
        to_message = (to_message.view(heads) * weight.unsqueeze(2)).view_as(to_message)
    return torch.zeros_like(x).index_add(0, sender, to_message), to_weight


def fake_messages_back(sent: Sent, for_weight: bool) -> tuple[Tensor, Tensor]:
    """The same, of shapes and types alone."""
    x, weight = sent[:2]
    return x.new_empty(x.shape), x.new_empty(weight.shape if for_weight and weight is not None else (0, 0))

"""The range of messages that nobody has yet: where they are dropped behind their quantizer, it sees them before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.chain import observe
from dqconvert.kernels.cpu.propagate import check_heads, message_values, serves
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.messages import GRAPH, Sent, plain_messages


def plain_observe_messages(sent: Sent, range_: Tensor, ints: Sequence[int], floats: Sequence[float]) -> Tensor:
    """Defines what every implementation is held to: the new range, float32 `[2]`; it does without the orders."""
    return plain_messages(*sent[:3], sent.protected, range_, Scheme.unpacked(ints, floats))[1].float()


def _on_cpu(sent: Sent, range_: Tensor, ints: Sequence[int], floats: Sequence[float]) -> Tensor:
    grid = Grid(Scheme.unpacked(ints, floats), *range_.tolist())
    observe(grid, message_values(sent))
    return torch.tensor([grid.lo, grid.hi], dtype=torch.float32)


observe_messages_operator = Operator(
    "observe_messages",
    plain_observe_messages,
    fake=lambda sent, *_: sent.x.new_empty((2,), dtype=torch.float32),
    cpu=_on_cpu,
    serves=lambda x, weight, *_: serves(x, weight),
    takes=Takes("observe_messages", **GRAPH, range_="float32 [2]", ints="free", floats="free", also=check_heads),
)


@torch.no_grad()
def observe_messages(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: EdgeOrder,
    by_sender: EdgeOrder,
    scheme: Scheme,
    ends: tuple[Tensor, Tensor],
    senders_protected: Tensor | None = None,
) -> Tensor:
    """Returns the new range, float32 `[2]`, of the messages that :func:`dqconvert.kernels.propagate` would send.

    Example:
        >>> from dqconvert.kernels import edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> weight = torch.tensor([[1.0], [2.0], [0.0]])
        >>> observe_messages(torch.tensor([[15.0], [3.0]]), weight, sender, receiver, *orders, scheme, never)
        tensor([ 0., 15.])
    """
    sent = Sent.of(x, weight, sender, receiver, by_receiver, by_sender, senders_protected)
    found: Tensor = observe_messages_operator(sent, torch.stack(ends), *scheme.packed())
    return found

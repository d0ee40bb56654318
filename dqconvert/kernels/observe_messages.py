"""The range of messages that nobody has yet: where they are dropped behind their quantizer, it sees them before."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import RANGED, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.chain import observe
from dqconvert.kernels.cpu.propagate import check_heads, message_values, serves
from dqconvert.kernels.messages import GRAPH, Sent, plain_messages


def plain_observe_messages(sent: Sent, messages: Ranged) -> Tensor:
    """Defines what every implementation is held to: the new range, float32 `[2]`; it does without the orders."""
    return plain_messages(*sent[:3], sent.protected, messages.range_, messages.scheme)[1].float()


def _on_cpu(sent: Sent, messages: Ranged) -> Tensor:
    grid = messages.grid()
    observe(grid, message_values(sent))
    return messages.of_grid(grid)


observe_messages_operator = Operator(
    "observe_messages",
    plain_observe_messages,
    fake=lambda sent, messages: torch.empty_like(messages.range_),
    cpu=_on_cpu,
    serves=lambda sent, _: serves(sent),
    check=lambda sent, _: sent.check(),
    takes=Takes("observe_messages", **GRAPH, **RANGED | {"range_": "float32 [2]"}, also=check_heads),
)


@torch.no_grad()
def observe_messages(sent: Sent, messages: Ranged) -> Tensor:
    """Returns the new range, float32 `[2]`, of the messages that :func:`dqconvert.kernels.propagate` would send.

    Example:
        >>> from dqconvert.kernels import Scheme, edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> weight = torch.tensor([[1.0], [2.0], [0.0]])
        >>> sent = Sent.of(torch.tensor([[15.0], [3.0]]), weight, sender, receiver, *orders)
        >>> observe_messages(sent, Ranged.of(scheme, (torch.tensor(torch.inf), torch.tensor(-torch.inf))))
        tensor([ 0., 15.])
    """
    return observe_messages_operator(sent, messages)

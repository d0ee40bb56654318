"""The gradients of :mod:`dqconvert.kernels.propagate`: of rows and weights, by that of the sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import RANGED, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import SUM, X, plain_quantize_chain_grad
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.cpu.largest import largest_back
from dqconvert.kernels.messages import GRAPH, Sent, averaged, fake_messages_back, messages_back, plain_messages


def plain_propagate_grad(
    grad: Tensor,
    sent: Sent,
    messages: Ranged,
    groups: Tensor | None,
    reduce: str,
    again: Tensor,
    y: Tensor | None,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Defines the gradients of `x` and, if `for_weight`, of the weights (else `[0, 0]`); differentiable itself.

    Args:
        grad: Of the sums, or of the largest messages, which share it evenly, as :func:`torch.scatter_reduce` does it:
            that counts the zero that it starts from where the result is zero.
        messages: With the range that they were rounded with.
        groups: uint8 `[num_nodes]` if they have groups.
        again: From :func:`dqconvert.kernels.propagate.plain_propagate`.
        y: The largest messages, if it is these.
    """
    own = (groups, sent.receiver) if messages.grouped else None
    with torch.no_grad():
        message, _, clipped = plain_messages(*sent[:3], sent.protected, messages.range_, messages.scheme, own)
        passes = ~clipped
        if y is not None:
            there = y.index_select(0, sent.receiver)
            passes &= (message == there) | there.isnan()
    if y is not None:
        grad = grad / (again[0] + (y == 0))
    elif reduce == "mean":
        grad = averaged(grad, sent)
    return messages_back(torch.where(passes, grad.index_select(0, sent.receiver), 0), sent, for_weight)


def _grad(
    grad: Tensor,
    passes: Tensor,
    apart: bool,
    sent: Sent,
    messages: Ranged,
    groups: Tensor | None,
    reduce: str,
    again: Tensor,
    y: Tensor | None,
    for_weight: bool,
    plus: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the same, `plus` added to the gradient of `x`, if there is one.

    Args:
        grad: Of the result of the chain, if `passes` and `apart` say what of it reaches the sums, see
            :func:`dqconvert.kernels.chain.plain_quantize_chain_grad`; of the sums themselves, if `passes` is `[0]`.
    """
    at_sum = plain_quantize_chain_grad(grad, passes, None, None, apart)[1]
    to_x, to_weight = plain_propagate_grad(at_sum, sent, messages, groups, reduce, again, y, for_weight)
    return to_x if plus is None else to_x + plus, to_weight


def _grad_on_cpu(grad: Tensor, passes: Tensor, apart: bool, sent: Sent, *rest: Any) -> tuple[Tensor, Tensor]:
    messages, groups, reduce, again, y, for_weight, plus = rest
    if y is not None:
        return largest_back(grad, y, again, sent, messages.grid(), for_weight)
    bit, mean = X if apart else SUM, reduce == "mean"
    return sums.propagate_grad(grad, passes, bit, sent, again, groups, messages.grid(), mean, for_weight, plus)


def _serves_grad(grad: Tensor, passes: Tensor, apart: bool, sent: Sent, *rest: Any) -> bool:
    messages, groups, _, again, y, *_ = rest
    unweighted = sent.weight is None and groups is None
    known = unweighted or y is not None or again.numel() > 0 or sent.x.numel() == 0
    return known and not (y is not None and messages.grouped) and grad.dtype == sent.x.dtype and sums.serves(sent)


propagate_grad = Operator(
    "propagate_grad",
    _grad,
    fake=lambda grad, passes, apart, sent, *rest: fake_messages_back(sent, rest[-2]),
    cpu=_grad_on_cpu,
    serves=_serves_grad,
    takes=Takes(
        "propagate_grad",
        grad="real [num_nodes, columns]",
        passes="uint8 [0] | [=grad]",
        apart="free",
        **GRAPH | {"x": "grad [senders, columns]"},
        **RANGED,
        groups="uint8? [num_nodes]",
        reduce="flag",
        again="grad [0, 0, 0] | [2, senders, heads] | [1, num_nodes, columns]",
        y="grad? [=grad]",
        for_weight="free",
        plus="grad? [=x]",
        also=sums.check_heads,
    ),
)

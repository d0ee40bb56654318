"""The gradients of :mod:`dqconvert.kernels.propagate`: of rows and weights, by that of the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import grid_of
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import SUM, X, plain_quantize_chain_grad
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.messages import (
    GRAPH,
    Passing,
    Sent,
    averaged,
    fake_messages_back,
    messages_back,
    plain_messages,
)


def plain_propagate_grad(
    grad: Tensor,
    sent: Sent,
    groups: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Defines the gradients of `x` and of the weights, given that of the sums; differentiable itself."""
    scheme, mean, grouped = Passing.unpacked(ints, floats)
    own = (groups, sent.receiver) if grouped else None
    with torch.no_grad():
        _, _, clipped = plain_messages(*sent[:3], sent.protected, range_, scheme._replace(observe=False), own)
    grad = averaged(grad, sent) if mean else grad
    return messages_back(grad.index_select(0, sent.receiver).masked_fill(clipped, 0), sent, for_weight)


def _grad(
    grad: Tensor,
    passes: Tensor,
    apart: bool,
    sent: Sent,
    extremes: Tensor,
    groups: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_weight: bool,
    plus: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `x` (and `plus`, if there is one) and, if `for_weight`, of the weights (else `[0, 0]`).

    Args:
        grad: Of the result of the chain, if `passes` and `apart` say what of it reaches the sums, see
            :func:`dqconvert.kernels.chain.plain_quantize_chain_grad`; of the sums themselves, if `passes` is `[0]`.
        range_: As it was rounded with.
    """
    at_sum = plain_quantize_chain_grad(grad, passes, None, None, apart)[1]
    to_x, to_weight = plain_propagate_grad(at_sum, sent, groups, range_, ints, floats, for_weight)
    return to_x if plus is None else to_x + plus, to_weight


def _grad_on_cpu(grad: Tensor, passes: Tensor, apart: bool, sent: Sent, *rest: Any) -> tuple[Tensor, Tensor]:
    extremes, groups, range_, ints, floats, *wanted = rest
    scheme, mean, _ = Passing.unpacked(ints, floats)
    grid = grid_of(scheme._replace(observe=False), *range_.tolist())
    return sums.propagate_grad(grad, passes, X if apart else SUM, sent, extremes, groups, grid, mean, *wanted)


def _serves_grad(grad: Tensor, passes: Tensor, apart: bool, x: Tensor, weight: Tensor | None, *rest: Any) -> bool:
    extremes, groups = rest[6:8]
    known = (weight is None and groups is None) or (weight is not None and extremes.numel() > 0) or x.numel() == 0
    return known and grad.dtype == x.dtype and sums.serves(x, weight)


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
        extremes="grad [0, 0, 0] | [2, senders, heads]",
        groups="uint8? [num_nodes]",
        range_="float32 [2] | [2, groups]",
        ints="free",
        floats="free",
        for_weight="free",
        plus="grad? [=x]",
        also=sums.check_heads,
    ),
)

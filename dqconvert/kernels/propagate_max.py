"""The largest of the quantized messages that reach each node, without a value per edge being stored.

Messages are those of :mod:`dqconvert.kernels.propagate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu import max_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, matrix, observe
from dqconvert.kernels.cpu.propagate import check_heads, message_values, serves
from dqconvert.kernels.cpu.threads import balanced, parts, run
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.messages import (
    GRAPH,
    NO_GRADIENTS,
    Sent,
    fake_messages_back,
    messages_back,
    plain_messages,
)


def plain_propagate_max(
    sent: Sent, range_: Tensor, ints: Sequence[int], floats: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to.

    The arguments are those of :func:`propagate_max`; `range_` is float32 `[2]`, `ints` and `floats` the scheme.

    Returns:
        The largest messages; the new range; and how many messages are as large, in `x`'s type.
    """
    message, new, _ = plain_messages(*sent[:3], sent.protected, range_, Scheme.unpacked(ints, floats))
    index = sent.receiver.unsqueeze(1).expand_as(message)
    out = message.new_zeros((sent.num_nodes, message.size(1)))
    out = out.scatter_reduce(0, index, message, "amax", include_self=False)
    ties = torch.zeros_like(out).scatter_add(0, index, (message == out.gather(0, index)).to(out.dtype))
    return out, new, ties


def _on_cpu(sent: Sent, range_: Tensor, ints: Sequence[int], floats: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    grid = Grid(Scheme.unpacked(ints, floats), *range_.tolist())
    observe(grid, message_values(sent))
    rows = matrix(sent.x)
    y, ties = (empty((sent.num_nodes, sent.x.size(1)), sent.x.dtype) for _ in range(2))
    ptr, edges, senders = map(array, sent.by_receiver)
    graph = (senders, ptr, edges, flags(sent.protected), grid.parameters(rows.dtype.type))
    args = (rows, _weights(sent), *graph, array(y), array(ties))
    run(lambda _, start, stop: loops.max_rows(*args, start, stop), balanced(ptr, rows.shape[1]))
    return y, torch.tensor([grid.lo, grid.hi], dtype=torch.float32), ties


def _weights(sent: Sent) -> Any:
    return array(sent.x.new_empty((0, 0)) if sent.weight is None else sent.weight)


def _fake(sent: Sent, range_: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (sent.num_nodes, sent.x.size(1))
    return sent.x.new_empty(shape), torch.empty_like(range_), sent.x.new_empty(shape)


def plain_propagate_max_grad(
    grad: Tensor,
    y: Tensor,
    ties: Tensor,
    sent: Sent,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Defines the gradients of `x` and, if `for_weight`, of the weights (else `[0, 0]`), by the range of that time.

    The largest messages share the gradient evenly, as :func:`torch.scatter_reduce` does it, which counts the zero that
    it starts from where the result is zero. Differentiable itself.
    """
    scheme = Scheme.unpacked(ints, floats)._replace(observe=False)
    with torch.no_grad():
        message, _, clipped = plain_messages(*sent[:3], sent.protected, range_, scheme)
        there = y.index_select(0, sent.receiver)
        passes = ((message == there) | there.isnan()) & ~clipped
    share = grad / (ties + (y == 0))
    return messages_back(torch.where(passes, share.index_select(0, sent.receiver), 0), sent, for_weight)


def _grad_on_cpu(grad: Tensor, y: Tensor, ties: Tensor, sent: Sent, *rest: Any) -> tuple[Tensor, Tensor]:
    range_, ints, floats, for_weight = rest
    scheme, x = Scheme.unpacked(ints, floats), sent.x
    rows, (to_x, to_weight) = matrix(x), fake_messages_back(sent, for_weight)
    share, to_x = empty(y.shape, y.dtype), empty(x.shape, x.dtype)
    whole = (matrix(grad), matrix(y), matrix(ties), array(share))
    run(lambda _, start, stop: loops.shares(*whole, start, stop), parts(y.size(0), y.numel()))
    ptr, edges, receivers = map(array, sent.by_sender)
    parameters = Grid(scheme, *range_.tolist()).parameters(rows.dtype.type)
    graph = (receivers, ptr, edges, flags(sent.protected), parameters, scheme.clip)
    args = (array(share), matrix(y), rows, _weights(sent), *graph, array(to_x), array(to_weight))
    run(lambda _, start, stop: loops.max_back(*args, start, stop), balanced(ptr, x.size(1)))
    return to_x, to_weight


propagate_max_grad = Operator(
    "propagate_max_grad",
    plain_propagate_max_grad,
    fake=lambda grad, y, ties, sent, *rest: fake_messages_back(sent, rest[-1]),
    cpu=_grad_on_cpu,
    serves=lambda grad, y, ties, x, weight, *_: grad.dtype == x.dtype and serves(x, weight),
    takes=Takes(
        "propagate_max_grad",
        grad="real [num_nodes, columns]",
        y="grad [=grad]",
        ties="grad [=grad]",
        **GRAPH | {"x": "grad [senders, columns]"},
        range_="float32 [2]",
        ints="free",
        floats="free",
        for_weight="free",
        also=check_heads,
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    _, ctx.ints, ctx.floats = inputs[8:]
    y, range_, ties = output
    ctx.save_for_backward(*Sent(*inputs[:8]).tensors(), y, ties, range_)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    to_x, to_weight = None, None
    if grad is not None:
        sent, (y, ties, range_) = Sent.saved(ctx.saved_tensors)
        for_weight = ctx.needs_input_grad[1]
        # A gradient of a gradient goes through torch's own operators.
        back = plain_propagate_max_grad if torch.is_grad_enabled() else propagate_max_grad
        to_x, to_weight = back(grad, y, ties, sent, range_, ctx.ints, ctx.floats, for_weight)
        to_weight = to_weight if for_weight else None
    return to_x, to_weight, *NO_GRADIENTS, None, None, None


propagate_max_operator = Operator(
    "propagate_max",
    plain_propagate_max,
    fake=_fake,
    cpu=_on_cpu,
    serves=lambda x, weight, *_: serves(x, weight),
    takes=Takes("propagate_max", **GRAPH, range_="float32 [2]", ints="free", floats="free", also=check_heads),
    setup=_setup,
    backward=_backward,
)


def propagate_max(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: EdgeOrder,
    by_sender: EdgeOrder,
    scheme: Scheme,
    ends: tuple[Tensor, Tensor],
    senders_protected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the largest, by column, of the quantized messages that reach each node; 0 where none does.

    The arguments are those of :func:`dqconvert.kernels.propagate`.

    Returns:
        The aggregates `[num_receivers, heads * channels]` and the new range, float32 `[2]`. Gradients reach `x` and
        `weight`; messages that are equally large share them. NaN is the largest of all.

    Raises:
        TypeError, ValueError: For a mask that does not fit.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, figure 1 (message passing).

    Example:
        >>> from dqconvert.kernels import edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> propagate_max(torch.tensor([[15.0, 1.6], [0.4, 3.0]]), None, sender, receiver, *orders, scheme, never)[0]
        tensor([[ 0.,  3.],
                [15.,  3.]])
    """
    sent = Sent.of(x, weight, sender, receiver, by_receiver, by_sender, senders_protected)
    y, new, _ = propagate_max_operator(sent, torch.stack(ends), *scheme.packed())
    return y, new

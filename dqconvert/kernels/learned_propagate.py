"""Message passing as in :mod:`dqconvert.kernels.propagate`, where the range of the messages is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import ends_of
from dqconvert.kernels.cpu import learned_propagate as _loops
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.degree import in_degree
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.learned import plain_learned_grad
from dqconvert.kernels.propagate import GRAPH, Passing, messages_back, plain_messages


def plain_learned_propagate(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    num_nodes: int,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> Tensor:
    """Defines the values: those of :func:`dqconvert.kernels.propagate.plain_propagate`, without a chain."""
    scheme, mean, _ = Passing.unpacked(ints, floats)
    message, _, _ = plain_messages(x, weight, sender, protected, range_, scheme)
    out = x.new_zeros((num_nodes, x.size(1))).index_add(0, receiver, message)
    return out / in_degree([receiver], num_nodes).to(out.dtype).clamp(min=1).unsqueeze(1) if mean else out


def plain_learned_propagate_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    out: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines the gradients of `x`, of the weights (`[0, 0]` without any) and of the range, message by message."""
    scheme, mean, _ = Passing.unpacked(ints, floats)
    if mean:
        grad = grad / in_degree([receiver], grad.size(0)).to(grad.dtype).clamp(min=1).unsqueeze(1)
    message, _, _ = plain_messages(x, weight, sender, sender.new_ones(x.size(0), dtype=torch.bool), range_, scheme)
    rows = None if protected is None else protected.index_select(0, sender)
    args = (range_[0], range_[1], scheme.quant_min, scheme.quant_max, rows, 0, None)
    to_message, *to_ends = plain_learned_grad(grad.index_select(0, receiver), message, *args)
    to_x, to_weight = messages_back(to_message, x, weight, sender, True)
    return to_x, x.new_empty((0, 0)) if to_weight is None else to_weight, torch.stack(to_ends).float()


def _on_cpu(x: Tensor, weight: Tensor | None, sender: Tensor, receiver: Tensor, *rest: Any) -> Tensor:
    by_receiver, by_sender, _, protected, range_, ints, floats = rest
    scheme, mean, _ = Passing.unpacked(ints, floats)
    common = (Grid(scheme, *range_.tolist()), protected, mean)
    if weight is None:
        return torch.from_numpy(sums.SumsOfRows(x, by_receiver, by_sender, *common).rows())
    return torch.from_numpy(sums.SumsOfProducts(x, weight, by_receiver, *common).rows())


def _grad_on_cpu(
    grad: Tensor, x: Tensor, weight: Tensor | None, _: Tensor, __: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    by_receiver, by_sender, out, protected, range_, ints, floats = rest
    scheme, mean, *_more = Passing.unpacked(ints, floats)
    grid = Grid(scheme, *range_.tolist())
    return _loops.propagate_back(grad, x, weight, by_receiver, by_sender, out, protected, grid, mean)


def _fake_grad(grad: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    to_weight = x.new_empty((0, 0)) if weight is None else weight.new_empty(weight.shape)
    return x.new_empty(x.shape), to_weight, rest[-3].new_empty(2)


learned_propagate_grad = Operator(
    "learned_propagate_grad",
    plain_learned_propagate_grad,
    fake=_fake_grad,
    cpu=_grad_on_cpu,
    serves=lambda grad, x, weight, *_: grad.dtype == x.dtype and sums.serves(x, weight),
    takes=Takes(
        "learned_propagate_grad",
        grad="real [nodes, columns]",
        x="grad [senders, columns]",
        weight="grad? [edges, heads]",
        sender="index [edges]",
        receiver="index [edges]",
        by_receiver="order [nodes, edges, senders]",
        by_sender="order [senders, edges, nodes]",
        out="grad [nodes, columns]",
        protected="bool? [senders]",
        range_="float32 [2]",
        ints="free",
        floats="free",
        also=sums.check_heads,
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, sender, receiver, by_receiver, by_sender, _, protected, range_, ctx.ints, ctx.floats = inputs
    ctx.save_for_backward(x, weight, sender, receiver, *by_receiver, *by_sender, output, protected, range_)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, sender, receiver, *orders, out, protected, range_ = ctx.saved_tensors
    # A gradient of a gradient goes through torch's own operators.
    back = plain_learned_propagate_grad if torch.is_grad_enabled() else learned_propagate_grad
    args = (sender, receiver, orders[:3], orders[3:], out, protected, range_, ctx.ints, ctx.floats)
    to_x, to_weight, to_range = back(grad.contiguous(), x.contiguous(), weight, *args)
    order = [None] * 3
    return to_x, None if weight is None else to_weight, None, None, order, order, None, None, to_range, None, None


learned_propagate_operator = Operator(
    "learned_propagate",
    plain_learned_propagate,
    fake=lambda x, weight, sender, receiver, a, b, num_nodes, *_: x.new_empty((num_nodes, x.size(1))),
    cpu=_on_cpu,
    serves=lambda x, weight, *_: sums.serves(x, weight),
    takes=Takes(
        "learned_propagate",
        **GRAPH,
        protected="bool? [senders]",
        range_="float32 [2]",
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
    if senders_protected is not None:
        check_rows(senders_protected, x, 0, name="senders_protected")
    args = (list(by_receiver), list(by_sender), by_receiver.ptr.size(0) - 1, senders_protected)
    packed = Passing(scheme, mean).packed()
    y: Tensor = learned_propagate_operator(x, weight, sender, receiver, *args, ends_of(ends), *packed)
    return y

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
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu import max_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import flags, matrix, observe
from dqconvert.kernels.cpu.propagate import check_heads, message_values, serves
from dqconvert.kernels.cpu.threads import balanced, parts, run
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.propagate import GRAPH, messages_back, plain_messages


def plain_propagate_max(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to; it does without the orders.

    The arguments are those of :func:`propagate_max`; `range_` is float32 `[2]`, `ints` and `floats` the scheme.

    Returns:
        The largest messages; the new range; and how many messages are as large, in `x`'s type.
    """
    message, new, _ = plain_messages(x, weight, sender, protected, range_, Scheme.unpacked(ints, floats))
    index = receiver.unsqueeze(1).expand_as(message)
    out = x.new_zeros((num_nodes, x.size(1))).scatter_reduce(0, index, message, "amax", include_self=False)
    ties = torch.zeros_like(out).scatter_add(0, index, (message == out.gather(0, index)).to(out.dtype))
    return out, new, ties


def _on_cpu(x: Tensor, weight: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, by_receiver, by_sender, num_nodes, protected, range_, ints, floats = rest
    grid = Grid(Scheme.unpacked(ints, floats), *range_.tolist())
    observe(grid, message_values(x, weight, by_receiver, by_sender, protected))
    y, ties = (empty((num_nodes, x.size(1)), x.dtype) for _ in range(2))
    ptr, edges, senders = map(array, by_receiver)
    parameters = grid.parameters(matrix(x).dtype.type)
    args = (matrix(x), _weights(x, weight), senders, ptr, edges, flags(protected), parameters, array(y), array(ties))
    run(lambda _, start, stop: loops.max_rows(*args, start, stop), balanced(ptr, x.size(1)))
    return y, torch.tensor([grid.lo, grid.hi], dtype=torch.float32), ties


def _weights(x: Tensor, weight: Tensor | None) -> Any:
    return array(x.new_empty((0, 0))) if weight is None else array(weight)


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (rest[5], x.size(1))
    return x.new_empty(shape), torch.empty_like(rest[7]), x.new_empty(shape)


def plain_propagate_max_grad(
    grad: Tensor,
    y: Tensor,
    ties: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Defines the gradients of `x` and of the weights.

    The largest messages share the gradient evenly, as :func:`torch.scatter_reduce` does it, which counts the zero that
    it starts from where the result is zero. Differentiable itself.
    """
    scheme = Scheme.unpacked(ints, floats)._replace(observe=False)
    with torch.no_grad():
        message, _, clipped = plain_messages(x, weight, sender, protected, range_, scheme)
        there = y.index_select(0, receiver)
        passes = ((message == there) | there.isnan()) & ~clipped
    share = grad / (ties + (y == 0))
    to_message = torch.where(passes, share.index_select(0, receiver), 0)
    return messages_back(to_message, x, weight, sender, for_weight)


def _grad(
    grad: Tensor,
    y: Tensor,
    ties: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_sender: Sequence[Tensor],
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `x` and, if `for_weight`, of the weights (else `[0, 0]`), by the range of that time."""
    passing = (protected, range_, ints, floats, for_weight)
    to_x, to_weight = plain_propagate_max_grad(grad, y, ties, x, weight, sender, receiver, *passing)
    return to_x, grad.new_empty((0, 0)) if to_weight is None else to_weight


def _grad_on_cpu(grad: Tensor, y: Tensor, ties: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> Any:
    _, _, by_sender, protected, range_, ints, floats, for_weight = rest
    scheme = Scheme.unpacked(ints, floats)
    rows = matrix(x)
    share, to_x = empty(y.shape, y.dtype), empty(x.shape, x.dtype)
    cuts = parts(y.size(0), y.numel())
    whole = (matrix(grad), matrix(y), matrix(ties), array(share))
    run(lambda _, start, stop: loops.shares(*whole, start, stop), cuts)
    to_weight = x.new_empty(weight.shape if for_weight and weight is not None else (0, 0))
    ptr, edges, receivers = map(array, by_sender)
    parameters = Grid(scheme, *range_.tolist()).parameters(rows.dtype.type)
    graph = (receivers, ptr, edges, flags(protected), parameters, scheme.clip)
    args = (array(share), matrix(y), rows, _weights(x, weight), *graph, array(to_x), array(to_weight))
    run(lambda _, start, stop: loops.max_back(*args, start, stop), balanced(ptr, x.size(1)))
    return to_x, to_weight


def _fake_grad(grad: Tensor, y: Tensor, ties: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> Any:
    return x.new_empty(x.shape), x.new_empty(weight.shape if rest[-1] and weight is not None else (0, 0))


propagate_max_grad = Operator(
    "propagate_max_grad",
    _grad,
    fake=_fake_grad,
    cpu=_grad_on_cpu,
    serves=lambda grad, y, ties, x, weight, *_: grad.dtype == x.dtype and serves(x, weight),
    takes=Takes(
        "propagate_max_grad",
        grad="real [nodes, columns]",
        y="grad [=grad]",
        ties="grad [=grad]",
        x="grad [senders, columns]",
        weight="grad? [edges, heads]",
        sender="index [edges]",
        receiver="index [edges]",
        by_sender="order [senders, edges, nodes]",
        protected="bool? [senders]",
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
    x, weight, sender, receiver, _, by_sender, _, protected, _, ctx.ints, ctx.floats = inputs
    y, range_, ties = output
    ctx.save_for_backward(y, ties, x, weight, sender, receiver, *by_sender, protected, range_)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    order = [None] * 3
    to_x, to_weight = None, None
    if grad is not None:
        y, ties, x, weight, sender, receiver, *by_sender, protected, range_ = ctx.saved_tensors
        for_weight = ctx.needs_input_grad[1]
        passing = (protected, range_, ctx.ints, ctx.floats, for_weight)
        if torch.is_grad_enabled():  # a gradient of a gradient goes through torch's own operators
            to_x, to_weight = plain_propagate_max_grad(grad, y, ties, x, weight, sender, receiver, *passing)
        else:
            to_x, to_weight = propagate_max_grad(grad, y, ties, x, weight, sender, receiver, by_sender, *passing)
        to_weight = to_weight if for_weight else None
    return to_x, to_weight, None, None, order, order, *(None,) * 5


propagate_max_operator = Operator(
    "propagate_max",
    plain_propagate_max,
    fake=_fake,
    cpu=_on_cpu,
    serves=lambda x, weight, *_: serves(x, weight),
    takes=Takes(
        "propagate_max",
        **GRAPH,
        protected="bool? [senders]",
        range_="float32 [2]",
        ints="free",
        floats="free",
        also=check_heads,
    ),
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
    if senders_protected is not None:
        check_rows(senders_protected, x, 0, name="senders_protected")
    y, new, _ = propagate_max_operator(
        x,
        weight,
        sender,
        receiver,
        list(by_receiver),
        list(by_sender),
        by_receiver.ptr.size(0) - 1,
        senders_protected,
        torch.stack(ends),
        *scheme.packed(),
    )
    return y, new

"""Messages, their quantization and their sum in one loop over edges, without a value per edge being stored.

A message is the row of the node that sends it, `x_j`, or that times a weight of the edge, `w * x_j`, per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels import _propagate_loops as loops
from dqconvert.kernels._dispatch import direct
from dqconvert.kernels._grid import Scheme
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels.chain import plain_observe
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.fake_quantize import plain_fake_quantize, qparams


def plain_propagate(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    num_nodes: int,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """The definition that every implementation is held to.

    **Arguments**: those of :func:`propagate`; `range_` is float32 `[2]`, the two ends of the messages' range, `ints`
    and `floats` their scheme.

    **Returns** the aggregates and the new range. See :func:`plain_messages` for what is aggregated.
    """
    message, new, _ = plain_messages(x, weight, sender, protected, range_, ints, floats)
    out = x.new_zeros((num_nodes, x.size(1))).index_add(0, receiver, message)
    if mean:
        out = out / _in_degree(receiver, num_nodes).to(out.dtype).clamp(min=1).unsqueeze(1)
    return out, new


def plain_messages(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Every message, quantized, `[num_edges, features]`; the new range; and which values were clipped."""
    (scheme,) = Scheme.unpacked(ints, floats)
    message = x.index_select(0, sender)
    if weight is not None:
        heads = (weight.size(0), weight.size(1), x.size(1) // max(weight.size(1), 1))
        message = (message.view(heads) * weight.unsqueeze(2)).view_as(message)
    rows = None if protected is None else protected.index_select(0, sender)
    lo, hi = plain_observe(message, range_[0], range_[1], scheme, rows)
    scale, zero_point = qparams(lo, hi, scheme.quant_min, scheme.quant_max, scheme.symmetric)
    rounded, clipped = plain_fake_quantize(
        message, scale, zero_point, scheme.quant_min, scheme.quant_max, rows, 0, None
    )
    return rounded, torch.stack([lo, hi]), clipped & scheme.clip


def _in_degree(receiver: Tensor, num_nodes: int) -> Tensor:
    return torch.zeros(num_nodes, dtype=torch.int64, device=receiver.device).scatter_add_(
        0, receiver, torch.ones_like(receiver)
    )


@torch.library.custom_op("dqconvert::propagate", mutates_args=())
def _propagate(
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
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The aggregates, the new range, and what the gradient wants to know of `x` again."""
    result = plain_propagate(x, weight, sender, receiver, num_nodes, protected, range_, ints, floats, mean)
    return *result, x.new_empty((0, 0, 0))


@_propagate.register_kernel("cpu")
def _on_cpu(
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
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not loops.serves(x, weight):
        result = plain_propagate(x, weight, sender, receiver, num_nodes, protected, range_, ints, floats, mean)
        return *result, x.new_empty((0, 0, 0))
    return loops.propagate(x, weight, by_receiver, by_sender, num_nodes, protected, range_, ints, floats, mean)


@_propagate.register_fake
def _(
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
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    heads = 0 if weight is None else weight.size(1)
    extremes = x.new_empty((2, x.size(0), heads) if heads and loops.serves(x, weight) else (0, 0, 0))
    return x.new_empty((num_nodes, x.size(1))), x.new_empty((2,), dtype=torch.float32), extremes


def plain_propagate_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """The definition of the gradients of `x` and of the weights; differentiable itself."""
    (scheme,) = Scheme.unpacked(ints, floats)
    fixed = scheme._replace(observe=False).packed()
    with torch.no_grad():
        _, _, clipped = plain_messages(x, weight, sender, protected, range_, *fixed)
    if mean:
        grad = grad / _in_degree(receiver, grad.size(0)).to(grad.dtype).clamp(min=1).unsqueeze(1)
    to_message = grad.index_select(0, receiver).masked_fill(clipped, 0)
    to_weight = None
    if weight is not None:
        heads = (weight.size(0), weight.size(1), x.size(1) // max(weight.size(1), 1))
        if for_weight:
            to_weight = (to_message.view(heads) * x.index_select(0, sender).view(heads)).sum(2)
        to_message = (to_message.view(heads) * weight.unsqueeze(2)).view_as(to_message)
    return torch.zeros_like(x).index_add(0, sender, to_message), to_weight


@torch.library.custom_op("dqconvert::propagate_grad", mutates_args=())
def _propagate_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    extremes: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` and, if `for_weight`, of the weights (else `[0, 0]`); `range_` as it was rounded with."""
    to_x, to_weight = plain_propagate_grad(
        grad, x, weight, sender, receiver, protected, range_, ints, floats, mean, for_weight
    )
    return to_x, grad.new_empty((0, 0)) if to_weight is None else to_weight


@_propagate_grad.register_kernel("cpu")
def _grad_on_cpu(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    extremes: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    rest = (protected, range_, ints, floats, mean, for_weight)
    if loops.serves(x, weight):
        return loops.propagate_grad(grad, x, weight, by_receiver, by_sender, extremes, *rest)
    return _propagate_grad._init_fn(grad, x, weight, sender, receiver, by_receiver, by_sender, extremes, *rest)


@_propagate_grad.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    extremes: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    to_weight = weight.new_empty(weight.shape) if for_weight and weight is not None else x.new_empty((0, 0))
    return x.new_empty(x.shape), to_weight


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    x, weight, sender, receiver, by_receiver, by_sender, _, protected, _, ctx.ints, ctx.floats, ctx.mean = inputs
    ctx.save_for_backward(x, weight, sender, receiver, *by_receiver, *by_sender, protected, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    order = [None] * 3
    if grad is None:
        return None, None, None, None, order, order, *(None,) * 6
    x, weight, sender, receiver, *orders, protected, range_, extremes = ctx.saved_tensors
    for_weight = ctx.needs_input_grad[1]
    if torch.is_grad_enabled():  # a gradient of a gradient goes through torch's own operators
        rest = (protected, range_, ctx.ints, ctx.floats, ctx.mean, for_weight)
        both = plain_propagate_grad(grad, x, weight, sender, receiver, *rest)
        return *both, None, None, order, order, *(None,) * 6
    to_x, to_weight = (_grad_on_cpu if direct(grad) else _propagate_grad)(
        grad.contiguous(),
        x,
        weight,
        sender,
        receiver,
        orders[:3],
        orders[3:],
        extremes,
        protected,
        range_,
        ctx.ints,
        ctx.floats,
        ctx.mean,
        for_weight,
    )
    return to_x, to_weight if for_weight else None, None, None, order, order, *(None,) * 6


_propagate.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator, where it need not be one. Lists are taken apart, as gradients go by argument."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        output = _on_cpu(*args)
        _setup(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        to_x, to_weight, *_ = _backward(ctx, *grads)
        return to_x, to_weight, *(None,) * 10


def propagate(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: EdgeOrder,
    by_sender: EdgeOrder,
    scheme: Scheme,
    ends: tuple[Tensor, Tensor],
    protected: Tensor | None = None,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sums, or averages, the quantized messages that reach each node.

    **Arguments**

    - `x`: floating `[num_senders, heads * channels]`, a row for each node that sends.
    - `weight`: `[num_edges, heads]` in `x`'s type, what each edge multiplies its message by; `None`: nothing.
    - `sender`, `receiver`: int64 `[num_edges]`.
    - `by_receiver`, `by_sender`: the edges in the order of either, for all nodes that receive and that send.
    - `scheme`, `ends`: the grid of the messages and its range so far, float32 `[]` each.
    - `protected = None`: bool `[num_senders]`; messages of nodes that are True are neither observed nor rounded.
    - `mean = False`: whether to divide by the number of messages (1 where there is none).

    **Returns** the aggregates `[num_receivers, heads * channels]` and the new range, float32 `[2]`. Gradients reach
    `x` and `weight`. Each node's messages are added in the order of the edges.

    **Raises** `TypeError` or `ValueError` for a mask that does not fit.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, figure 1 (message passing).

    ```python
    >>> from dqconvert.kernels import edge_order
    >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
    >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
    >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
    >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
    >>> x = torch.tensor([[15.0, 1.6], [0.4, 3.0]])
    >>> propagate(x, None, sender, receiver, *orders, scheme, never)
    (tensor([[ 0.,  3.],
            [15.,  5.]]), tensor([ 0.4000, 15.0000]))

    ```
    """
    if protected is not None:
        check_rows(protected, x, 0, name="protected")
    ints, floats = scheme.packed()
    call = _Direct.apply if direct(x, weight, sender, receiver, protected) else _propagate
    out, new, _ = call(
        x,
        weight,
        sender,
        receiver,
        list(by_receiver),
        list(by_sender),
        by_receiver.ptr.size(0) - 1,
        protected,
        torch.stack(ends),
        ints,
        floats,
        mean,
    )
    return out, new

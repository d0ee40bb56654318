"""Messages, their quantization and their sum in one loop over edges, without a value per edge being stored.

A message is the row of the node that sends it, `x_j`, or that times a weight of the edge, `w * x_j`, per head. The
sums go on through a chain, see :mod:`dqconvert.kernels.chain`, without being stored either:

    messages -> grid -> sum | mean -> grid 0 -> + bias | + alpha * other -> grid 1 -> ReLU -> grid 2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._grid import Scheme, Steps, grid_of
from dqconvert.kernels._layout import check_rows
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import chain_gradients, ends_of, fake_results, masked, plain_quantize_chain
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.edge_order import EdgeOrder
from dqconvert.kernels.messages import GRAPH, NO_GRADIENTS, Passing, Sent, plain_messages, plain_sums
from dqconvert.kernels.propagate_grad import plain_propagate_grad, propagate_grad


def plain_propagate(
    sent: Sent,
    bias: Tensor | None,
    other: Tensor | None,
    alpha: Tensor | None,
    protected: Tensor | None,
    groups: Tensor | None,
    ranges: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to.

    The arguments are those of :func:`propagate`; `ranges` is float32 `[2 + 2 * grids]`, that of the messages first, or
    `[2 + 2 * grids, groups]`, where one of all messages stands for every group; `ints` and `floats` hold how messages
    are passed and the steps of the chain.

    Returns:
        The result, the new ranges and which gradients pass, as :func:`dqconvert.kernels.chain.plain_quantize_chain`
        does; and what the gradient wants to know of `x` again: here nothing, `[0, 0, 0]`.
    """
    passing = Passing.unpacked(ints, floats)
    own = (groups, sent.receiver) if passing.grouped else None
    range_ = message_range(ranges, passing)
    message, new, _ = plain_messages(*sent[:3], sent.protected, range_, passing.scheme, own)
    args = (plain_sums(message, sent, passing.mean), bias, other, alpha, protected, groups, ranges[2:])
    y, ends, passes = plain_quantize_chain(*args, *Passing.steps(ints, floats))
    return y, torch.cat([alike(new, ranges), ends]), passes, sent.x.new_empty((0, 0, 0))


def message_range(ranges: Tensor, passing: Passing) -> Tensor:
    """Returns the range of the messages, float32 `[2]` or `[2, groups]`."""
    return ranges[:2] if passing.grouped or ranges.dim() == 1 else ranges[:2, 0]


def alike(new: Tensor, ranges: Tensor) -> Tensor:
    """Returns the new range of the messages with as many dimensions as all ranges have."""
    return new if new.dim() == ranges.dim() else new[:, None].expand(2, ranges.size(1))


def _on_cpu(sent: Sent, *rest: Any) -> tuple[Tensor, ...]:
    *added, ranges, ints, floats = rest
    passing, steps = Passing.unpacked(ints, floats), Passing.steps(ints, floats)
    bias, other, alpha, protected, groups = added
    grid = grid_of(passing.scheme, *message_range(ranges, passing).tolist())
    source = sums.sums_of(sent, grid, passing.mean, groups if passing.grouped else None)
    if _chain.serves_sums(source.shape, source.dtype, bias, other, alpha):
        # Where the range of the messages grows, so do those of their sums, and edges would be gone through again.
        rows_from = _chain.in_memory(source) if source.grew else source
        y, ends, passes = _chain.quantize(rows_from, _chain.Added(*added), ranges[2:], *steps)
    else:
        rows = torch.from_numpy(source.rows())
        y, ends, passes = plain_quantize_chain(rows, bias, other, alpha, protected, groups, ranges[2:], *steps)
    new = ranges[:2] if passing.grouped else alike(torch.tensor([grid.lo, grid.hi], dtype=torch.float32), ranges)
    return y, torch.cat([new, ends]), passes, source.extremes


def _fake(sent: Sent, *rest: Any) -> tuple[Tensor, ...]:
    x, weight = sent[:2]
    *_, ranges, ints, floats = rest
    heads = 0 if weight is None else weight.size(1)
    extremes = x.new_empty((2, x.size(0), heads) if heads and sums.serves(x, weight) else (0, 0, 0))
    return *fake_results(x, (sent.num_nodes, x.size(1)), ranges, *Passing.steps(ints, floats)), extremes


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    sent, (_, other, alpha, _, groups, _, ctx.ints, ctx.floats) = Sent(*inputs[:8]), inputs[8:]
    passing = Passing.unpacked(ctx.ints, ctx.floats)
    steps = Steps.unpacked(*Passing.steps(ctx.ints, ctx.floats))
    ctx.apart = steps.schemes[0] is not None
    ctx.same = other is sent.x
    # Not `ctx.needs_input_grad`: for the registered operator it counts the tensors of each list here.
    keep_other = other if alpha is not None and alpha.requires_grad else None
    own = (groups if passing.grouped else None, message_range(output[1], passing))
    ctx.save_for_backward(*sent.tensors(), *own, output[3], output[2], alpha, keep_other)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, *NO_GRADIENTS, *(None,) * 8
    sent, (groups, range_, extremes, passes, alpha, other) = Sent.saved(ctx.saved_tensors)
    for_x, for_weight = ctx.needs_input_grad[:2]
    for_added, twice = ctx.needs_input_grad[8:11], torch.is_grad_enabled()
    if twice or any(for_added):
        needed = (for_x or for_weight, *for_added)
        grad, *added = chain_gradients(grad, passes, other, alpha, ctx.apart, needed)
        passes = passes.new_empty(0)
    else:  # nobody else wants the gradient at the sums
        added = [None] * 3
    to_x, to_weight = None, None
    if grad is not None and (for_x or for_weight):
        passing = (groups, range_, ctx.ints, ctx.floats, for_weight)
        if twice:  # a gradient of a gradient goes through torch's own operators
            to_x, to_weight = plain_propagate_grad(grad, sent, *passing)
        else:
            plus = None
            if ctx.same and for_x:  # both gradients are of one tensor: they are added up on the way
                plus, added[1] = added[1], None
            to_x, to_weight = propagate_grad(grad.contiguous(), passes, ctx.apart, sent, extremes, *passing, plus)
    return to_x, to_weight if for_weight else None, *NO_GRADIENTS, *added, *(None,) * 5


def _serves(x: Tensor, weight: Tensor | None, *rest: Any) -> bool:
    # Rows that are sent as they are, are rounded once for all who receive them.
    return sums.serves(x, weight) and not (weight is None and Passing.unpacked(*rest[-2:]).grouped)


propagate_operator = Operator(
    "propagate",
    plain_propagate,
    fake=_fake,
    cpu=_on_cpu,
    serves=_serves,
    takes=Takes(
        "propagate",
        **GRAPH,
        bias="free",  # the chain is torch's where these do not fit the loops
        other="free",
        alpha="free",
        protected="bool? [num_nodes]",
        groups="uint8? [num_nodes]",
        ranges="float32",
        ints="free",
        floats="free",
        also=sums.check_heads,
    ),
    setup=_setup,
    backward=_backward,
)


def propagate(
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
    *,
    schemes: tuple[Scheme | None, Scheme | None, Scheme | None] = (None, None, None),
    ranges: Sequence[Tensor] = (),
    bias: Tensor | None = None,
    other: Tensor | None = None,
    alpha: Tensor | None = None,
    protected: Tensor | None = None,
    relu: bool = False,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums, or averages, the quantized messages that reach each node, and passes the sums through a chain.

    Args:
        x: Floating `[num_senders, heads * channels]`, a row for each node that sends.
        weight: `[num_edges, heads]` in `x`'s type, what each edge multiplies its message by; `None`: nothing.
        sender, receiver: int64 `[num_edges]`.
        by_receiver, by_sender: The edges in the order of either, for all nodes that receive and that send.
        scheme, ends: The grid of the messages and its range so far, float32 `[]` each; or `[groups]`, by the group of
            the node that receives.
        senders_protected: bool `[num_senders]`; messages of nodes that are True are neither observed nor rounded.
        mean: True to divide by the number of messages (1 where there is none).
        schemes, ranges, bias, other, alpha, protected, relu, groups: The chain that the aggregates go through, as in
            :func:`dqconvert.kernels.quantize_chain`; by default none.

    Returns:
        The result `[num_receivers, heads * channels]` and the new ranges, float32 `[2 + len(ranges)]`, that of the
        messages first; with groups they have a second dimension, along which one range of all messages is repeated.
        Gradients reach `x`, `weight`, `bias`, `other` and `alpha`. Each node's messages are added in the order of the
        edges.

    Raises:
        TypeError, ValueError: For a mask that does not fit.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, figure 1 (message passing).

    Example:
        >>> from dqconvert.kernels import edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> never = (torch.tensor(torch.inf), torch.tensor(-torch.inf))
        >>> x = torch.tensor([[15.0, 1.6], [0.4, 3.0]])
        >>> propagate(x, None, sender, receiver, *orders, scheme, never)
        (tensor([[ 0.,  3.],
                [15.,  5.]]), tensor([ 0.4000, 15.0000]))
    """
    sent = Sent.of(x, weight, sender, receiver, by_receiver, by_sender, senders_protected)
    if protected is not None:
        check_rows(protected, x.new_empty((sent.num_nodes, 0)), 0, name="protected")
    ints, floats = Passing(scheme, mean, ends[0].dim() > 0).packed()
    if groups is not None:
        count = next(end.numel() for end in (*ends, *ranges) if end.dim() > 0)
        ends = (ends[0].expand(count), ends[1].expand(count))
    more_ints, more_floats = masked(schemes, relu)
    numbers = ends_of([*ends, *ranges]), [*ints, *more_ints], [*floats, *more_floats]
    y, new, _, _ = propagate_operator(sent, bias, other, alpha, protected, groups, *numbers)
    return y, new

"""Messages, their quantization and their sum in one loop over edges, without a value per edge being stored.

A message is the row of the node that sends it, `x_j`, or that times a weight of the edge, `w * x_j`, per head. The
sums go on through a chain, see :mod:`dqconvert.kernels.chain`, without being stored either:

    messages -> grid -> sum | mean -> grid 0 -> + bias | + alpha * other -> grid 1 -> ReLU -> grid 2

Instead of their sum it may be the largest message, which goes through no chain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._steps import CHAIN, NO_CHAIN, RANGED, Chain, Ranged
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.chain import chain_gradients, fake_results, plain_quantize_chain
from dqconvert.kernels.cpu import chain as _chain
from dqconvert.kernels.cpu import propagate as sums
from dqconvert.kernels.cpu.largest import largest
from dqconvert.kernels.messages import GRAPH, Sent, plain_messages, plain_sums
from dqconvert.kernels.propagate_grad import plain_propagate_grad, propagate_grad


def plain_propagate(
    sent: Sent, messages: Ranged, reduce: str, chain: Chain
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to.

    Returns:
        The result, the new ranges of the chain and which gradients pass, as
        :func:`dqconvert.kernels.chain.plain_quantize_chain`; the new range of the messages; and what the gradient wants
        to know again: how many messages are as large as the largest, `[1, num_nodes, columns]` in `x`'s type; of sums
        here nothing, `[0, 0, 0]`.
    """
    own = (chain.groups, sent.receiver) if messages.grouped else None
    message, range_, _ = plain_messages(*sent[:3], sent.protected, messages.range_, messages.scheme, own)
    if reduce != "max":
        again = sent.x.new_empty((0, 0, 0))
        return *plain_quantize_chain(plain_sums(message, sent, reduce == "mean"), chain), range_, again
    index = sent.receiver.unsqueeze(1).expand_as(message)
    out = message.new_zeros((sent.num_nodes, message.size(1)))
    out = out.scatter_reduce(0, index, message, "amax", include_self=False)
    ties = torch.zeros_like(out).scatter_add(0, index, (message == out.gather(0, index)).to(out.dtype))
    return *plain_quantize_chain(out, chain), range_, ties.unsqueeze(0)


def _on_cpu(sent: Sent, messages: Ranged, reduce: str, chain: Chain) -> tuple[Tensor, ...]:
    grid = messages.grid()
    if reduce == "max":
        y, ties = largest(sent, grid)
        return y, chain.ranges.clone(), y.new_empty(0, dtype=torch.uint8), messages.of_grid(grid), ties
    source = sums.sums_of(sent, grid, reduce == "mean", chain.groups if messages.grouped else None)
    if _chain.serves(source.shape, source.dtype, chain.added):
        # Where the range of the messages grows, so do those of their sums, and edges would be gone through again.
        results = _chain.quantize(source.stored() if source.grew else source, chain)
    else:
        results = plain_quantize_chain(torch.from_numpy(source.rows()), chain)
    return *results, messages.of_grid(grid), source.extremes


def _fake(sent: Sent, messages: Ranged, reduce: str, chain: Chain) -> tuple[Tensor, ...]:
    x, weight, shape = *sent[:2], (sent.num_nodes, sent.x.size(1))
    again: tuple[int, ...] = (1, *shape) if reduce == "max" else (0, 0, 0)
    if reduce != "max" and weight is not None and weight.size(1) > 0 and sums.serves(sent):
        again = (2, x.size(0), weight.size(1))
    return *fake_results(x, shape, chain), torch.empty_like(messages.range_), x.new_empty(again)


def _check(sent: Sent, messages: Ranged, reduce: str, chain: Chain) -> None:
    sent.check()
    if chain.protected is not None:
        chain.check(sent.x.new_empty((sent.num_nodes, 0)))
    if reduce not in ("sum", "mean", "max"):
        raise ValueError(f"reduce={reduce!r}: must be 'sum', 'mean' or 'max'")
    if reduce == "max" and chain.acts:
        raise ValueError("the largest messages go through no chain")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    sent, messages, ctx.reduce, chain = inputs
    ctx.scheme, ctx.apart, ctx.same = messages[1:], chain.steps.schemes[0] is not None, chain.other is sent.x
    # An operator that takes lists of tensors takes an empty list for one.
    ctx.no_floats = None if chain.floats else []
    # Not `ctx.needs_input_grad`: for the registered operator it counts the tensors of each list here.
    keep_other = chain.other if chain.alpha is not None and chain.alpha.requires_grad else None
    y, _, passes, range_, again = output
    own = (chain.groups if messages.grouped else None, range_, again, y if ctx.reduce == "max" else None)
    ctx.save_for_backward(*sent.tensors(), *own, passes, chain.alpha, keep_other)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return Sent.gradients(None, None), None, None, Chain.gradients(None, None, None, floats=ctx.no_floats)
    sent, (groups, range_, *known, passes, alpha, other) = Sent.saved(ctx.saved_tensors)
    for_x, for_weight = ctx.needs_input_grad[:2]
    for_added, twice = ctx.needs_input_grad[12:15], torch.is_grad_enabled()
    if twice or any(for_added):
        needed = (for_x or for_weight, *for_added)
        grad, *added = chain_gradients(grad, passes, other, alpha, ctx.apart, needed)
        passes = passes.new_empty(0)
    else:  # nobody else wants the gradient at the sums
        added = [None] * 3
    to_x, to_weight = None, None
    if grad is not None and (for_x or for_weight):
        how = (sent, Ranged(range_, *ctx.scheme).frozen, groups, ctx.reduce, *known, for_weight)
        if twice:  # a gradient of a gradient goes through torch's own operators
            to_x, to_weight = plain_propagate_grad(grad, *how)
        else:
            plus = None
            if ctx.same and for_x:  # both gradients are of one tensor: they are added up on the way
                plus, added[1] = added[1], None
            to_x, to_weight = propagate_grad(grad.contiguous(), passes, ctx.apart, *how, plus)
    return (
        Sent.gradients(to_x, to_weight if for_weight else None),
        None,
        None,
        Chain.gradients(*added, floats=ctx.no_floats),
    )


propagate_operator = Operator(
    "propagate",
    plain_propagate,
    fake=_fake,
    cpu=_on_cpu,
    # Rows that are sent as they are, are rounded once for all who receive them; the largest have no groups.
    serves=lambda sent, messages, reduce, _: (
        sums.serves(sent) and not (messages.grouped and (sent.weight is None or reduce == "max"))
    ),
    check=_check,
    takes=Takes(
        "propagate",
        **GRAPH,
        **RANGED,
        reduce="flag",
        # The chain is torch's where these do not fit the loops.
        **CHAIN
        | {"bias": "free", "other": "free", "alpha": "free"}
        | {"protected": "bool? [num_nodes]", "groups": "uint8? [num_nodes]"},
        also=sums.check_heads,
    ),
    setup=_setup,
    backward=_backward,
)


def propagate(
    sent: Sent, messages: Ranged, chain: Chain = NO_CHAIN, reduce: str = "sum"
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduces the quantized messages that reach each node, and passes the results through a chain.

    Args:
        sent: Rows, and the edges that they are sent along, see :meth:`dqconvert.kernels.Sent.of`.
        messages: The grid of the messages; with groups, by that of the node that receives.
        chain: What sums go through, see :func:`dqconvert.kernels.quantize_chain`; by default nothing happens to them.
        reduce: `"sum"`; `"mean"`: divided by the number of messages (1 where there is none); `"max"`: the largest by
            column, 0 where there is none, NaN the largest of all; then there is no chain.

    Returns:
        The result `[num_receivers, heads * channels]`; the new ends of the ranges, as the chain has them; and the new
        range of the messages, float32 `[2]`, or `[2, groups]`. Gradients reach `x`, `weight`, `bias`, `other` and
        `alpha`; messages that are equally large share them. Each node's messages are added in the order of the edges.

    Raises:
        TypeError, ValueError: For a mask that does not fit, another reduction, or a chain behind the largest.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, figure 1 (message passing).

    Example:
        >>> from dqconvert.kernels import Scheme, edge_order
        >>> sender, receiver = torch.tensor([[0, 1, 1], [1, 0, 1]])
        >>> orders = edge_order(receiver, sender, 2), edge_order(sender, receiver, 2)
        >>> scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
        >>> messages = Ranged.of(scheme, (torch.tensor(torch.inf), torch.tensor(-torch.inf)))
        >>> sent = Sent.of(torch.tensor([[15.0, 1.6], [0.4, 3.0]]), None, sender, receiver, *orders)
        >>> y, _, range_ = propagate(sent, messages)
        >>> y.tolist(), [round(end, 1) for end in range_.tolist()]
        ([[0.0, 3.0], [15.0, 5.0]], [0.4, 15.0])
        >>> propagate(sent, messages, reduce="max")[0].tolist()
        [[0.0, 3.0], [15.0, 3.0]]
    """
    y, ends, _, range_, _ = propagate_operator(sent, messages, reduce, chain)
    return y, ends, range_

"""Message passing: gather, product with an edge weight, rounding, aggregation, as one operator on codes."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.fuse.context import Context
from dqconvert.fuse.messages import Propagation, matched
from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.kernels.integer.finish import CODES, Finish
from dqconvert.kernels.integer.propagate import MessageWeight, integer_propagate
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.lower.values import Codes, Grid, Value
from dqconvert.trace.note import Note, annotate, note_of

if TYPE_CHECKING:
    from dqconvert.lower.walk import Lowering

_NEAR = 8
"""How many float32 numbers on either side are tried as a multiplier."""


class Propagations:
    """Where a graph passes messages that the operator knows: by the node that aggregates them."""

    def __init__(self, context: Context) -> None:
        quantizers = [node for node in context.graph.nodes if context.is_quantizer(node)]
        found = [matched(context, node, shared=True) for node in quantizers]
        self.by_aggregate = {match.aggregate: match for match in found if match is not None}


def lower_messages(lowering: Lowering, node: Node) -> Value | None:
    """The aggregation of messages ``x_j`` or ``w * x_j``, rounded right behind."""
    match = lowering.propagations.by_aggregate.get(node)
    grid = lowering.grid_behind(node)
    if match is None or grid is None:
        return None
    message_quantizer = lowering.quantizer(match.quantize)
    source, note = match.message.gather.source, note_of(node)
    widths = {math.prod(size[1:]) for size in note.sizes}
    if message_quantizer is None or len(widths) != 1:
        return None
    message_grid, x = Grid.of(message_quantizer), lowering.values[source]
    weight = None if match.message.weight is None else lowering.values[match.message.weight]
    label = str(match.quantize.target)
    if weight is None:
        x = lowering.rounded(x, message_grid, note_of(source), label)
    value = lowering.coded(x, note_of(source), label)
    if value is None or not (weight is None or isinstance(weight, Codes)):
        return None
    out, columns = lowering.out, widths.pop()
    ptr, senders, edges = _order(lowering, match)
    codes = value.node if note.ndim == 2 else out.graph.call_method("flatten", (value.node, 1))
    x_grid = out.constant(value.grid.numbers(), f"{label}.input_grid")
    options: dict[str, Any] = {"reduce": match.how}
    if weight is not None and match.message.weight is not None:
        options["weight"] = MessageWeight(
            _by_head(
                out.graph.call_method("index_select", (weight.node, 0, edges)), note_of(match.message.weight).ndim
            ),
            out.constant(_multipliers(value.grid, weight.grid, message_grid), f"{label}.multipliers"),  # type: ignore[arg-type]
            out.constant(message_grid.numbers(), f"{label}.grid"),  # type: ignore[arg-type]
        )
    finish = Finish(
        factor=out.constant(torch.tensor([message_grid.scale], dtype=torch.float32), f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(), f"{node.target}.grid"),  # type: ignore[arg-type]
    )
    found = out.graph.call_function(integer_propagate, (codes, x_grid, ptr, senders, columns, finish), options)
    annotate(found, Note(sizes=tuple((size[0], columns) for size in note.sizes)))
    if note.ndim != 2:
        found = annotate(out.graph.call_method("view", (found, -1, *note.sizes[0][1:])), note)
    return Codes(found, grid)


def _by_head(codes: Node, ndim: int) -> Any:
    """Weights `[num_edges, heads]` of those that may have no dimension for heads, or one more for channels."""
    if ndim == 2:
        return codes
    return codes.graph.call_method(*(("unsqueeze", (codes, 1)) if ndim == 1 else ("flatten", (codes, 1))))


def _multipliers(x: Grid, weight: Grid, message: Grid) -> Tensor:
    """float32 `[256]`: what the centred codes of ``x`` are multiplied by, by the code of the weight.

    In training a message is a product of two rounded numbers, divided by a third: where it lies beside the middle of
    two codes, its last bits decide. So of the numbers next to the right one, that is taken whose products round alike
    most often.
    """
    first = (weight.values(torch.float64) * x.scale / message.scale).float()
    messages = weight.values(torch.float32)[:, None] * x.values(torch.float32)[: x.top + 1]
    wanted = plain_quantize(messages, message.numbers(), None, False)
    centred = (torch.arange(x.top + 1) - x.zero).double()
    best, fewest = first, torch.full((CODES,), CODES)
    for step in sorted(range(-_NEAR, _NEAR + 1), key=abs):
        near = torch.where(first == 0, first, (first.view(torch.int32) + step).view(torch.float32))
        products = near.double()[:, None] * centred + (message.zero + message.low)
        found = products.float().round().clamp(message.low, message.low + message.top) - message.low
        wrong = (found != wanted).sum(1)
        best, fewest = torch.where(wrong < fewest, near, best), torch.minimum(wrong, fewest)
    return best


def _order(lowering: Lowering, match: Propagation) -> tuple[Node, Node, Node]:
    """Where the edges of each receiver begin, their senders, their positions: one call for all layers of a graph."""
    taken, out = match.message.gather, lowering.out
    sender, receiver = lowering.plain(taken.index), lowering.plain(match.receiver)
    size = lowering.plain(match.num_nodes) if isinstance(match.num_nodes, Node) else match.num_nodes
    rows = lowering.rows(taken.source)
    order = out.call(receiver_order, (sender, receiver, rows, size))
    ptr, senders, edges = (out.call(operator.getitem, (order, k)) for k in range(3))
    return ptr, senders, edges

"""Message passing: gather, product with an edge weight, rounding, aggregation, as one operator on codes."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import Finish
from dqconvert.lower.runtime import pass_messages, receiver_order
from dqconvert.lower.values import Codes, Grid, Value
from dqconvert.rewrite.fuse.context import Context
from dqconvert.rewrite.fuse.messages import _matched, _Propagation
from dqconvert.trace.note import Note, annotate, note_of

if TYPE_CHECKING:
    from dqconvert.lower.lowering import Lowering


class Propagations:
    """Where a graph passes messages that the operator knows: by the node that aggregates them."""

    def __init__(self, context: Context) -> None:
        found = [_matched(context, node) for node in context.graph.nodes if context.is_quantizer(node)]
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
    message_grid, value = Grid.of(message_quantizer), lowering.values[source]
    weight = None if match.message.weight is None else lowering.values[match.message.weight]
    label = str(match.quantize.target)
    if weight is None:
        value = lowering.rounded(value, message_grid, note_of(source), label)
    if not isinstance(value, Codes) or not (weight is None or isinstance(weight, Codes)):
        return None
    out, columns = lowering.out, widths.pop()
    ptr, senders, edges = _order(lowering, match)
    zero = out.constant(torch.tensor(float(message_grid.zero)), f"{label}.zero")
    codes, table = None, None
    if weight is not None:
        codes = out.graph.call_method("index_select", (weight.node, 0, edges))
        table = out.constant(_products(value.grid, weight.grid, message_grid), f"{label}.table")
    finish = Finish(
        factor=out.constant(torch.tensor([message_grid.scale]), f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers()[:3], f"{label}.grid"),  # type: ignore[arg-type]
    )
    flat = note.ndim != 2
    args = (value.node, ptr, senders, columns, zero, finish, codes, table, match.how)
    found = out.call(pass_messages, args, Note(sizes=tuple((size[0], columns) for size in note.sizes)))
    if flat:
        found = annotate(out.graph.call_method("view", (found, -1, *note.sizes[0][1:])), note)
    return Codes(found, grid)


def _products(x: Grid, weight: Grid, message: Grid) -> Tensor:
    """uint8 `[256, 256]`: the code of every product, by the code of ``x`` and that of the weight."""
    products = weight.values(torch.float32) * x.values(torch.float32)[:, None]
    return quantize(products, message.numbers())


def _order(lowering: Lowering, match: _Propagation) -> tuple[Node, Node, Node]:
    """Where the edges of each receiver begin, their senders, their positions: one call for all layers of a graph."""
    taken, out = match.message.gather, lowering.out
    sender, receiver = lowering.plain(taken.index), lowering.plain(match.receiver)
    size = lowering.plain(match.num_nodes) if isinstance(match.num_nodes, Node) else match.num_nodes
    rows = lowering.rows(taken.source)
    order = out.call(receiver_order, (sender, receiver, rows, size))
    ptr, senders, edges = (out.call(operator.getitem, (order, k)) for k in range(3))
    return ptr, senders, edges

"""Message passing: gather, product with an edge weight, rounding and aggregation, as one operator on codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.fuse.messages import Propagation
from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.kernels.integer.finish import CODES
from dqconvert.kernels.integer.propagate import MessageWeight, integer_propagate
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.lower.forms.linear import by_group, ended
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.values import Codes, GroupCodes, GroupGrid, QuantizerGrid, Value
from dqconvert.rewrite.norms import scale_rows
from dqconvert.trace.note import Note, note_of

_NEAR = 8
"""How many float32 numbers on either side are tried as a multiplier."""


def lower_messages(lowering: Lowering, node: Node) -> Value | None:
    """Lowers the aggregation of messages ``x_j`` or ``w * x_j``; what is not rounded right behind leaves as float32."""
    match = lowering.propagations.get(node)
    message_grid = None if match is None else lowering.any_grid(match.quantize)
    note = note_of(node)
    widths = {math.prod(size[1:]) for size in note.sizes}
    if match is None or message_grid is None or len(widths) != 1:
        return None
    grid, shares = lowering.behind(node) or (None, None)
    if grid is None and note.dtype != torch.float32:
        return None
    source, label, program = match.message.gather.source, str(match.quantize.target), lowering.program
    x, weight = lowering.values[source], lowering.value(match.message.weight)
    if match.message.weight is None and isinstance(message_grid, QuantizerGrid):
        x = lowering.rounded(x, message_grid, note_of(source), label)
    value = x if isinstance(x, GroupCodes) else lowering.coded(x, note_of(source), label)
    if value is None or not (match.message.weight is None or isinstance(weight, Codes | GroupCodes)):
        return None
    columns = widths.pop()
    several = _several(lowering, match, value, weight, message_grid, grid)
    if several is None:
        lowering.scaled.discard(node)
        return None
    sender, receiver = lowering.plain(match.message.gather.index), lowering.plain(match.receiver)
    scaled = source.args[0] if source.target is scale_rows else None  # of as many rows, known before they are scaled
    sizes = lowering.num_rows(scaled if isinstance(scaled, Node) else source), lowering.plain(match.num_nodes)
    # Equal calls become one: one order serves all layers of a graph.
    ptr, senders, edges = program.items(program.call(receiver_order, (sender, receiver, *sizes)), 3)
    codes = value.node if note.ndim == 2 else program.method("flatten", (value.node, 1))
    of_x, of_message = _grids(value.grid), _grids(message_grid)
    x_numbers, numbers = (torch.stack([one.numbers() for one in grids]) for grids in (of_x, of_message))
    x_grid = program.constant(x_numbers if several else x_numbers[0], f"{label}.input_grid")
    options: dict[str, Any] = {"reduce": match.how}
    if isinstance(weight, Codes | GroupCodes) and match.message.weight is not None:
        ordered = program.method("index_select", (weight.node, 0, edges))
        of_weight = weight.grid.grids if isinstance(weight, GroupCodes) else (weight.grid,) * len(of_message)
        pairs = zip(of_weight, of_message, strict=True)
        multipliers = torch.stack([torch.stack([_multipliers(one, *pair, several) for one in of_x]) for pair in pairs])
        options["weight"] = MessageWeight(
            _by_head(lowering, ordered, note_of(match.message.weight).ndim),
            program.constant(multipliers if several else multipliers[0, 0], f"{label}.multipliers"),
            program.constant(numbers if several else numbers[0], f"{label}.grid"),
            value.grid.groups if isinstance(value.grid, GroupGrid) else None,  # type: ignore[arg-type]
        )
    ends, groups = grid, None
    if isinstance(message_grid, GroupGrid):
        groups = lowering.plain(match.groups)
        ends = None if grid is None else by_group(grid, GroupGrid(message_grid.grids, groups))
    factor = torch.tensor([[one.scale] for one in of_message], dtype=torch.float32)
    finish = program.finish(factor if len(of_message) > 1 else factor[0], ends, label, shares=shares, groups=groups)
    rows = Note(sizes=tuple((size[0], columns) for size in note.sizes), dtype=note.dtype)
    found = program.call(integer_propagate, (codes, x_grid, ptr, senders, columns, finish), rows, **options)
    if note.ndim != 2:
        found = program.method("view", (found, -1, *note.sizes[0][1:]), note)
    return ended(found, grid)


def _several(
    lowering: Lowering,
    match: Propagation,
    x: Codes | GroupCodes,
    weight: Value,
    message: QuantizerGrid | GroupGrid,
    grid: QuantizerGrid | GroupGrid | None,
) -> bool | None:
    """True if rows or messages are on grids of groups; None if there is no operation for those."""
    of_edges = {one.groups for one in (message, getattr(weight, "grid", None)) if isinstance(one, GroupGrid)}
    if not of_edges and not isinstance(x, GroupCodes):
        return False
    if match.message.weight is None or match.how == "max" or len(of_edges) > 1:
        return None
    if not of_edges:
        return True
    # What is known of the edges' groups is known of those of the messages: that they are the receivers'.
    receivers = isinstance(message, GroupGrid) and lowering.plain(match.groups)
    return True if receivers and (not isinstance(grid, GroupGrid) or grid.groups is receivers) else None


def _grids(grid: QuantizerGrid | GroupGrid) -> tuple[QuantizerGrid, ...]:
    return grid.grids if isinstance(grid, GroupGrid) else (grid,)


def _by_head(lowering: Lowering, codes: Node, ndim: int) -> Any:
    """Returns weights ``[num_edges, heads]`` of those that may lack the dimension of heads, or have one of channels."""
    if ndim == 2:
        return codes
    return lowering.program.method(*(("unsqueeze", (codes, 1)) if ndim == 1 else ("flatten", (codes, 1))))


def _multipliers(x: QuantizerGrid, weight: QuantizerGrid, message: QuantizerGrid, several: bool) -> Tensor:
    """Returns what the centred codes of ``x`` are multiplied by, by the code of the weight: float32 ``[256]``.

    ``several``: whether they are made for many pairs of groups; then the nearest numbers alone are tried.

    In training a message is a product of two rounded numbers, divided by a third: where it lies beside the middle of
    two codes, its last bits decide. So of the numbers next to the right one, that is taken whose products round alike
    most often.
    """
    first = (weight.values(torch.float64) * x.scale / message.scale).float()
    messages = weight.values(torch.float32)[:, None] * x.values(torch.float32)[: x.top + 1]
    wanted = plain_quantize(messages, message.numbers(), None, False)
    centred = (torch.arange(x.top + 1) - x.zero).double()
    best, fewest = first, torch.full((CODES,), CODES)
    reach = 1 if several else _NEAR
    for step in sorted(range(-reach, reach + 1), key=abs):
        # The bits of neighbouring float32 numbers, read as an integer, differ by one.
        near = torch.where(first == 0, first, (first.view(torch.int32) + step).view(torch.float32))
        products = near.double()[:, None] * centred + (message.zero + message.low)
        found = products.float().round().clamp(message.low, message.low + message.top) - message.low
        wrong = (found != wanted).sum(1)
        best, fewest = torch.where(wrong < fewest, near, best), torch.minimum(wrong, fewest)
    return best

"""Products with a weight: of codes, in integers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.linear import integer_linear, pack_weight
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import reshaped_like
from dqconvert.lower.values import Codes, Constant, GroupCodes, GroupGrid, Literal, Plain, QuantizerGrid, Value
from dqconvert.ops import argument, op_name
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import note_of


def lower_linear(lowering: Lowering, node: Node) -> Value | None:
    """Lowers ``linear(x, weight, bias)`` or ``x @ weight`` of codes and a rounded weight.

    What is rounded right behind becomes codes. All else, as a result of the model, leaves as float32: the same sums of
    integers, scaled, which is nearer to exact than a product in float, and takes less time.
    """
    name = op_name(node)
    if name not in ("linear", "matmul") or len(node.args) < 2:
        return None
    x, weight, bias = map(lowering.value, (*node.args[:2], argument(node, "bias")))
    note = note_of(node)
    if not isinstance(x, Codes | GroupCodes):
        return None
    if not isinstance(weight, Constant) or weight.quantizer is None:
        return None
    if weight.value.dim() != 2 or not isinstance(bias, Constant | Literal):
        return None
    channel = 0 if name == "linear" else 1  # the dimension of the weight that is that of the results' columns
    if weight.quantizer.channel_dim not in (None, channel):
        return None
    grid, shares = lowering.behind(node) or (None, None)
    if (shares is not None and note.ndim != 2) or (grid is None and note.dtype != torch.float32):
        return None
    centred = centred_codes(weight.value, weight.quantizer)
    centred = (centred.t() if channel == 1 else centred).contiguous()
    columns, depth = centred.shape
    program, label = lowering.program, note.module or "linear"
    scale, offset = weight.quantizer.scale.float().reshape(-1), bias.value if isinstance(bias, Constant) else None
    grouped = [one for one in (x.grid, grid) if isinstance(one, GroupGrid)]
    if grouped and (len({one.groups for one in grouped}) > 1 or note.ndim != 2):
        lowering.scaled.discard(node)
        return None
    finish = finish_products(program, scale, x.grid, grid, label, offset, shares)
    packed = program.constant(pack_weight(centred), f"{label}.weight")
    x_grid = program.grid(x.grid, f"{label}.input_grid", scale.device)
    if note.ndim == 2:
        made = program.call(integer_linear, (x.node, x_grid, packed, columns, finish), note, depth=depth)
        return ended(made, grid)
    rows = program.method("reshape", (x.node, -1, depth))
    found = program.call(integer_linear, (rows, x_grid, packed, columns, finish), depth=depth)
    return ended(program.call(reshaped_like, (found, x.node, columns), note), grid)


def ended(node: Node, grid: QuantizerGrid | GroupGrid | None) -> Value:
    """Returns what is known of the results of an operation on integers that ends on a grid, or with values."""
    if grid is None:
        return Plain(node)
    return GroupCodes(node, grid) if isinstance(grid, GroupGrid) else Codes(node, grid)


def finish_products(
    program: Program,
    scale: Tensor,
    x: QuantizerGrid | GroupGrid,
    grid: QuantizerGrid | GroupGrid | None,
    label: str,
    offset: Tensor | None = None,
    shares: Node | None = None,
) -> Finish:
    """Returns the epilogue of products of rows on a grid and a weight of a scale; by group, if either grid is."""
    grouped = [one for one in (x, grid) if isinstance(one, GroupGrid)]
    if not grouped:
        assert isinstance(x, QuantizerGrid)
        return program.finish(scale * x.scale, grid, label, offset, shares)
    of_y = None if grid is None else by_group(grid, grouped[0])
    factor = torch.stack([scale * one.scale for one in by_group(x, grouped[0]).grids])
    return program.finish(factor, of_y, label, offset, shares, grouped[0].groups)


def by_group(grid: QuantizerGrid | GroupGrid, like: GroupGrid) -> GroupGrid:
    """Returns a grid of all rows as one of each group."""
    return grid if isinstance(grid, GroupGrid) else GroupGrid((grid,) * len(like.grids), like.groups)


def centred_codes(weight: Tensor, quantizer: FakeQuantize) -> Tensor:
    """Returns a weight's codes less their zero point, int16 of the weight's shape.

    Args:
        quantizer: The quantizer that rounds it.
    """
    dim, low = quantizer.channel_dim, quantizer.quant_min
    if dim is None:
        grid = QuantizerGrid.of(quantizer)
        return plain_quantize(weight, grid.numbers(weight.device), None, False).to(torch.int16) - grid.zero
    scale, zero = quantizer.scale.float(), quantizer.zero_point.float() - low
    ends = torch.tensor([[quantizer.quant_max - low], [low]], device=weight.device).expand(2, len(scale))
    codes = plain_quantize(weight, torch.cat([scale[None], zero[None], ends.float()]), dim, False).to(torch.int16)
    return codes - zero.to(torch.int16).view(*(-1 if d == dim else 1 for d in range(weight.dim())))

"""Products with a weight: of codes, in integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.linear import integer_linear, pack_weight
from dqconvert.lower.runtime import reshaped_like
from dqconvert.lower.values import Codes, Fixed, Grid, Known, Value
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import Note, note_of
from dqconvert.trace.ops import argument, op_name

if TYPE_CHECKING:
    from dqconvert.lower.walk import Lowering


def lower_linear(lowering: Lowering, node: Node) -> Value | None:
    """``linear(x, weight, bias)`` or ``x @ weight`` of codes and a weight on a grid, rounded right behind."""
    name = op_name(node)
    if name not in ("linear", "matmul") or len(node.args) < 2:
        return None
    operands = *node.args[:2], argument(node, "bias")
    x, weight, bias = [lowering.values[a] if isinstance(a, Node) else Fixed(a) for a in operands]
    grid = lowering.grid_behind(node)
    source, note = node.args[0], note_of(node)
    if grid is None or not isinstance(x, Codes) or not isinstance(weight, Known) or weight.quantizer is None:
        return None
    if not isinstance(source, Node) or weight.value.dim() != 2 or not isinstance(bias, Known | Fixed):
        return None
    transposed = name == "matmul"
    centred, scale = _centred(weight.value, weight.quantizer, transposed)
    if centred is None:
        return None
    out, columns, label = lowering.out, centred.size(0), note.module or "linear"
    finish = Finish(
        factor=out.constant(scale * x.grid.scale, f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(scale.device), f"{label}.grid"),  # type: ignore[arg-type]
        bias=out.constant(bias.value.float(), f"{label}.bias") if isinstance(bias, Known) else None,  # type: ignore[arg-type]
    )
    packed = out.constant(pack_weight(centred), f"{label}.weight")
    codes, flat = x.node, note.ndim != 2
    if flat:
        codes = out.graph.call_method("reshape", (codes, -1, centred.size(1)))
    x_grid = out.constant(x.grid.numbers(scale.device), f"{label}.input_grid")
    found = out.call(integer_linear, (codes, x_grid, packed, columns, finish), Note() if flat else note)
    found.kwargs = {"depth": centred.size(1)}
    if flat:
        found = out.call(reshaped_like, (found, x.node, columns), note)
    return Codes(found, grid)


def _centred(value: Tensor, quantizer: FakeQuantize, transposed: bool) -> tuple[Tensor | None, Tensor]:
    """A weight's codes less their zero, int16 ``[columns, depth]``, and the value of a step, by column or of all."""
    dim, low = quantizer.channel_dim, quantizer.quant_min
    scale, zero = quantizer.scale.float(), quantizer.zero_point.float() - low
    if dim is None:
        grid = Grid.of(quantizer).numbers(value.device)
    elif dim == (1 if transposed else 0):
        ends = torch.tensor([[quantizer.quant_max - low], [low]], device=value.device).expand(2, len(scale))
        grid = torch.cat([scale[None], zero[None], ends.float()])
    else:
        return None, scale
    codes = plain_quantize(value, grid, dim, False).to(torch.int16)
    wide = zero if dim is None else zero.view(*[-1 if d == dim else 1 for d in range(2)])
    centred = codes - wide.to(torch.int16)
    return (centred.t() if transposed else centred).contiguous(), scale.reshape(-1)

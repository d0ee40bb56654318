"""Roundings: quantizers of the prepared graph that no other form takes with what is before them."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from dqconvert.kernels import fake_quantize
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.report import Float
from dqconvert.lower.values import Constant, Plain, Value
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import note_of


def lower_rounding(lowering: Lowering, node: Node) -> Value | None:
    """Requantizes a value: a weight now, codes by a table, float values by an operation.

    Values with a grid for each channel, other than weights, are rounded in float.
    """
    quantizer = lowering.module(node)
    if not isinstance(quantizer, FakeQuantize):
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    value, program = lowering.values[source], lowering.program
    if not quantizer.fake_quant_enabled:
        return value
    ends = quantizer.quant_min, quantizer.quant_max
    if isinstance(value, Constant):
        args = value.value, quantizer.scale, quantizer.zero_point, *ends, None, quantizer.row_dim, quantizer.channel_dim
        return Constant(fake_quantize(*args), quantizer)
    grid = lowering.any_grid(node)
    if grid is not None:
        return lowering.rounded(value, grid, note_of(source), str(node.target))
    scale: Any = program.constant(quantizer.scale, f"{node.target}.scale")
    zero_point: Any = program.constant(quantizer.zero_point, f"{node.target}.zero_point")
    dim, differ = quantizer.channel_dim, "channel"
    if quantizer.grouped:
        groups = program.method("long", (lowering.plain(node.args[2]),))
        scale, zero_point = (program.method("index_select", (table, 0, groups)) for table in (scale, zero_point))
        dim, differ = quantizer.row_dim, "group of in-degrees"
    plain = lowering.plain(source), scale, zero_point, *ends, None, quantizer.row_dim, dim
    new = program.call(fake_quantize, plain, note_of(node))
    lowering.floats[new] = Float.of(node, f"its grids differ by {differ}")
    return Plain(new)

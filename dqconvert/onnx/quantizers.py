"""Quantizers in a file: QuantizeLinear and DequantizeLinear, a pair that runtimes look for; weights as their codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.stored import Grid, Stored
from dqconvert.onnx.values import Rounded, Wire
from dqconvert.onnx.writing import Writing
from dqconvert.quant import FakeQuantize


def quantize(w: Writing, quantizer: FakeQuantize, path: str, x: Any, groups: Any = None) -> Any:
    """Writes a quantizer, in evaluation.

    QuantizeLinear rounds ``x / scale`` and then adds the zero point; training adds it before, in float32, and halves
    fall to other sides. They are common: a GCN norm is often half of another. So the sum is written out, and
    QuantizeLinear rounds it, with scale 1; what follows is DequantizeLinear, of which runtimes make products of
    integers. ``plain``: the pair alone. With ``exact`` all of it is arithmetic, and where each row has the grid of its
    group.

    Args:
        path: Of the quantizer, which names its values.
        x: What it rounds.
        groups: The group of each row, if each has a grid of its own.
    """
    if not quantizer.fake_quant_enabled:
        return x
    if isinstance(x, Tensor) and not quantizer.grouped:
        grid = Grid.of(quantizer)
        return Stored(grid.codes(x), grid, path)
    grid, value = Grid.of(quantizer, unsigned=not w.plain), w.wire(x)
    if value.dtype is not torch.float32:
        raise w.refusal(f"it is {value.dtype}, and ONNX rounds float32: cast the module")
    scale, zero = grid.scale, grid.zero_in_training
    if quantizer.grouped:
        row = w.file.cast(w.wire(groups), torch.int64)
        others = [dim for dim in range(value.ndim) if dim != quantizer.row_dim % value.ndim]
        own = (w.file.unsqueeze(w.file.gather(w.file.constant(part), row), *others) for part in (scale, zero))
        return _arithmetic(w, value, grid, *own)
    if grid.axis is not None:
        scale, zero = (
            part.view([-1 if dim == grid.axis % value.ndim else 1 for dim in range(value.ndim)])
            for part in (scale, zero)
        )
    if w.exact:
        return _arithmetic(w, value, grid, scale, zero)
    how = {} if grid.axis is None else {"axis": grid.axis % value.ndim}
    held = [w.file.held(part, f"{path}.{name}", False) for part, name in ((grid.scale, "scale"), (grid.zero, "zero"))]
    if w.plain:
        if not grid.full:  # of fewer bits: the ends of the type are not those of the grid
            low, high = ((end - grid.zero.float()) * grid.scale for end in (grid.low, grid.high))
            value = (
                w.op("Clip", value, low, high)
                if grid.axis is None
                else w.math("Max", w.math("Min", value, high.view_as(scale)), low.view_as(scale))
            )
        codes = w.op("QuantizeLinear", value, *held, dtype=grid.zero.dtype, **how)
    else:
        steps = w.math("Add", w.math("Div", value, scale), zero)
        if not grid.full:
            steps = w.op("Clip", steps, float(grid.low - grid.shift), float(grid.high - grid.shift))
        codes = w.op(
            "QuantizeLinear", steps, 1.0, torch.tensor(grid.shift, dtype=grid.zero.dtype), dtype=grid.zero.dtype
        )
    result = w.op("DequantizeLinear", codes, *held, dtype=torch.float32, **how)
    return replace(result, rounded=Rounded(codes, *held))


def _arithmetic(w: Writing, x: Wire, grid: Grid, scale: Any, zero: Any) -> Wire:
    """Writes what :func:`dqconvert.kernels.fake_quantize.fake_quantize` computes."""
    steps = w.op("Round", w.math("Add", w.math("Div", x, scale), zero))
    codes = w.op("Clip", steps, float(grid.low - grid.shift), float(grid.high - grid.shift))
    return w.math("Mul", w.math("Sub", codes, zero), scale)

"""Grids in ONNX's terms, and rounded weights as constants of a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dqconvert.onnx.builder import Builder
from dqconvert.onnx.values import Wire
from dqconvert.quant import FakeQuantize

NIBBLE = 16
"""Codes that fit into 4 bits."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a quantizer: values are ``(code - zero) * scale``, codes int8 or uint8.

    Attributes:
        scale: float32 ``[]``; or of several grids.
        zero: Of the codes' type, likewise.
        low: The smallest code.
        high: The largest.
        axis: The dimension along which grids differ; ``None``: they do not.
        shift: By how many codes it is counted from another place than in training.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int
    axis: int | None
    shift: int = 0

    @classmethod
    def of(cls, quantizer: FakeQuantize, *, unsigned: bool = False) -> Grid:
        """Returns the grid of a quantizer in evaluation.

        Args:
            unsigned: Whether codes are to be uint8 anyhow. What reaches below zero is counted from there on.
        """
        low, high, zero = quantizer.quant_min, quantizer.quant_max, quantizer.zero_point.detach().cpu()
        signed = low < 0 and not unsigned
        shift = -128 - low if signed and not (low >= -128 and high < 128) else -low if low < 0 and unsigned else 0
        dtype = torch.int8 if signed else torch.uint8
        return cls(
            quantizer.scale.detach().cpu(),
            (zero + shift).to(dtype),
            low + shift,
            high + shift,
            quantizer.channel_dim,
            shift,
        )

    @property
    def zero_in_training(self) -> Tensor:
        """The zero point as training adds it, float32."""
        return self.zero.float() - self.shift

    @property
    def full(self) -> bool:
        """True if there are as many codes as their type has, so that saturation ends the grid."""
        return self.high - self.low == 255

    def codes(self, x: Tensor) -> Tensor:
        """Returns the codes of a value, rounded as the quantizer rounds it."""
        shape = [-1 if self.axis is not None and dim == self.axis % x.dim() else 1 for dim in range(x.dim())]
        scale, zero = (part if self.axis is None else part.view(shape) for part in (self.scale, self.zero_in_training))
        return ((x / scale + zero).round() + self.shift).clamp(self.low, self.high).to(self.zero.dtype)


@dataclass(frozen=True, eq=False)
class Stored:
    """A rounded weight, whose codes are stored once something reads it.

    Attributes:
        codes: int8 or uint8, of the weight's shape.
        grid: What they stand for.
        path: Of the quantizer.
    """

    codes: Tensor
    grid: Grid
    path: str

    def wire(self, file: Builder, *, transposed: bool = False, plain: bool = False) -> Wire:
        """Returns the weight's value; of a matrix also transposed, as products take it.

        Args:
            plain: Whether to compute it by arithmetic, which runtimes do once. Of a DequantizeLinear before a product
                of what was not rounded they make an operation that rounds it.
        """
        codes, axis, path = self.codes, self.grid.axis, self.path
        if transposed:
            codes, axis, path = codes.t().contiguous(), None if axis is None else 1 - axis % 2, f"{path}.transposed"
        small = self.grid.high - self.grid.low < NIBBLE
        held = [file.held(part, f"{path}.{name}", small) for part, name in ((codes, "codes"), (self.grid.zero, "zero"))]
        scale = file.held(self.grid.scale, f"{path}.scale", False)
        if not plain:
            how = {} if axis is None else {"axis": axis % codes.dim()}
            return file.op("DequantizeLinear", held[0], scale, held[1], dtype=torch.float32, **how)
        values, zero = (file.cast(part, torch.float32) for part in held)
        if axis is not None:
            shape = [-1 if dim == axis % codes.dim() else 1 for dim in range(codes.dim())]
            zero, scale = file.reshape(zero, shape), file.reshape(scale, shape)
        return file.op("Mul", file.op("Sub", values, zero), scale)

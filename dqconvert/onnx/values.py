"""The values of an ONNX file under construction, and what is known of the shapes of operators' results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from onnx import TensorProto
from torch import Tensor

TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}
"""ONNX's name of each type that files hold."""


@dataclass(frozen=True)
class Rounded:
    """The codes behind a rounded value: ``(codes - zero) * scale``.

    Attributes:
        codes: int8 or uint8, of the value's shape.
        scale: float32, a constant of the file.
        zero: Of the codes' type, likewise.
    """

    codes: Wire
    scale: Wire
    zero: Wire


@dataclass(frozen=True)
class Wire:
    """A value that the file computes.

    Attributes:
        name: In the file.
        dtype: Of its entries.
        ndim: Its number of dimensions.
        number: Whether the graph has a Python number there: a size.
        rounded: Its codes, if it was rounded right here and is no more than what they stand for.
    """

    name: str
    dtype: torch.dtype
    ndim: int
    number: bool = False
    rounded: Rounded | None = None


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix that the file computes, as dense ones.

    Attributes:
        values: float32 ``[rows, columns]``, 0 where it has no entry.
        there: Likewise, 1 where it has one: some are 0.
    """

    values: Wire
    there: Wire


Operand: TypeAlias = Wire | Tensor | float | int | bool
Size: TypeAlias = int | Wire

Dim: TypeAlias = int | tuple[str, int]
"""A size that never changes, or that of a dimension of a value, by its name: where it comes from."""

ENTRY_BY_ENTRY = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "Clip",
        "Cast",
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "CumSum",
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Celu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Softplus",
        "Erf",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Neg",
        "Abs",
        "Sign",
        "Round",
        "Floor",
        "Ceil",
        "Not",
        "Identity",
    ]
)
"""Operators whose result has the shape of their first argument."""

BROADCAST = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Max",
        "Min",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Where",
    ]
)
"""Operators whose result has the shape that their arguments broadcast to."""

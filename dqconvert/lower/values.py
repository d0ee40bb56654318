"""What lowering knows of a value of the prepared graph: where its codes are, or that it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.integer.finish import CODES
from dqconvert.quant import FakeQuantize


class Grid(NamedTuple):
    """What codes stand for: `(code - zero) * scale`.

    Attributes:
        scale: A float32 number.
        zero: The code of 0.
        top: The highest code.
        low: What the quantizer in training calls code 0.
    """

    scale: float
    zero: int
    top: int
    low: int

    @classmethod
    def of(cls, quantizer: FakeQuantize) -> Grid:
        """Of a quantizer that has one grid for the whole tensor.

        Example:
            >>> from dqconvert.qconfig import QSpec
            >>> quantizer = FakeQuantize(QSpec(bits=4), name="message", signed=True)
            >>> _ = quantizer(torch.tensor([-8.0, 7.0]))
            >>> Grid.of(quantizer)
            Grid(scale=1.0, zero=8, top=15, low=-8)
        """
        low = quantizer.quant_min
        zero = int(quantizer.zero_point) - low
        return cls(float(quantizer.scale), zero, quantizer.quant_max - low, low)

    def numbers(self, device: torch.device | None = None) -> Tensor:
        """float32 `[4]`, as the kernels take it."""
        return torch.tensor([self.scale, self.zero, self.top, self.low], dtype=torch.float32, device=device)

    def values(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """`[256]`, the value of every code, as the quantizer in training rounds to it."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        steps = torch.arange(CODES, dtype=wide, device=device) - self.zero
        return (steps * torch.tensor(self.scale, dtype=wide, device=device)).to(dtype)


@dataclass(frozen=True)
class Plain:
    """What the integer graph holds as it is: a float tensor, an index, a size.

    Attributes:
        node: Its node there.
    """

    node: Node


@dataclass(frozen=True)
class Codes:
    """A value that is held as codes.

    Attributes:
        node: Of the codes, uint8, of the value's shape.
        grid: What they stand for.
    """

    node: Node
    grid: Grid


@dataclass(frozen=True, eq=False)
class Looked:
    """A value that follows, entry by entry, from codes: it need not be there until somebody asks for it.

    Attributes:
        bases: The codes of one value or two, of the value's shape.
        table: Of the value's dtype, ``[256, *rest]`` or ``[256, 256, *rest]``; ``rest`` stands for the dimensions
            behind the first, each of size 1 where all entries along it agree.
    """

    bases: tuple[Node, ...]
    table: Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """A value that follows from parameters alone.

    Attributes:
        value: It.
        quantizer: What rounded it, if one did.
    """

    value: Tensor
    quantizer: FakeQuantize | None = None


@dataclass(frozen=True)
class Fixed:
    """A number, a flag, a type: anything that is no tensor and is known."""

    value: Any


@dataclass(frozen=True)
class Joined:
    """Values behind one another.

    Attributes:
        parts: These values.
        dim: Along which dimension.
    """

    parts: tuple[Value, ...]
    dim: int


Value = Plain | Codes | Looked | Known | Fixed | Joined


def tabular(value: Value) -> bool:
    """Whether a value follows from codes entry by entry."""
    return isinstance(value, Codes | Looked)


def as_looked(value: Codes | Looked, ndim: int, dtype: torch.dtype) -> Looked:
    """Codes as what follows from them."""
    if isinstance(value, Looked):
        return value
    return Looked((value.node,), value.grid.values(dtype).view(CODES, *[1] * (ndim - 1)))

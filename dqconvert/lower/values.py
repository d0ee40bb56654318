"""Values of the prepared graph as lowering knows them: their codes, their table, or that they are in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import CODES
from dqconvert.quant import FakeQuantize


class QuantizerGrid(CodeGrid):
    """The grid of codes of a quantizer, in Python's numbers; ``low`` is its ``quant_min``, which is code 0 here."""

    __slots__ = ()

    @classmethod
    def of(cls, quantizer: FakeQuantize) -> QuantizerGrid:
        """Returns the grid of a per-tensor quantizer.

        Example:
            >>> from dqconvert.qconfig import QSpec
            >>> quantizer = FakeQuantize(QSpec(bits=4), name="message", signed=True)
            >>> _ = quantizer(torch.tensor([-8.0, 7.0]))
            >>> QuantizerGrid.of(quantizer)
            QuantizerGrid(scale=1.0, zero=8, top=15, low=-8)
        """
        low = quantizer.quant_min
        zero = int(quantizer.zero_point) - low
        return cls(float(quantizer.scale), zero, quantizer.quant_max - low, low)

    def numbers(self, device: torch.device | None = None) -> Tensor:
        """Returns the grid as the kernels take it: float32 ``[4]``."""
        return torch.tensor([self.scale, self.zero, self.top, self.low], dtype=torch.float32, device=device)

    def values(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Returns the value of every code, ``[256]``, as the quantizer in training rounds to it."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        steps = torch.arange(CODES, dtype=wide, device=device) - self.zero
        return (steps * torch.tensor(self.scale, dtype=wide, device=device)).to(dtype)


@dataclass(frozen=True)
class Plain:
    """A value that the integer graph holds as the float graph does: a float tensor, an index, a size.

    Attributes:
        node: Its node in the integer graph.
    """

    node: Node


@dataclass(frozen=True)
class Codes:
    """A value that is held as codes.

    Attributes:
        node: The codes, uint8, of the value's shape.
        grid: What they stand for.
    """

    node: Node
    grid: QuantizerGrid


@dataclass(frozen=True)
class GroupGrid:
    """The grids of rows in groups.

    Attributes:
        grids: Of each group.
        groups: The node of the integer graph that holds the group of each row, uint8.
    """

    grids: tuple[QuantizerGrid, ...]
    groups: Node

    def numbers(self, device: torch.device | None = None) -> Tensor:
        """Returns the grids as the kernels take them: float32 ``[groups, 4]``."""
        return torch.stack([grid.numbers(device) for grid in self.grids])


@dataclass(frozen=True)
class GroupCodes:
    """A value that is held as codes, each row on the grid of its group; its rows are the first dimension."""

    node: Node
    grid: GroupGrid


@dataclass(frozen=True, eq=False)
class GroupTabulated:
    """A value that follows from codes as :class:`Tabulated` does, each row by the table of its group.

    Attributes:
        bases: As there.
        table: As there, with a first dimension for the groups.
        groups: The node of the integer graph that holds the group of each row.
    """

    bases: tuple[Node, ...]
    table: Tensor
    groups: Node


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A value that follows, entry by entry, from codes; it is looked up only where it is needed.

    Attributes:
        bases: The codes of one value or two, of the value's shape.
        table: Of the value's dtype, ``[256, *rest]`` or ``[256, 256, *rest]``; ``rest`` stands for the dimensions
            behind the first, each of size 1 where all entries along it agree.
    """

    bases: tuple[Node, ...]
    table: Tensor


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that follows from parameters alone.

    Attributes:
        value: The tensor.
        quantizer: The quantizer that rounded it, if one did.
    """

    value: Tensor
    quantizer: FakeQuantize | None = None


@dataclass(frozen=True)
class Literal:
    """A known value that is no tensor: a number, a flag, a dtype."""

    value: Any


@dataclass(frozen=True)
class Joined:
    """A concatenation of values that are held in different ways.

    Attributes:
        parts: The values.
        dim: The dimension along which they are concatenated.
    """

    parts: tuple[Value, ...]
    dim: int


Value = Plain | Codes | Tabulated | GroupCodes | GroupTabulated | Constant | Literal | Joined


def groups_node(value: Value) -> Node | None:
    """Returns the node that holds the group of each row, if rows differ by group."""
    if isinstance(value, GroupCodes):
        return value.grid.groups
    return value.groups if isinstance(value, GroupTabulated) else None


def of_group(value: Value, group: int) -> Value:
    """Returns what is known of the rows of one group."""
    if isinstance(value, GroupCodes):
        return Codes(value.node, value.grid.grids[group])
    return Tabulated(value.bases, value.table[group]) if isinstance(value, GroupTabulated) else value


def together(tables: Sequence[Tabulated | None], groups: Node) -> GroupTabulated | None:
    """Returns the tables of all groups as one; None if there are none, or of other codes."""
    found = [table for table in tables if table is not None]
    if len(found) < len(tables) or len({(table.bases, table.table.shape) for table in found}) > 1:
        return None
    return GroupTabulated(found[0].bases, torch.stack([table.table for table in found]), groups)


def tables_by_group(value: Value, count: int, ndim: int, dtype: torch.dtype) -> list[Tabulated]:
    """Returns the table of the rows of each group, of a value of ``ndim`` dimensions that follows from codes."""
    found: list[Tabulated] = []
    for group in range(count):
        part = of_group(value, group)
        assert isinstance(part, Codes | Tabulated)
        found.append(as_tabulated(part, ndim, dtype))
    return found


def number_of_groups(value: Value) -> int:
    """Returns how many groups of rows differ; 1 if none do."""
    if isinstance(value, GroupCodes):
        return len(value.grid.grids)
    return len(value.table) if isinstance(value, GroupTabulated) else 1


def tabular(value: Value) -> bool:
    """True if a value follows from codes entry by entry."""
    return isinstance(value, Codes | Tabulated | GroupCodes | GroupTabulated)


def rows_of(value: Value) -> Node | None:
    """Returns codes that have as many rows as the value; None if it is not made of codes."""
    if isinstance(value, Codes | GroupCodes):
        return value.node
    return value.bases[0] if isinstance(value, Tabulated | GroupTabulated) else None


def as_tabulated(value: Codes | Tabulated, ndim: int, dtype: torch.dtype) -> Tabulated:
    """Returns codes of a value of ``ndim`` dimensions as the table of what they stand for."""
    if isinstance(value, Tabulated):
        return value
    return Tabulated((value.node,), value.grid.values(dtype).view(CODES, *[1] * (ndim - 1)))


def rounded(value: Tabulated, grid: QuantizerGrid) -> Tabulated:
    """Returns the table of the codes to which a grid rounds a value."""
    return Tabulated(value.bases, quantize(value.table.contiguous(), grid.numbers(value.table.device)))


def is_identity(table: Tensor) -> bool:
    """True if a table of codes leaves every code as it is."""
    flat = table.reshape(CODES, -1)
    same = torch.arange(CODES, dtype=torch.uint8, device=flat.device)[:, None]
    return torch.equal(flat, same.expand_as(flat))

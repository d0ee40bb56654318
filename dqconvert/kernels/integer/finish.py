"""What every integer operation ends with: from sums of integers to the codes that the next operation takes.

The sums are scaled and rounded to a grid. All that follows until the next grid sees one code at a time, or two, so it
is a table, made by running it once on every code there is: exact whatever it was. Without a grid, as at the end of a
model, they are scaled alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.finish import CODES as CODES
from dqconvert.kernels.cpu.integer.finish import GRID as GRID
from dqconvert.kernels.cpu.llvm.requantize import AS_THEY_ARE, AS_VALUES, ON_PLANE, ON_RAMP
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.on_grid import grid_of
from dqconvert.kernels.integer.plane import PLANE, on_plane
from dqconvert.kernels.integer.ramp import ramp_of

_PLANES = (PLANE,), (PLANE + GRID,)
"""Shapes of what stands for a table of pairs: of codes, and of values that lie on a grid."""


class Finish(NamedTuple):
    """How sums become codes.

    Attributes:
        factor: float32 `[1]` or `[columns]`, the value of one step of the sums.
        grid: float32 `[4]`: scale, zero, the highest code, and the lowest of training: see
            :func:`dqconvert.kernels.integer.codes.quantize`. None: the values stay as they are, float32, and nothing
            follows: no table, no other, no packing.
        bias: float32 `[columns]`, in the values' unit.
        table: uint8 (codes) or float32 (values): `[256]`, by the code; `[columns, 256]`, by column and code; or, with
            `other`, `[256, 256]`, by the code and the other, or float32 `[5]`, a plane that stands for one of codes,
            see :mod:`dqconvert.kernels.integer.plane`, or `[7]`, for one of values: a plane, zero and scale. None: the
            codes as they are.
        other: uint8 `[rows, columns]`, codes of another value.
        packed: Whether codes are written two to a byte, the even column in the low half; a last one stands alone.
        shares: float32 `[rows]`, what the values of each row are multiplied by, before the bias is added.
        groups: uint8 `[rows]`, which of several factors, grids and tables a row has: those then have a first dimension
            more, and a plane is `[groups, 5]`. None: one.
    """

    factor: Tensor
    grid: Tensor | None
    bias: Tensor | None = None
    table: Tensor | None = None
    other: Tensor | None = None
    packed: bool = False
    shares: Tensor | None = None
    groups: Tensor | None = None


def plain_finish(sums: Tensor, finish: Finish, shares: Tensor | None = None) -> Tensor:
    """Returns the definition that the loops are held to.

    Args:
        sums: int32 or int64 `[rows, columns]`.
        shares: float32 `[rows]`, what each row is multiplied by first.
    """
    if finish.groups is not None:
        return _by_group(sums, finish, finish.groups, shares)
    values = sums.to(torch.float32) * finish.factor
    if finish.shares is not None:
        shares = finish.shares if shares is None else shares * finish.shares
    if shares is not None:
        values = values * shares[:, None]
    if finish.bias is not None:
        values = values + finish.bias
    if finish.grid is None:
        return values
    scale, zero, top, low = CodeGrid(*finish.grid)
    codes = ((values / scale + (zero + low)).round().clamp(min=low, max=top + low) - low).long()
    if finish.table is None:
        found = codes.to(torch.uint8)
    elif finish.other is not None:
        table, other = finish.table, finish.other
        if table.shape not in _PLANES:
            found = table[codes, other.long()]
        else:
            found = on_plane(codes, other, table[:PLANE])
            if table.numel() > PLANE:
                found = (found.to(torch.float32) - table[PLANE]) * table[PLANE + 1]
    elif finish.table.dim() == 2:
        found = finish.table.expand(sums.size(1), CODES)[torch.arange(sums.size(1), device=sums.device), codes]
    else:
        found = finish.table[codes]
    return pack(found) if finish.packed else found


def _by_group(sums: Tensor, finish: Finish, groups: Tensor, shares: Tensor | None) -> Tensor:
    """Returns the same, where each row ends as its group does."""
    found = fake_room(sums, sums.size(0), sums.size(1), finish)
    for group in range(finish.factor.size(0)):
        rows = (groups == group).nonzero().view(-1)
        one = finish._replace(
            factor=finish.factor[group],
            grid=None if finish.grid is None else finish.grid[group],
            table=None if finish.table is None else finish.table[group],
            other=None if finish.other is None else finish.other[rows],
            shares=None if finish.shares is None else finish.shares[rows],
            groups=None,
        )
        found[rows] = plain_finish(sums[rows], one, None if shares is None else shares[rows])
    return found


def pack(codes: Tensor) -> Tensor:
    """Returns codes `[rows, columns]` below 16 two to a byte: uint8 `[rows, (columns + 1) // 2]`.

    Example:
        >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8))
        tensor([[33,  3]], dtype=torch.uint8)
    """
    low, high = codes[:, ::2], codes[:, 1::2]
    packed = low.clone()
    packed[:, : high.size(1)] |= high << 4
    return packed


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Reverses :func:`pack`.

    Example:
        >>> unpack(torch.tensor([[33, 3]], dtype=torch.uint8), columns=3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    both = torch.stack([packed & 15, packed >> 4], dim=2)
    return both.reshape(packed.size(0), 2 * packed.size(1))[:, :columns].contiguous()


TAKES: dict[str, Any] = {
    "factor": "any",
    "grid": "any?",
    "bias": "any?",
    "table": "any?",
    "other": "any?",
    "packed": "flag",
    "shares": "any?",
    "groups": "any?",
}
"""What a gate looks at in the fields of a :class:`Finish`; :func:`check` looks at the rest."""


class FinishArrays(NamedTuple):
    """A :class:`Finish` as the loops take it.

    Attributes:
        factor, bias: float32 `[columns]`.
        grid: float32 `[4]`: scale, zero, highest and lowest code, all of them as training counts.
        kind: What becomes of the codes before any table, see :mod:`dqconvert.kernels.cpu.llvm.requantize`.
        ramp: float32 `[4 * columns]`, what stands for a table (:mod:`dqconvert.kernels.integer.ramp`); or empty.
        plane: float32 `[5]`, what stands for one of pairs (:mod:`dqconvert.kernels.integer.plane`); or empty.
        table, other: Flat; empty, if there is none. No table where there is a ramp or a plane; of values, what stands
            for it, if something does (:mod:`dqconvert.kernels.integer.on_grid`).
        by_column: Whether there is a table for each column.
        packed, shares: As there; no shares: empty.
        group: uint8 `[rows]`; None, if there is but one. Of several all the others but `bias` lie one behind the
            other: `number` of them.
    """

    factor: Any
    bias: Any
    grid: Any
    kind: int
    ramp: Any
    plane: Any
    table: Any
    by_column: bool
    other: Any
    packed: bool
    shares: Any
    group: Any
    number: int


def finish_arrays(finish: Finish, columns: int) -> FinishArrays:
    """Returns how sums become codes, as the loops take it."""
    factor, grid, bias, table, other, packed, shares, groups = finish
    made = _arrays((factor, grid, bias, table), columns, other is not None, packed)
    if other is not None:
        made = made._replace(other=array(other).reshape(-1))
    if shares is not None:
        made = made._replace(shares=array(shares))
    return made if groups is None else made._replace(group=array(groups))


def _make_arrays(
    factor: Tensor,
    grid: Tensor | None,
    bias: Tensor | None,
    table: Tensor | None,
    columns: int,
    pairs: bool,
    packed: bool,
    tables: bool = False,
) -> FinishArrays:
    """Returns a finish as the loops take it, but for other codes, shares and groups; `tables`: keep all tables."""
    if factor.dim() == 2:  # those of each group, one behind the other
        grids, of_groups = ([None] * len(factor) if t is None else list(t) for t in (grid, table))
        parts = [(one, grids[k], bias, of_groups[k], columns, pairs, packed) for k, one in enumerate(factor)]
        made = [_make_arrays(*part) for part in parts]
        if len({(one.kind, one.table.size) for one in made}) > 1:  # what stands for some tables does not for all
            made = [_make_arrays(*part, tables=True) for part in parts]
        names = ("factor", "grid", "ramp", "plane", "table")
        ends: dict[str, Any] = {n: np.concatenate([getattr(one, n).reshape(-1) for one in made]) for n in names}
        return made[0]._replace(**ends, number=len(made))
    scale, zero, top, low = CodeGrid(1.0, 0, 255, 0) if grid is None else CodeGrid(*grid.tolist())
    kind = AS_THEY_ARE if grid is not None else AS_VALUES
    entries: NDArray[Any] = np.empty(0, np.uint8) if table is None else array(table)
    ramp, plane = None, np.empty(0, np.float32)
    if pairs and entries.ndim == 1:
        plane, entries, kind = entries[:PLANE], entries[PLANE:], ON_PLANE
    elif table is not None and not pairs and entries.dtype == np.uint8 and not tables:
        ramp = ramp_of(table, int(top) + 1, columns)
        entries, kind = (entries, kind) if ramp is None else (entries[:0], ON_RAMP)
    elif entries.shape == (CODES,) and not tables and (found := grid_of(entries)) is not None:
        entries = found
    return FinishArrays(
        _by_column(factor, columns),
        np.zeros(columns, np.float32) if bias is None else _by_column(bias, columns),
        np.array([scale, zero + low, top + low, low], np.float32),
        kind,
        np.empty(0, np.float32) if ramp is None else np.ascontiguousarray(ramp).reshape(-1),
        plane.copy(),
        entries.reshape(-1).copy(),
        entries.ndim == 2 and not pairs,
        np.empty(0, np.uint8),
        packed,
        np.empty(0, np.float32),
        None,
        1,
    )


_arrays = Derived(_make_arrays)


def _by_column(t: Tensor, columns: int) -> NDArray[Any]:
    return np.full(columns, t.item(), np.float32) if t.numel() == 1 else array(t).copy()


def room(rows: int, columns: int, finish: Finish) -> Tensor:
    """Returns memory for the result `[rows, columns]`, or `[rows, (columns + 1) // 2]` if it is packed."""
    width = (columns + 1) // 2 if finish.packed else columns
    return empty((rows, width), dtype_of(finish))


def fake_room(x: Tensor, rows: int, columns: int, finish: Finish) -> Tensor:
    """Returns what :func:`room` does, on the device of `x`, and of no values where that has none."""
    width = (columns + 1) // 2 if finish.packed else columns
    return x.new_empty((rows, width), dtype=dtype_of(finish))


def dtype_of(finish: Finish) -> torch.dtype:
    """Returns the dtype of the result."""
    table = finish.table
    if finish.grid is None:
        return torch.float32
    plane = table is not None and table.dtype == torch.float32 and table.size(-1) == PLANE
    return torch.uint8 if table is None or plane else table.dtype


def check(finish: Finish, rows: int, columns: int) -> None:
    """Raises `ValueError` unless shapes and types fit sums `[rows, columns]`: the loops do not look again."""
    factor, grid, bias, table, other, packed, shares, groups = finish
    if groups is not None:
        shape, several = tuple(factor.shape), [t for t in (factor, grid, table) if t is not None]
        known = (groups.shape, groups.dtype) == ((rows,), torch.uint8) and factor.dim() == 2 and len(factor) > 0
        if not known or any(t.dim() == 0 or len(t) != len(factor) for t in several):
            raise ValueError(f"finish.groups does not fit {rows} rows and factors {shape}: {groups.shape}")
        factor, grid, table = factor[0], None if grid is None else grid[0], None if table is None else table[0]
    fits = {
        "factor": factor.shape in ((1,), (columns,)) and factor.dtype == torch.float32,
        "grid": grid is None or (grid.shape == (4,) and grid.dtype == torch.float32),
        "bias": bias is None or (bias.shape == (columns,) and bias.dtype == torch.float32),
        "table": table is None or (grid is not None and _fits(table, columns, other is not None)),
        "other": other is None or (table is not None and other.shape == (rows, columns) and other.dtype == torch.uint8),
        "packed": not packed or dtype_of(finish) == torch.uint8,
        "shares": shares is None or (shares.shape == (rows,) and shares.dtype == torch.float32),
    }
    for name, right in fits.items():
        if not right:
            given = getattr(finish, name)
            what = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise ValueError(f"finish.{name} does not fit sums of shape {(rows, columns)}: got {what}")


def _fits(table: Tensor, columns: int, pairs: bool) -> bool:
    if pairs and table.shape in _PLANES:
        return table.dtype == torch.float32
    shapes = ((CODES, CODES),) if pairs else ((CODES,), (columns, CODES))
    return table.shape in shapes and table.dtype in (torch.uint8, torch.float32)

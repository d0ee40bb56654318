"""From codes to what was worked out for every code there is, or for every pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.chain import groups_of
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.integer.tables import climb_rows, look_up_pairs_of_rows, look_up_rows, pack_looked_up
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.finish import pack
from dqconvert.kernels.integer.ramp import ramp_of

WIDE = 32
"""Columns from which ramps are faster than tables."""


def plain_look_up(codes: Tensor, table: Tensor, packed: bool = False, groups: Tensor | None = None) -> Tensor:
    """Defines what every implementation is held to.

    The arguments are those of :func:`look_up`; `groups`: of the rows, see :func:`.groups.look_up_groups`.
    """
    if groups is not None:
        flat = codes.reshape(codes.size(0), _columns(codes)).long()
        columns = () if table.dim() == 2 else (torch.arange(flat.size(1), device=codes.device),)
        found = table[(groups.long()[:, None], *columns, flat)].view(codes.shape)
    elif table.dim() == 1:
        found = table[codes.long()]
    else:
        found = table[torch.arange(codes.size(-1), device=codes.device), codes.long()]
    return pack(found) if packed else found


def _columns(codes: Tensor) -> int:
    return math.prod(codes.shape[1:])


def _look_up_on_cpu(codes: Tensor, table: Tensor, packed: bool = False, groups: Tensor | None = None) -> Tensor:
    wide = _columns(codes) if groups is not None else codes.size(-1) if codes.dim() > 0 else 1
    found = empty((codes.size(0), (wide + 1) // 2) if packed else codes.shape, table.dtype)
    tables = array(table).reshape(1 if groups is None else len(table), -1)
    ramps = _NO_RAMPS
    if table.dtype == torch.uint8 and wide >= WIDE:
        ramps = _ramps((table,), wide, groups is not None)
    by_row = packed or len(ramps) > 0 or groups is not None or tables.shape[1] > CODES
    columns = wide if by_row else 1
    given, to = array(codes).reshape(-1), array(found).reshape(-1)
    cuts = parts(codes.numel() // max(columns, 1), codes.numel())
    if packed:
        run(lambda _, start, stop: pack_looked_up(given, tables, ramps, to, columns, start, stop), cuts)
    else:
        loop, entries = (climb_rows, ramps) if len(ramps) > 0 else (look_up_rows, tables)
        args = given, entries, groups_of(groups), to, columns
        run(lambda _, start, stop: loop(*args, start, stop), cuts)
    return found


_NO_RAMPS = np.empty((0, 0), np.float32)


def _make_ramps(table: Tensor, columns: int, several: bool) -> NDArray[Any]:
    """Returns what stands for the tables of all groups, float32 `[groups, 4 * columns]`; empty, if not for each."""
    found = [ramp_of(own, CODES, columns) for own in (table if several else [table])]
    ramps = [ramp.reshape(-1) for ramp in found if ramp is not None]
    return np.stack(ramps) if len(ramps) == len(found) else _NO_RAMPS


_ramps = Derived(_make_ramps)


def _fake_look_up(codes: Tensor, table: Tensor, packed: bool = False, groups: Tensor | None = None) -> Tensor:
    shape = (codes.size(0), (codes.size(1) + 1) // 2) if packed else codes.shape
    return codes.new_empty(shape, dtype=table.dtype)


def _check(codes: Tensor, table: Tensor, packed: bool = False, groups: Tensor | None = None) -> None:
    _check_codes(codes)
    _check_groups(codes, table, groups)
    one = table if groups is None else table[0]
    last = 1 if codes.dim() == 0 else codes.size(-1) if groups is None else _columns(codes)
    if one.shape != (CODES,) and (codes.dim() == 0 or one.shape != (last, CODES)):
        given = f"a table of shape {tuple(table.shape)}"
        raise InputShapeError(f"{given} does not fit codes of shape {tuple(codes.shape)}")
    if packed and (codes.dim() != 2 or table.dtype != torch.uint8):
        raise InputShapeError(f"only matrices of codes are packed, got {table.dtype} of shape {tuple(codes.shape)}")


def _check_groups(codes: Tensor, table: Tensor, groups: Tensor | None) -> None:
    if groups is not None and (codes.dim() == 0 or groups.shape != codes.shape[:1] or len(table) == 0):
        given = f"{tuple(groups.shape)} and tables {tuple(table.shape)}"
        raise InputShapeError(f"codes {tuple(codes.shape)} take the group of each row and a table of each, got {given}")


look_up_operator = Operator(
    "look_up_codes",
    plain_look_up,
    fake=_fake_look_up,
    cpu=_look_up_on_cpu,
    check=_check,
    serves=lambda codes, table, *_: table.dtype in (torch.uint8, torch.float32),
    takes=Takes(
        "look_up_codes",
        codes="uint8",
        table="number",
        packed="flag",
        groups="uint8?",
        also=lambda _, args: _check(*args),
    ),
)


def look_up(codes: Tensor, table: Tensor, *, packed: bool = False) -> Tensor:
    """Looks each code up in a table.

    Args:
        codes: uint8 of any shape.
        table: `[256]`, by the code; or `[columns, 256]`, by the position in the last dimension and the code.
        packed: True to hold what is found two to a byte: of a matrix, if the table is uint8 and has nothing above 15.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype; packed, `[rows, (columns + 1) // 2]`.

    Raises:
        ValueError: If the table does not fit, or what is packed.
        TypeError: For another type than uint8.

    Example:
        >>> look_up(torch.tensor([[2, 0]], dtype=torch.uint8), torch.arange(256) * 0.5)
        tensor([[1., 0.]])
    """
    return look_up_operator(codes, table, packed, None)


def plain_look_up_pairs(a: Tensor, b: Tensor, table: Tensor, groups: Tensor | None = None) -> Tensor:
    """Defines what every implementation is held to.

    The arguments are those of :func:`look_up_pairs`; `groups`: of the rows, see :func:`.groups.look_up_pairs_groups`.
    """
    own = () if groups is None else (groups.long().view(-1, *[1] * (a.dim() - 1)),)
    return table[(*own, a.long(), b.long())]


def _look_up_pairs_on_cpu(a: Tensor, b: Tensor, table: Tensor, groups: Tensor | None = None) -> Tensor:
    found, columns = empty(a.shape, table.dtype), 1 if groups is None else _columns(a)
    flat = [array(t).reshape(-1) for t in (a, b)]
    args = *flat, array(table).reshape(-1, CODES * CODES), groups_of(groups), array(found).reshape(-1), columns
    cuts = parts(a.numel() // max(columns, 1), a.numel())
    run(lambda _, start, stop: look_up_pairs_of_rows(*args, start, stop), cuts)
    return found


def _check_pairs(a: Tensor, b: Tensor, table: Tensor, groups: Tensor | None = None) -> None:
    _check_codes(a, b)
    _check_groups(a, table, groups)
    if a.shape != b.shape or table.shape != (*(() if groups is None else (len(table),)), CODES, CODES):
        shapes = ", ".join(str(tuple(t.shape)) for t in (a, b, table))
        raise InputShapeError(f"expected codes of one shape and a table of shape {(CODES, CODES)}, got {shapes}")


look_up_pairs_operator = Operator(
    "look_up_pairs",
    plain_look_up_pairs,
    fake=lambda a, b, table, *_: a.new_empty(a.shape, dtype=table.dtype),
    cpu=_look_up_pairs_on_cpu,
    check=_check_pairs,
    serves=lambda a, b, table, *_: table.dtype in (torch.uint8, torch.float32),
    takes=Takes(
        "look_up_pairs",
        a="uint8",
        b="uint8 [=a]",
        table="number",
        groups="uint8?",
        also=lambda _, args: _check_pairs(*args),
    ),
)


def look_up_pairs(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """Looks each pair of codes up in a table.

    Args:
        a, b: uint8 of one shape.
        table: `[256, 256]`, by the code in `a` and that in `b`.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype.

    Example:
        >>> sums = torch.arange(256.0)[:, None] + torch.arange(256.0)
        >>> look_up_pairs(torch.tensor([2], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8), sums)
        tensor([5.])
    """
    return look_up_pairs_operator(a, b, table, None)


def _check_codes(*codes: Tensor) -> None:
    """Raises `TypeError` unless codes are uint8: the loops do not look whether a table has an entry."""
    for given in codes:
        if given.dtype != torch.uint8:
            raise TypeError(f"expected uint8 codes, got {given.dtype}")

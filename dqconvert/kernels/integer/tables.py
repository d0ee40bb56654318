"""From codes to what was worked out for every code there is, or for every pair."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.integer.tables import climb_rows, look_up_pairs_part, look_up_part, pack_looked_up
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.integer.finish import pack
from dqconvert.kernels.integer.ramp import ramp_of

WIDE = 32
"""Columns from which ramps are faster than tables."""


def plain_look_up(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`look_up`."""
    if table.dim() == 1:
        found = table[codes.long()]
    else:
        found = table[torch.arange(codes.size(-1), device=codes.device), codes.long()]
    return pack(found) if packed else found


def _look_up_on_cpu(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    wide = codes.size(-1) if codes.dim() > 0 else 1
    found = empty((codes.size(0), (wide + 1) // 2) if packed else codes.shape, table.dtype)
    given, entries, to = (array(t).reshape(-1) for t in (codes, table, found))
    ramp = ramp_of(table, CODES, wide) if table.dtype == torch.uint8 and wide >= WIDE else None
    columns = wide if packed or ramp is not None or table.dim() > 1 else 1
    cuts = parts(codes.numel() // max(columns, 1), codes.numel())
    if packed:
        ramp = np.empty((4, 0), np.float32) if ramp is None else ramp
        run(lambda _, start, stop: pack_looked_up(given, entries, ramp, to, columns, start, stop), cuts)
    elif ramp is not None:
        run(lambda _, start, stop: climb_rows(given, ramp, to, start, stop), cuts)
    else:
        run(lambda _, start, stop: look_up_part(given, entries, to, columns, start, stop), cuts)
    return found


def _fake_look_up(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    shape = (codes.size(0), (codes.size(1) + 1) // 2) if packed else codes.shape
    return codes.new_empty(shape, dtype=table.dtype)


look_up_operator = Operator(
    "look_up_codes",
    plain_look_up,
    fake=_fake_look_up,
    cpu=_look_up_on_cpu,
    check=lambda *args: _check(*args),
    serves=lambda codes, table, *_: table.dtype in (torch.uint8, torch.float32),
    takes=Takes("look_up_codes", codes="uint8", table="number", packed="flag", also=lambda _, args: _check(*args)),
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
    result: Tensor = look_up_operator(codes, table, packed)
    return result


def _check(codes: Tensor, table: Tensor, packed: bool = False) -> None:
    _check_codes(codes)
    if table.shape != (CODES,) and (codes.dim() == 0 or table.shape != (codes.size(-1), CODES)):
        given = f"a table of shape {tuple(table.shape)}"
        raise InputShapeError(f"{given} does not fit codes of shape {tuple(codes.shape)}")
    if packed and (codes.dim() != 2 or table.dtype != torch.uint8):
        raise InputShapeError(f"only matrices of codes are packed, got {table.dtype} of shape {tuple(codes.shape)}")


def plain_look_up_pairs(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`look_up_pairs`."""
    return table[a.long(), b.long()]


def _look_up_pairs_on_cpu(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    found = empty(a.shape, table.dtype)
    args = [array(t).reshape(-1) for t in (a, b, table, found)]
    run(lambda _, start, stop: look_up_pairs_part(*args, start, stop), parts(a.numel(), a.numel()))
    return found


def _check_pairs(a: Tensor, b: Tensor, table: Tensor) -> None:
    _check_codes(a, b)
    if a.shape != b.shape or table.shape != (CODES, CODES):
        shapes = ", ".join(str(tuple(t.shape)) for t in (a, b, table))
        raise ValueError(f"expected codes of one shape and a table of shape {(CODES, CODES)}, got {shapes}")


look_up_pairs_operator = Operator(
    "look_up_pairs",
    plain_look_up_pairs,
    fake=lambda a, b, table: a.new_empty(a.shape, dtype=table.dtype),
    cpu=_look_up_pairs_on_cpu,
    check=_check_pairs,
    serves=lambda a, b, table: table.dtype in (torch.uint8, torch.float32),
    takes=Takes("look_up_pairs", a="uint8", b="uint8 [=a]", table="number [256, 256]"),
)


def look_up_pairs(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """Looks each pair of codes up in a table.

    Args:
        a, b: uint8 of one shape.
        table: `[256, 256]`, by the code in `a` and that in `b`.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: For another type than uint8.

    Example:
        >>> sums = torch.arange(256.0)[:, None] + torch.arange(256.0)
        >>> look_up_pairs(torch.tensor([2], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8), sums)
        tensor([5.])
    """
    result: Tensor = look_up_pairs_operator(a, b, table)
    return result


def _check_codes(*codes: Tensor) -> None:
    """Raises `TypeError` unless codes are uint8: the loops do not look whether a table has an entry."""
    for given in codes:
        if given.dtype != torch.uint8:
            raise TypeError(f"expected uint8 codes, got {given.dtype}")

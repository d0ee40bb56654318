"""From codes to what was worked out for every code there is, or for every pair."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._arrays import array
from dqconvert.kernels._compiled import loop
from dqconvert.kernels._memory import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._pointer import pointer
from dqconvert.kernels._takes import Takes
from dqconvert.kernels._threads import parts, run
from dqconvert.kernels.integer._bytes import ramp_span
from dqconvert.kernels.integer._ramp import ramp_of
from dqconvert.kernels.integer.finish import CODES, look_up_both, look_up_columns, look_up_values, pack, pack_row

_WIDE = 32
"""Columns from which ramps are faster than tables."""


def plain_look_up(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`look_up`."""
    if table.dim() == 1:
        found = table[codes.long()]
    else:
        found = table[torch.arange(codes.size(-1), device=codes.device), codes.long()]
    return pack(found) if packed else found


def _look_up_on_cpu(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    wide = codes.size(-1) if codes.dim() > 0 else 1
    found = empty((codes.size(0), (wide + 1) // 2) if packed else codes.shape, table.dtype)
    given, entries, to = (array(t).reshape(-1) for t in (codes, table, found))
    ramp = ramp_of(table, CODES, wide) if table.dtype == torch.uint8 and wide >= _WIDE else None
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


@loop
def climb_rows(codes, ramp, found, start, stop):  # type: ignore[no-untyped-def]
    columns = ramp.shape[1]
    for row in range(start, stop):
        at = row * columns
        ramp_span(pointer(codes, at), columns, pointer(ramp, 0), columns, pointer(found, at))


@loop
def look_up_part(codes, table, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop` of `columns` columns, each with a table of its own."""
    if columns == 1:
        look_up_values(pointer(codes, start), stop - start, pointer(table, 0), pointer(found, start))
        return
    for row in range(start, stop):
        at = row * columns
        look_up_columns(pointer(codes, at), columns, pointer(table, 0), pointer(found, at))


@loop
def pack_looked_up(codes, table, ramp, found, columns, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`, packed; by the ramp, if it is not empty."""
    line, size = np.empty(columns, np.uint8), (columns + 1) // 2
    for row in range(start, stop):
        given, to = pointer(codes, row * columns), pointer(line, 0)
        if ramp.size > 0:
            ramp_span(given, columns, pointer(ramp, 0), columns, to)
        elif table.size > CODES:
            look_up_columns(given, columns, pointer(table, 0), to)
        else:
            look_up_values(given, columns, pointer(table, 0), to)
        pack_row(to, columns, pointer(found, row * size))


def _fake_look_up(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    shape = (codes.size(0), (codes.size(1) + 1) // 2) if packed else codes.shape
    return codes.new_empty(shape, dtype=table.dtype)


look_up_operator = Operator(
    "look_up_codes",
    plain_look_up,
    fake=_fake_look_up,
    cpu=_look_up_on_cpu,
    serves=lambda codes, table, *_: table.dtype in (torch.uint8, torch.float32),
    takes=Takes(
        "look_up_codes",
        codes="uint8",
        table="number",
        packed="free",
        also=lambda _, args: _check(*args),
    ),
)


def look_up(codes: Tensor, table: Tensor, *, packed: bool = False) -> Tensor:
    """What a table says of each code.

    **Arguments**

    - `codes`: uint8 of any shape.
    - `table`: `[256]`, by the code; or `[columns, 256]`, by the position in the last dimension and the code.
    - `packed = False`: whether to hold what is found two to a byte: of a matrix, if the table is uint8 and has
      nothing above 15.

    **Returns** a contiguous tensor of the codes' shape and the table's dtype; packed, `[rows, (columns + 1) // 2]`.

    **Raises** `ValueError` if the table does not fit, or what is packed; `TypeError` for another type than uint8.

    ```python
    >>> look_up(torch.tensor([[2, 0]], dtype=torch.uint8), torch.arange(256) * 0.5)
    tensor([[1., 0.]])

    ```
    """
    _check_codes(codes)
    _check(codes, table, packed)
    result: Tensor = look_up_operator(codes, table, packed)
    return result


def _check(codes: Tensor, table: Tensor, packed: bool = False) -> None:
    if table.shape != (CODES,) and (codes.dim() == 0 or table.shape != (codes.size(-1), CODES)):
        given = f"a table of shape {tuple(table.shape)}"
        raise InputShapeError(f"{given} does not fit codes of shape {tuple(codes.shape)}")
    if packed and (codes.dim() != 2 or table.dtype != torch.uint8):
        raise InputShapeError(f"only matrices of codes are packed, got {table.dtype} of shape {tuple(codes.shape)}")


def plain_look_up_pairs(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`look_up_pairs`."""
    return table[a.long(), b.long()]


def _look_up_pairs_on_cpu(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    found = empty(a.shape, table.dtype)
    args = [array(t).reshape(-1) for t in (a, b, table, found)]
    run(lambda _, start, stop: look_up_pairs_part(*args, start, stop), parts(a.numel(), a.numel()))
    return found


@loop
def look_up_pairs_part(a, b, table, found, start, stop):  # type: ignore[no-untyped-def]
    look_up_both(pointer(a, start), stop - start, pointer(table, 0), pointer(b, start), pointer(found, start))


look_up_pairs_operator = Operator(
    "look_up_pairs",
    plain_look_up_pairs,
    fake=lambda a, b, table: a.new_empty(a.shape, dtype=table.dtype),
    cpu=_look_up_pairs_on_cpu,
    serves=lambda a, b, table: table.dtype in (torch.uint8, torch.float32),
    takes=Takes("look_up_pairs", a="uint8", b="uint8 [=a]", table="number [256, 256]"),
)


def look_up_pairs(a: Tensor, b: Tensor, table: Tensor) -> Tensor:
    """What a table says of each pair of codes.

    **Arguments**: `a`, `b`: uint8 of one shape. `table`: `[256, 256]`, by the code in `a` and that in `b`.

    **Returns** a contiguous tensor of the codes' shape and the table's dtype.

    **Raises** `ValueError` if shapes do not fit; `TypeError` for another type than uint8.

    ```python
    >>> sums = torch.arange(256.0)[:, None] + torch.arange(256.0)
    >>> look_up_pairs(torch.tensor([2], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8), sums)
    tensor([5.])

    ```
    """
    _check_codes(a, b)
    if a.shape != b.shape or table.shape != (CODES, CODES):
        shapes = ", ".join(str(tuple(t.shape)) for t in (a, b, table))
        raise ValueError(f"expected codes of one shape and a table of shape {(CODES, CODES)}, got {shapes}")
    result: Tensor = look_up_pairs_operator(a, b, table)
    return result


def _check_codes(*codes: Tensor) -> None:
    """The loops read tables at codes, and do not look whether there is an entry."""
    for given in codes:
        if given.dtype != torch.uint8:
            raise TypeError(f"expected uint8 codes, got {given.dtype}")

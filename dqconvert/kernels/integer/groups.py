"""Rows whose grids and tables are those of their group: look-ups, and from values to codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._layout import wide_dtype
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer import groups as loops
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.codes import not_a_number, not_floating, plain_quantize
from dqconvert.kernels.integer.ramp import ramp_of
from dqconvert.kernels.integer.tables import WIDE


def _own(groups: Tensor, codes: Tensor) -> Tensor:
    """Returns the group of each row, shaped to broadcast over the values of the row."""
    return groups.long().view(-1, *[1] * (codes.dim() - 1))


def plain_look_up_groups(codes: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`look_up_groups`."""
    own = _own(groups, codes)
    if table.dim() == 2:
        found = table[own, codes.long()]
    else:
        flat = codes.reshape(codes.size(0), table.size(1)).long()
        found = table[groups.long()[:, None], torch.arange(table.size(1), device=codes.device), flat].view(codes.shape)
    return found


def _columns(codes: Tensor) -> int:
    return math.prod(codes.shape[1:])


def _look_up_on_cpu(codes: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    found, columns = empty(codes.shape, table.dtype), _columns(codes)
    ramps = (
        _ramps((table,), columns) if table.dtype == torch.uint8 and columns >= WIDE else np.empty((0, 0), np.float32)
    )
    entries = ramps if len(ramps) > 0 else array(table).reshape(len(table), -1)
    loop = loops.climb_rows if len(ramps) > 0 else loops.look_up_rows
    args = array(codes).reshape(-1), entries, array(groups), array(found).reshape(-1), columns
    run(lambda _, start, stop: loop(*args, start, stop), parts(len(codes), codes.numel()))
    return found


def _make_ramps(table: Tensor, columns: int) -> NDArray[Any]:
    """Returns what stands for the tables of all groups, float32 `[groups, 4 * columns]`; empty, if not for each."""
    found = [ramp_of(own, CODES, columns) for own in table]
    ramps = [np.ascontiguousarray(ramp, np.float32).reshape(-1) for ramp in found if ramp is not None]
    return np.stack(ramps) if len(ramps) == len(found) else np.empty((0, 0), np.float32)


_ramps = Derived(_make_ramps)


def _check_look_up(_: Mapping[str, int], args: Sequence[Any]) -> None:
    codes, table, _ = args
    fits = table.dim() in (2, 3) and table.size(0) > 0 and table.size(-1) == CODES
    if not fits or (table.dim() == 3 and table.size(1) != _columns(codes)):
        raise InputShapeError(f"codes {tuple(codes.shape)} take a table for each group and code: {tuple(table.shape)}")


look_up_groups_operator = Operator(
    "look_up_groups",
    plain_look_up_groups,
    fake=lambda codes, table, groups: codes.new_empty(codes.shape, dtype=table.dtype),
    cpu=_look_up_on_cpu,
    serves=lambda codes, table, *_: table.dtype in (torch.uint8, torch.float32),
    takes=Takes(
        "look_up_groups",
        codes="uint8 [rows, ...]",
        table="any",
        groups="uint8 [rows]",
        also=_check_look_up,
    ),
)


def look_up_groups(codes: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    """Looks each code up in the table of its row's group.

    Args:
        codes: uint8 `[rows, *rest]`.
        table: `[groups, 256]`, by the code; or `[groups, columns, 256]`, by the place in the row and the code.
        groups: uint8 `[rows]`.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: For other types than uint8.

    Example:
        >>> table = torch.stack([torch.arange(256) * 0.5, torch.arange(256) * 2.0])
        >>> codes, groups = torch.tensor([[2], [2]], dtype=torch.uint8), torch.tensor([1, 0], dtype=torch.uint8)
        >>> look_up_groups(codes, table, groups).tolist()
        [[4.0], [1.0]]
    """
    result: Tensor = look_up_groups_operator(codes, table, groups)
    return result


def plain_look_up_pairs_groups(a: Tensor, b: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`look_up_pairs_groups`."""
    return table[_own(groups, a), a.long(), b.long()]


def _pairs_on_cpu(a: Tensor, b: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    found = empty(a.shape, table.dtype)
    flat = [array(t).reshape(-1) for t in (a, b)]
    args = *flat, array(table).reshape(len(table), -1), array(groups), array(found).reshape(-1), _columns(a)
    run(lambda _, start, stop: loops.look_up_pairs_of_rows(*args, start, stop), parts(len(a), a.numel()))
    return found


def _check_pairs(_: Mapping[str, int], args: Sequence[Any]) -> None:
    table = args[2]
    if table.dim() != 3 or table.size(0) == 0 or table.shape[1:] != (CODES, CODES):
        raise InputShapeError(f"pairs of codes take a table for each group and pair, got {tuple(table.shape)}")


look_up_pairs_groups_operator = Operator(
    "look_up_pairs_groups",
    plain_look_up_pairs_groups,
    fake=lambda a, b, table, groups: a.new_empty(a.shape, dtype=table.dtype),
    cpu=_pairs_on_cpu,
    serves=lambda a, b, table, *_: table.dtype in (torch.uint8, torch.float32),
    takes=Takes(
        "look_up_pairs_groups",
        a="uint8 [rows, ...]",
        b="uint8 [=a]",
        table="any",
        groups="uint8 [rows]",
        also=_check_pairs,
    ),
)


def look_up_pairs_groups(a: Tensor, b: Tensor, table: Tensor, groups: Tensor) -> Tensor:
    """Looks each pair of codes up in the table of its row's group.

    Args:
        a, b: uint8 `[rows, *rest]`, of one shape.
        table: `[groups, 256, 256]`, by the code in `a` and that in `b`.
        groups: uint8 `[rows]`.

    Returns:
        A contiguous tensor of the codes' shape and the table's dtype.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: For other types than uint8.

    Example:
        >>> sums = torch.arange(256.0)[:, None] + torch.arange(256.0)
        >>> a, groups = torch.tensor([[2], [2]], dtype=torch.uint8), torch.tensor([1, 0], dtype=torch.uint8)
        >>> look_up_pairs_groups(a, a, torch.stack([sums, 10 * sums]), groups).tolist()
        [[40.0], [4.0]]
    """
    result: Tensor = look_up_pairs_groups_operator(a, b, table, groups)
    return result


def plain_quantize_groups(x: Tensor, grids: Tensor, groups: Tensor, name: str | None = None) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`quantize_groups`."""
    return plain_quantize(x, grids[groups.long()].t(), 0, False, name)


def _quantize_on_cpu(x: Tensor, grids: Tensor, groups: Tensor, name: str | None = None) -> Tensor:
    codes = empty(x.shape, torch.uint8)
    wide = wide_dtype(x.dtype)
    flat = array(x.detach().to(wide)).reshape(-1), array(grids.to(wide)), array(groups), array(codes).reshape(-1)
    cuts = parts(len(x), x.numel())
    missing = run(lambda _, start, stop: loops.quantize_rows(*flat, _columns(x), start, stop), cuts)
    if name is not None and any(missing):
        raise not_a_number(name)
    return codes


def _check_values(x: Tensor, grids: Tensor, groups: Tensor, name: str | None = None) -> None:
    if not x.is_floating_point():
        raise not_floating(name or "x", x)


quantize_groups_operator = Operator(
    "quantize_groups",
    plain_quantize_groups,
    fake=lambda x, *_: x.new_empty(x.shape, dtype=torch.uint8),
    cpu=_quantize_on_cpu,
    check=_check_values,
    serves=lambda x, grids, *_: len(grids) > 0,
    takes=Takes("quantize_groups", x="any [rows, ...]", grids="float32 [count, 4]", groups="uint8 [rows]", name="flag"),
)


def quantize_groups(x: Tensor, grids: Tensor, groups: Tensor, *, name: str | None = None) -> Tensor:
    """Returns the codes of values, each row on the grid of its group: see :func:`.codes.quantize`.

    Args:
        x: Floating `[rows, *rest]`.
        grids: float32 `[groups, 4]`: scale, zero, the highest code, and the lowest of training.
        groups: uint8 `[rows]`.
        name: What to call the values in an error, if NaN among them is one.

    Returns:
        uint8 of the values' shape.

    Raises:
        ValueError: For NaN if there is a name.
        TypeError: For other types.

    Example:
        >>> grids = torch.tensor([[1.0, 0.0, 15.0, 0.0], [2.0, 0.0, 15.0, 0.0]])
        >>> quantize_groups(torch.tensor([[4.0], [4.0]]), grids, torch.tensor([1, 0], dtype=torch.uint8)).tolist()
        [[2], [4]]
    """
    result: Tensor = quantize_groups_operator(x, grids, groups, name)
    return result

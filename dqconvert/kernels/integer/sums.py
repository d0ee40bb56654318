"""Codes of sums of several values, some of them held as codes: none of the values, nor their sum, is ever stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array, as_it_lies
from dqconvert.kernels.cpu.chain import groups_of
from dqconvert.kernels.cpu.integer.finish import CODES, GRID
from dqconvert.kernels.cpu.integer.sums import sum_in_one, sum_rows
from dqconvert.kernels.cpu.threads import parts, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.kernels.integer.groups import plain_quantize_groups
from dqconvert.kernels.integer.on_grid import grid_of
from dqconvert.kernels.integer.tables import plain_look_up

_NO_CODES, _NO_VALUES = np.empty(0, np.uint8), np.empty(0, np.float32)


def plain_quantize_sum(
    terms: list[Tensor], weights: list[Tensor], grid: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`quantize_sum`."""
    total = torch.zeros(_shape(terms), dtype=torch.float32, device=grid.device)
    for term, weight in zip(terms, weights, strict=True):
        if term.dtype == torch.float32:
            total = total + term * weight
        elif weight.dim() < 3 or groups is None:
            total = total + plain_look_up(term, weight)
        else:
            table = weight.expand(weight.size(0), term.size(1), CODES)
            total = total + plain_look_up(term, table.contiguous(), groups=groups)
    return plain_quantize(total, grid, None, False) if groups is None else plain_quantize_groups(total, grid, groups)


def _shape(terms: list[Tensor]) -> torch.Size:
    """Returns the shape of the sum."""
    shape = terms[0].shape
    for term in terms[1:]:  # not max(key=len), which torch.compile does not follow
        if term.dim() > len(shape):
            shape = term.shape
    return shape


def _on_cpu(terms: list[Tensor], weights: list[Tensor], grid: Tensor, groups: Tensor | None = None) -> Tensor:
    rows, columns = _shape(terms)
    codes = empty((rows, columns), torch.uint8)
    made, pairs = _weights(tuple(weights), 1 if groups is None else len(grid))
    grids, to, cuts = array(grid).reshape(-1, 4), array(codes).reshape(-1), parts(rows, len(terms) * codes.numel())
    ends = grids, groups_of(groups), to
    if pairs is not None and all(term.shape == codes.shape for term in terms):
        held = [as_it_lies(term) for term in terms]
        places = np.array([term.data_ptr() for term in held], np.int64)
        run(lambda _, start, stop: sum_in_one(places, pairs, columns, *ends, start, stop), cuts)
    else:
        given = [array(term).reshape(-1) for term in terms]
        flat = tuple(
            (term, _NO_VALUES, weight) if term.dtype == np.uint8 else (_NO_CODES, term, weight)
            for term, weight in zip(given, made, strict=True)
        )
        run(lambda _, start, stop: sum_rows(flat, columns, *ends, start, stop), cuts)
    return codes


def _make_weights(*weights_and_count: Any) -> tuple[tuple[NDArray[Any], ...], NDArray[Any] | None]:
    """Returns what belongs to each term, `[groups, entries]`: of tables, zero and scale if they give all of the values;
    and `[groups, terms, 2]`, a zero and a scale for each term, NaN for the zero of values, unless there are tables."""
    *weights, count = weights_and_count
    made = tuple(_make_weight(weight, count) for weight in weights)
    if any(weight.shape[1] > GRID for weight in made):
        return made, None
    pairs = [weight if weight.shape[1] == GRID else np.insert(weight, 0, np.nan, 1) for weight in made]
    return made, np.ascontiguousarray(np.stack(pairs, 1))


def _make_weight(weight: Tensor, count: int) -> NDArray[Any]:
    several = weight if weight.dim() == 3 else weight.unsqueeze(0)
    tables = array(several.reshape(len(several), -1))
    if tables.shape[1] == CODES:
        grids = [grid for table in tables if (grid := grid_of(table)) is not None]
        tables = np.stack(grids) if len(grids) == len(tables) else tables
    return np.array(np.broadcast_to(tables, (count, tables.shape[1])), np.float32, order="C")


_weights = Derived(_make_weights)


quantize_sum_operator = Operator(
    "quantize_sum",
    plain_quantize_sum,
    fake=lambda terms, weights, grid, *_: grid.new_empty(_shape(terms), dtype=torch.uint8),
    cpu=_on_cpu,
    check=lambda *args: _check(*args),
    takes=Takes(
        "quantize_sum",
        terms="list number",
        weights="list float32",
        grid="float32 [4] | [count, 4]",
        groups="uint8? [rows]",
        also=lambda _, args: _check(*args),
    ),
)


def quantize_sum(terms: list[Tensor], weights: list[Tensor], grid: Tensor, groups: Tensor | None = None) -> Tensor:
    """Returns the codes of a sum, of which the terms are added up in their order, in float32.

    Args:
        terms: Each uint8 codes `[rows, columns]`; or float32 values `[rows, columns]`, or `[columns]` for all rows. At
            least one has rows.
        weights: For each term: of codes float32 `[256]`, the value of each code, or `[columns, 256]`, by column and
            code; by group, `[groups, 1, 256]` or `[groups, columns, 256]`; of values float32 `[1]`, what they are
            multiplied by.
        grid: float32 `[4]`, see :func:`dqconvert.kernels.integer.codes.quantize`; `[groups, 4]` if rows have groups.
        groups: uint8 `[rows]`, the group of each row.

    Returns:
        uint8 `[rows, columns]`.

    Example:
        >>> codes, values = torch.tensor([[2, 0]], dtype=torch.uint8), torch.tensor([[1.0, 4.0]])
        >>> weights = [torch.arange(256) * 0.5, torch.tensor([2.0])]
        >>> quantize_sum([codes, values], weights, torch.tensor([1.0, 3.0, 15.0, 0.0]))
        tensor([[ 6, 11]], dtype=torch.uint8)
    """
    return quantize_sum_operator(terms, weights, grid, groups)


def _check(terms: list[Tensor], weights: list[Tensor], grid: Tensor, groups: Tensor | None = None) -> None:
    shape = _shape(terms) if terms else torch.Size()
    count = 0 if groups is None else grid.size(0)
    ends = (4,) if groups is None else (count, 4)
    known = groups is None or (count > 0 and groups.dtype == torch.uint8 and groups.shape == shape[:1])
    if len(shape) != 2 or len(weights) != len(terms) or grid.shape != ends or not known:
        found = ", ".join(str(tuple(t.shape)) for t in [*terms, grid, *([] if groups is None else [groups])])
        raise InputShapeError(
            f"expected a weight for each term, a term {('rows', 'columns')} and a grid {(4,)}, got {found}"
        )
    for term, weight in zip(terms, weights, strict=True):
        if term.dtype not in (torch.uint8, torch.float32) or weight.dtype != torch.float32:
            raise TypeError(f"terms are uint8 or float32, their weights float32; got {term.dtype} and {weight.dtype}")
        of_codes = term.dtype == torch.uint8
        by_group = () if groups is None else ((count, 1, CODES), (count, shape[1], CODES))
        right = ((CODES,), (shape[1], CODES), *by_group) if of_codes else ((1,),)
        if weight.shape not in right or (term.shape != shape and (of_codes or term.shape != shape[1:])):
            given = f"{tuple(term.shape)} with a weight {tuple(weight.shape)}"
            raise InputShapeError(f"a term of shape {given} does not fit a sum of shape {tuple(shape)}")

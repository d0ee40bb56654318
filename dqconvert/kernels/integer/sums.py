"""Codes of sums of several values, some of them held as codes: none of the values, nor their sum, is ever stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._arrays import array
from dqconvert.kernels._compiled import loop
from dqconvert.kernels._memory import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._pointer import pointer
from dqconvert.kernels._takes import Takes
from dqconvert.kernels._threads import parts, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer._on_grid import GRID, grid_of
from dqconvert.kernels.integer._sum_span import sum_span
from dqconvert.kernels.integer.codes import as_numbers, plain_quantize, quantize_values
from dqconvert.kernels.integer.finish import CODES
from dqconvert.kernels.integer.tables import plain_look_up

BLOCK = 1 << 12
"""Values that are summed up together: they stay in the first cache."""

_NO_CODES, _NO_VALUES = np.empty(0, np.uint8), np.empty(0, np.float32)


def plain_quantize_sum(terms: list[Tensor], weights: list[Tensor], grid: Tensor) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`quantize_sum`."""
    total = torch.zeros(_shape(terms), dtype=torch.float32, device=grid.device)
    for term, weight in zip(terms, weights, strict=True):
        total = total + (plain_look_up(term, weight) if term.dtype == torch.uint8 else term * weight)
    return plain_quantize(total, grid, None, False)


def _shape(terms: list[Tensor]) -> torch.Size:
    """The shape of the sum."""
    return max((term.shape for term in terms), key=len)


def _on_cpu(terms: list[Tensor], weights: list[Tensor], grid: Tensor) -> Tensor:
    rows, columns = _shape(terms)
    codes = empty((rows, columns), torch.uint8)
    given = [array(term).reshape(-1) for term in terms]
    made = [_weights((weight,)) for weight in weights]
    numbers, to, cuts = as_numbers(grid, np.float32), array(codes.view(-1)), parts(rows, len(terms) * codes.numel())
    if all(term.size == codes.numel() and weight.size <= GRID for term, weight in zip(given, made, strict=True)):
        places = np.array([term.ctypes.data for term in given], np.int64)
        pairs = np.array([weight if weight.size == GRID else (np.nan, weight[0]) for weight in made], np.float32)
        run(lambda _, start, stop: sum_in_one(places, pairs, columns, numbers, to, start, stop), cuts)
    else:
        flat = tuple(
            (term, _NO_VALUES, weight) if term.dtype == np.uint8 else (_NO_CODES, term, weight)
            for term, weight in zip(given, made, strict=True)
        )
        run(lambda _, start, stop: sum_rows(flat, columns, numbers, to, start, stop), cuts)
    return codes


def _make_weights(weight: Tensor) -> NDArray[Any]:
    """What belongs to a term, flat; of a table, zero and scale if they give all of its values."""
    table = array(weight).reshape(-1).copy()
    grid = grid_of(table) if table.size == CODES else None
    return table if grid is None else grid


_weights = Derived(_make_weights)


@loop
def sum_in_one(places, numbers, columns, grid, codes, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop` of whole terms, values or codes on a grid, in one pass."""
    at, count = start * columns, (stop - start) * columns
    scale, zero, top, low = grid
    ends = low, top + low
    sum_span(
        pointer(places, 0), pointer(numbers, 0), places.size, at, count, scale, zero + low, *ends, pointer(codes, at)
    )


@loop
def sum_rows(terms, columns, grid, codes, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`, a block at a time."""
    height = max(BLOCK // max(columns, 1), 1)
    line = np.empty(height * columns, np.float32)
    for first in range(start, stop, height):
        rows, at = min(height, stop - first), first * columns
        count = rows * columns
        line[:count] = 0
        for k in range(len(terms)):
            given, values, weight = terms[k]
            if given.size == 0:
                if values.size > columns:
                    add_values(pointer(values, at), count, weight[0], pointer(line, 0))
                else:
                    for r in range(rows):
                        add_values(pointer(values, 0), columns, weight[0], pointer(line, r * columns))
            elif weight.size == GRID:
                add_on_grid(pointer(given, at), count, weight[0], weight[1], pointer(line, 0))
            elif weight.size == CODES:
                add_looked_up(pointer(given, at), count, pointer(weight, 0), 0, pointer(line, 0))
            else:
                for r in range(rows):
                    begin = pointer(given, at + r * columns)
                    add_looked_up(begin, columns, pointer(weight, 0), CODES, pointer(line, r * columns))
        quantize_values(pointer(line, 0), count, grid, pointer(codes, at))


@loop
def add_values(values, count, factor, line):  # type: ignore[no-untyped-def]
    for k in range(count):
        line[k] += values[k] * factor


@loop
def add_on_grid(codes, count, zero, scale, line):  # type: ignore[no-untyped-def]
    for k in range(count):
        line[k] += (np.float32(codes[k]) - zero) * scale


@loop
def add_looked_up(codes, count, table, apart, line):  # type: ignore[no-untyped-def]
    """`apart`: entries from the table of one column to that of the next."""
    for k in range(count):
        line[k] += table[k * apart + np.intp(codes[k])]


quantize_sum_operator = Operator(
    "quantize_sum",
    plain_quantize_sum,
    fake=lambda terms, weights, grid: grid.new_empty(_shape(terms), dtype=torch.uint8),
    cpu=_on_cpu,
    takes=Takes(
        "quantize_sum",
        terms="list number",
        weights="list float32",
        grid="float32 [4]",
        also=lambda _, args: _check(*args),
    ),
)


def quantize_sum(terms: list[Tensor], weights: list[Tensor], grid: Tensor) -> Tensor:
    """The codes of a sum, of which the terms are added up in their order, in float32.

    **Arguments**

    - `terms`: each uint8 codes `[rows, columns]`; or float32 values `[rows, columns]`, or `[columns]` for all rows.
      At least one has rows.
    - `weights`: for each term: of codes float32 `[256]`, the value of each code, or `[columns, 256]`, by column and
      code; of values float32 `[1]`, what they are multiplied by.
    - `grid`: float32 `[4]`, see :func:`dqconvert.kernels.integer.codes.quantize`.

    **Returns** uint8 `[rows, columns]`.

    **Raises** `ValueError` if shapes do not fit; `TypeError` for terms of other types.

    ```python
    >>> codes, values = torch.tensor([[2, 0]], dtype=torch.uint8), torch.tensor([[1.0, 4.0]])
    >>> weights = [torch.arange(256) * 0.5, torch.tensor([2.0])]
    >>> quantize_sum([codes, values], weights, torch.tensor([1.0, 3.0, 15.0, 0.0]))
    tensor([[ 6, 11]], dtype=torch.uint8)

    ```
    """
    _check(terms, weights, grid)
    result: Tensor = quantize_sum_operator(terms, weights, grid)
    return result


def _check(terms: list[Tensor], weights: list[Tensor], grid: Tensor) -> None:
    shape = _shape(terms) if terms else torch.Size()
    if len(shape) != 2 or len(weights) != len(terms) or grid.shape != (4,):
        found = ", ".join(str(tuple(t.shape)) for t in [*terms, grid])
        raise InputShapeError(
            f"expected a weight for each term, a term {('rows', 'columns')} and a grid {(4,)}, got {found}"
        )
    for term, weight in zip(terms, weights, strict=True):
        if term.dtype not in (torch.uint8, torch.float32) or weight.dtype != torch.float32:
            raise TypeError(f"terms are uint8 or float32, their weights float32; got {term.dtype} and {weight.dtype}")
        of_codes = term.dtype == torch.uint8
        right = ((CODES,), (shape[1], CODES)) if of_codes else ((1,),)
        if weight.shape not in right or (term.shape != shape and (of_codes or term.shape != shape[1:])):
            given = f"{tuple(term.shape)} with a weight {tuple(weight.shape)}"
            raise InputShapeError(f"a term of shape {given} does not fit a sum of shape {tuple(shape)}")

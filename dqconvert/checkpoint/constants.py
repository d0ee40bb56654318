"""The constants of an integer graph: whether each is what the loops that read it take it for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dqconvert.kernels.cpu.llvm.multiply import GROUP
from dqconvert.kernels.integer.finish import CODES, GRID
from dqconvert.kernels.integer.plane import PLANE

Sound = Callable[[Tensor], bool]

_REACH = 1 << 16
"""How far a grid's lowest code of training may lie from zero."""


def is_finite(constant: Tensor) -> bool:
    """True if it holds float32 numbers that are finite."""
    return constant.dtype == torch.float32 and bool(constant.isfinite().all())


def is_grid(constant: Tensor, dims: tuple[int, ...] = (1,)) -> bool:
    """True if it is a grid: scale, zero, highest code, lowest code of training; ``dims`` is 2 if it differs by channel.

    Example:
        >>> is_grid(torch.tensor([0.5, 3.0, 255.0, 0.0])), is_grid(torch.tensor([0.5, 3.0, 256.0, 0.0]))
        (True, False)
    """
    if constant.dim() not in dims or constant.size(0) != 4 or constant.numel() == 0 or not is_finite(constant):
        return False
    scale, zero, top, low = constant
    reached = [(top.min(), 0), (255, top.max()), (zero.min(), -255), (255, zero.max()), (_REACH, low.abs().max())]
    return bool((scale > 0).all()) and all(bool(more >= less) for more, less in reached)


def is_any_grid(constant: Tensor) -> bool:
    """True if it is a grid, of all channels or of each."""
    return is_grid(constant, (1, 2))


def is_grids(constant: Tensor) -> bool:
    """True if it is a grid, or one of each group of rows, ``[groups, 4]``."""
    return is_grid(constant.t(), (2,)) if constant.dim() == 2 else is_grid(constant)


def of_groups(sound: Sound) -> Sound:
    """True if what it has of each group of rows is sound."""
    return lambda constant: constant.dim() > 0 and len(constant) > 0 and all(map(sound, constant))


def by_code(constant: Tensor) -> bool:
    """True if it has a finite float32 number for each code."""
    return constant.shape == (CODES,) and is_finite(constant)


def by_codes(constant: Tensor) -> bool:
    """True if it has a finite float32 number for each code; or for each pair of groups and code."""
    return constant.dim() in (1, 3) and constant.numel() > 0 and constant.size(-1) == CODES and is_finite(constant)


def is_table(constant: Tensor) -> bool:
    """True if it says something of each code, or of each column and code."""
    return constant.dim() in (1, 2) and constant.size(-1) == CODES and not constant.dtype.is_complex


def is_table_of_pairs(constant: Tensor) -> bool:
    """True if it says something of each pair of codes."""
    return constant.shape == (CODES, CODES) and not constant.dtype.is_complex


def is_code_of_pairs(constant: Tensor) -> bool:
    """True if it has a code for each pair of codes."""
    return is_table_of_pairs(constant) and constant.dtype == torch.uint8


def is_term_weight(constant: Tensor) -> bool:
    """True if a term of a sum can be weighed with it: values of codes, or one number."""
    by_group = constant.dim() == 3 and of_groups(is_table)(constant)
    return constant.dtype == torch.float32 and (constant.shape == (1,) or is_table(constant) or by_group)


def is_factor(columns: int) -> Sound:
    """True if it is a finite number, for all columns or for each."""
    return lambda constant: constant.shape in ((1,), (columns,)) and is_finite(constant)


def is_bias(columns: int) -> Sound:
    """True if it is a finite number for each column."""
    return lambda constant: constant.shape == (columns,) and is_finite(constant)


def is_weight(columns: int) -> Sound:
    """True if it is a packed weight whose products have so many columns."""
    groups = -(-columns // GROUP)
    return lambda constant: (
        constant.dtype == torch.int16
        and constant.dim() == 4
        and (constant.size(0), *constant.shape[2:]) == (groups, GROUP, 2)
    )


def is_finishing(columns: int, pairs: bool, packed: bool) -> Sound:
    """True if it is the table of a finish."""
    one = ((CODES,), (columns, CODES))
    both: tuple[tuple[int, ...], ...] = ((CODES, CODES), (PLANE,), (PLANE + GRID,))

    def sound(constant: Tensor) -> bool:
        if constant.shape not in (both if pairs else one):
            return False
        plane = pairs and constant.dim() == 1
        if plane:
            codes = constant.shape == (PLANE,)
            return is_finite(constant) and (codes or not packed)
        return constant.dtype == torch.uint8 or (constant.dtype == torch.float32 and not packed)

    return sound

"""Tables of values that lie on a grid: computed by vectors, they need not be looked up.

What a module returns is mostly that: the values of its last codes. A grid stands for a table only where it gives what
is in the table, for every code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.integer.finish import GRID as GRID

Floats = NDArray[np.float32]


def grid_of(table: Floats) -> Floats | None:
    """Zero and scale of float32 `[256]`, if all of its values are `(code - zero) * scale`; else None.

    Example:
        >>> grid_of((np.arange(256, dtype=np.float32) - 3) * np.float32(0.5)).tolist()
        [3.0, 0.5]
        >>> grid_of(np.arange(256, dtype=np.float32) ** 2) is None
        True
    """
    zero = int(np.abs(table).argmin())
    scale = table[zero + 1] if zero + 1 < CODES else -table[zero - 1]
    grid = np.array([zero, scale], np.float32)
    return grid if np.array_equal(values_of(grid), table) else None


def codes_of(table: Floats) -> tuple[NDArray[np.uint8], Floats] | None:
    """Codes and their grid, zero and scale, of values of any shape that lie on one of 256 steps; else None.

    Example:
        >>> codes_of(np.array([[-1.5, 0.0], [0.5, 1.0]], np.float32))
        (array([[0, 3],
               [4, 5]], dtype=uint8), array([3. , 0.5], dtype=float32))
        >>> codes_of(np.array([0.5, 0.7], np.float32)) is None
        True
    """
    sizes = np.abs(table[table != 0])
    if sizes.size == 0 or not np.isfinite(sizes).all():
        return None
    scale = sizes.min()
    with np.errstate(over="ignore"):  # what lies that far apart is on no grid
        steps = np.rint(table / scale)
    zero = max(-steps.min(), 0)
    if steps.max() + zero >= CODES or zero >= CODES:
        return None
    codes, grid = (steps + zero).astype(np.uint8), np.array([zero, scale], np.float32)
    return (codes, grid) if np.array_equal(values_of(grid)[codes], table) else None


def values_of(grid: Floats) -> Floats:
    """float32 `[256]`, as the loops compute it."""
    with np.errstate(over="ignore", invalid="ignore"):  # of tables that lie on no grid
        values: Floats = (np.arange(CODES, dtype=np.float32) - grid[0]) * grid[1]
    return values

"""Rows that are rounded on the way into a product of the library's: a few at a time, as it takes whole matrices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid
from dqconvert.kernels.cpu import product_loops as loops
from dqconvert.kernels.cpu.arrays import array, strided
from dqconvert.kernels.cpu.chain import flags, groups_of
from dqconvert.kernels.cpu.threads import parts, run

CHUNK = 1 << 20
"""Values that are rounded before they are multiplied: enough for the library, and no second copy of a wide matrix."""


class Gate:
    """The rows of `x` as a product wants them.

    Args:
        x: `[rows, depth]`.
        grid: The grid that they are rounded to; None: they pass as they are.
        protected: Which rows are not rounded, or None.
        groups: The group of each row, if grids differ.
    """

    def __init__(self, x: Tensor, grid: Grid | None, protected: Tensor | None, groups: Tensor | None) -> None:
        self._x, self._skip, self._group = x.detach().contiguous(), flags(protected), groups_of(groups)
        self._clip = grid is not None and grid.scheme.clip
        self._grid = None if grid is None else grid.table(array(self._x).dtype.type)

    def chunks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yields the first and the last row of each chunk and its rounded rows, which are valid until the next."""
        count, depth = self._x.shape
        if self._grid is None:
            yield 0, count, self._x
            return
        step = max(1, CHUNK // max(depth, 1))
        room, x, grid = empty((min(step, count), depth), self._x.dtype), array(self._x), self._grid
        for first in range(0, count, step):
            last = min(first + step, count)
            rows = array(room[: last - first])

            def task(part: int, start: int, stop: int, first: int = first, rows: np.ndarray = rows) -> None:
                loops.round_rows(x, first + start, first + stop, grid, self._skip, self._group, rows[start:stop])

            run(task, parts(last - first, rows.size))
            yield first, last, room[: last - first]

    def stop(self, grad: Tensor) -> None:
        """Sets the gradient of values that the grid clips to zero, in place."""
        if self._grid is None or not self._clip:
            return
        x, to, grid = array(self._x), strided(grad), self._grid

        def task(part: int, start: int, stop: int) -> None:
            loops.stop_rows(x, grid, self._skip, self._group, to, start, stop)

        run(task, parts(len(x), x.size))

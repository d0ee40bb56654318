"""Loops of :mod:`dqconvert.kernels.scale_rows`."""

from __future__ import annotations

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import is_far, pointer, room_before, stream
from dqconvert.kernels.cpu.tile import scale_values, tile_rows


@loop
def scale(x, factor, y, start, stop):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop`; a tile at a time past the cache, if they are written there."""
    columns, far = x.shape[1], is_far(y)
    step = tile_rows(columns)
    room = room_before(y, step)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        for r in range(first, last):
            to = pointer(room, (r - first) * columns) if far else pointer(y, r * columns)
            scale_values(pointer(x, r * columns), factor[r], to, columns)
        if far:
            stream(room, 0, y, first * columns, (last - first) * columns)

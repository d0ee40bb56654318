"""Loops of :mod:`dqconvert.kernels.dropout`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import is_far, stream
from dqconvert.kernels.cpu.tile import TILE


@loop
def scale_kept(x, kept, y, factor, start, stop):  # type: ignore[no-untyped-def]
    if not is_far(y):
        scale_span(x[start:stop], kept[start:stop], factor, y[start:stop])
        return
    room = np.empty(TILE, y.dtype)
    for first in range(start, stop, TILE):
        last = min(first + TILE, stop)
        scale_span(x[first:last], kept[first:last], factor, room[: last - first])
        stream(room, 0, y, first, last - first)


@loop
def scale_span(x, kept, factor, y):  # type: ignore[no-untyped-def]
    for i in range(y.size):
        y[i] = x[i] * (kept[i] * factor)

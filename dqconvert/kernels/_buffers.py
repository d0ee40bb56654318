"""Memory for large results, used again and again.

A training step makes the same large tensors every time, and memory fresh from the system costs more to touch for the
first time than most of these operators cost to run. The results of the CPU kernels therefore lie in buffers that are
kept when the tensor in them is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels.cpu.llvm.memory import LINE
from dqconvert.kernels.derived import clear_derived

SMALL = 1 << 20
"""Bytes under which memory comes from torch."""

_PAGE = 1 << 21
"""Bytes of a large page; see :func:`_mapped`."""

_LARGE = 2 * _PAGE
"""Bytes from which memory is asked for in large pages."""

_SPARE = 1.25
"""Not every buffer fits whoever asks next: with no room to spare, some are made anew in every step."""

_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}


class Buffers:
    """Lends buffers, and takes them back when nothing refers to the tensor in them any more.

    It holds no more than a quarter above what was ever lent at one time. Where that leaves no room, what goes is what
    nobody asked for since this size was last asked for, as a training step's buffers once the model is converted.

    Example:
        >>> buffers = Buffers()
        >>> first = buffers.empty((1024, 1024), torch.float32)
        >>> place = first.data_ptr()
        >>> del first
        >>> buffers.empty((1000, 1024), torch.float32).data_ptr() == place
        True
    """

    def __init__(self) -> None:
        # Lists are appended to and popped from in one step, so threads need no lock; the sums are estimates.
        self._free: dict[int, list[NDArray[Any]]] = {}
        self._lent: dict[int, weakref.ref[Any]] = {}
        self._lent_bytes = self._free_bytes = self._most_bytes = 0
        self._times, self._asked = itertools.count(1), dict[int, tuple[int, int]]()  # by size: last time, time before

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a contiguous tensor on the CPU whose values are undefined; float32, float64 or uint8."""
        count = math.prod(shape)
        if count * dtype.itemsize < SMALL:
            return torch.empty(shape, dtype=dtype)
        kind = np.dtype(_NUMPY[dtype])
        size = _size_class(count * kind.itemsize)
        kept = self._free.setdefault(size, [])
        self._asked[size] = next(self._times), self._asked.get(size, (0, 0))[0]
        try:
            raw = kept.pop()
            self._free_bytes -= size
        except IndexError:
            raw = _aligned(size)
        self._lent_bytes += size
        self._most_bytes = max(self._most_bytes, self._lent_bytes)
        lent = raw[: count * kind.itemsize].view(kind).reshape(shape)
        # The tensor holds this array, and this array alone; when it goes, the memory behind it is free.
        key = id(lent)
        self._lent[key] = weakref.ref(lent, lambda _: self._take_back(key, raw))
        # Not a view of a tensor, which would keep that one: torch adds gradients up in place only if nobody else sees.
        return torch.from_numpy(lent)

    def release(self) -> None:
        """Gives the memory that is free back to the system; what is lent comes back as ever."""
        for kept in self._free.values():
            while kept:
                self._free_bytes -= len(kept.pop())
        self._most_bytes = self._lent_bytes

    def _take_back(self, key: int, raw: NDArray[Any]) -> None:
        del self._lent[key]
        size = len(raw)
        self._lent_bytes -= size
        before = self._asked[size][1]
        while self._is_too_much(size) and self._forget(before):
            pass
        if not self._is_too_much(size):
            self._free_bytes += size
            self._free[size].append(raw)

    def _is_too_much(self, size: int) -> bool:
        return self._free_bytes + self._lent_bytes + size > self._most_bytes * _SPARE

    def _forget(self, before: int) -> bool:
        """Frees a buffer of the size asked for longest ago, if that was before `before`; True if there was one."""
        last, size = min(
            ((self._asked[size][0], size) for size in list(self._free) if self._free[size]), default=(0, 0)
        )
        if not 0 < last < before:
            return False
        with contextlib.suppress(IndexError):  # another thread was faster
            self._free[size].pop()
            self._free_bytes -= size
        return True


def _aligned(size: int) -> NDArray[np.uint8]:
    """New memory that begins with a cache line, so that no vector lies in two; large memory begins with a page."""
    large = size >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE")
    step = _PAGE if large else LINE
    memory = _mapped(size + step) if large else np.empty(size + step, np.uint8)
    start = -memory.ctypes.data % step
    return memory[start : start + size]


def _mapped(size: int) -> NDArray[np.uint8]:
    """Returns memory straight from the system, in large pages if it has some to give.

    Rows of neighbours lie anywhere: with the usual pages of 4 KiB, the processor looks up where each one is. What the
    allocator gives may have been used before, in small pages, and then stays in them.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system built without large pages: the memory is as good, and slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _size_class(size: int) -> int:
    """Sizes are rounded up by an eighth at most, so that batches of about the same size share buffers."""
    step = 1 << max(16, size.bit_length() - 4)
    return -(-size // step) * step


_buffers = Buffers()
empty = _buffers.empty


def release_memory() -> None:
    """Gives memory that the CPU kernels keep back to the system: buffers for results, and values derived from tensors.

    After training, say, in a process that goes on with other work. What was freed goes back, too: glibc would keep it.
    What modules keep of their graphs is theirs: ``module.graph_memory.clear()``.

    Example:
        >>> release_memory()
    """
    _buffers.release()
    clear_derived()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Tensors with a page behind them, or before them, that nobody may touch: whoever reads past their end, dies."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dqconvert import kernels
from dqconvert.kernels._buffers import _NUMPY

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded_empty(shape: Sequence[int], dtype: torch.dtype, *, before: bool = False) -> Tensor:
    """New memory with a page that cannot be read or written right behind (or before) it, and no sensible numbers."""
    kind = np.dtype(_NUMPY.get(dtype) or torch.empty(0, dtype=dtype).numpy().dtype)
    count = math.prod(shape)
    size, page = count * kind.itemsize, mmap.PAGESIZE
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    np.frombuffer(memory, np.uint8)[:] = 0x7F  # as floats, 3.4e38
    for place in (start, start + page + room):
        assert _LIBC.mprotect(place, page, 0) == 0
    at = page if before else page + room - size
    return torch.from_numpy(np.frombuffer(memory, kind, count, at).reshape(shape))


def guarded(tensor: Tensor, *, before: bool = False) -> Tensor:
    """The same values in guarded memory."""
    if tensor.layout != torch.strided or tensor.dtype in (torch.bfloat16, torch.complex64) or tensor.is_meta:
        return tensor
    copy = guarded_empty(tensor.shape, tensor.dtype, before=before)
    return copy.copy_(tensor.detach())


def guard_module(module: nn.Module, *, before: bool = False) -> None:
    """Puts all parameters and buffers of a module into guarded memory."""
    with torch.no_grad():
        for owner in module.modules():
            for name, held in [*owner._parameters.items(), *owner._buffers.items()]:
                if held is not None and held.dim() > 0:
                    held.data = guarded(held.data, before=before)
                    assert getattr(owner, name) is held


def guard_results() -> None:
    """Has the results of all kernels lie in guarded memory from now on, in this process."""
    import pkgutil
    import sys

    old = kernels._buffers.empty
    for module in pkgutil.walk_packages(kernels.__path__, "dqconvert.kernels."):
        __import__(module.name)
        if getattr(sys.modules[module.name], "empty", None) == old:
            sys.modules[module.name].empty = guarded_empty  # type: ignore[attr-defined]

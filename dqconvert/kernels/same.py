"""Comparison of tensors with tensors that were seen before."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels.cpu.arrays import array, strided
from dqconvert.kernels.cpu.scan import equal_part
from dqconvert.kernels.cpu.threads import parts, run

_MANY = 1 << 16
"""Values from which memory, and a second thread, are worth a loop of our own."""

_NARROW = torch.iinfo(torch.int32)


class Copy:
    """A copy of a tensor, to compare others with. Of small integers it takes half of their memory.

    Args:
        tensor: What to copy.

    Attributes:
        nbytes: The memory that the copy takes.

    Example:
        >>> index = torch.tensor([[0, 1], [1, 2]])
        >>> copy = Copy(index)
        >>> copy.equals(index.clone())
        True
        >>> index.numpy()[0, 0] = 5
        >>> copy.equals(index)
        False
    """

    def __init__(self, tensor: Tensor) -> None:
        self._dtype = tensor.dtype
        with torch.inference_mode(False):
            dtype = torch.int32 if _narrow(tensor) else tensor.dtype
            self._copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    @property
    def nbytes(self) -> int:
        return self._copy.nbytes

    def equals(self, tensor: Tensor) -> bool:
        """Returns True if a tensor has the dtype, the shape and all the values of the one that was copied."""
        copy = self._copy
        if tensor.dtype != self._dtype or tensor.device != copy.device or tensor.shape != copy.shape:
            return False
        if copy.dtype == tensor.dtype:
            return torch.equal(copy, tensor)
        one, two = array(copy), strided(tensor)
        # As they lie: the ends of edges are often columns of a matrix, and a copy takes longer than to compare.
        rows = zip(one, two, strict=True) if one.ndim == 2 and not two.flags.c_contiguous else ((one, two),)
        return all(map(_equal, rows))


class Own:
    """A tensor that nobody writes into unnoticed by torch, to compare others with: where it lies tells it.

    Args:
        tensor: It; its memory is held, and so no other tensor comes to lie there.

    Example:
        >>> order = torch.tensor([[2, 0, 1], [0, 1, 2]])
        >>> own = Own(order[0])
        >>> own.equals(order[0]), own.equals(order[1]), own.equals(order[0].clone())
        (True, False, True)
        >>> own.equals(order.add_(1)[0])
        False
    """

    def __init__(self, tensor: Tensor) -> None:
        with torch.inference_mode(False):
            self._held = tensor.detach()  # counts its versions together with the tensor
        self._version, self._place, self._stride = tensor._version, tensor.data_ptr(), tensor.stride()

    def equals(self, tensor: Tensor) -> bool:
        """Returns True if a tensor has the dtype, the shape and all the values that this one had."""
        held = self._held
        if tensor.dtype != held.dtype or tensor.device != held.device or tensor.shape != held.shape:
            return False
        if held._version != self._version:
            return False
        there = tensor.data_ptr() == self._place and tensor.stride() == self._stride
        return there or torch.equal(held, tensor)


def _equal(pair: tuple[NDArray[Any], NDArray[Any]]) -> bool:
    one, two = (array.reshape(-1) for array in pair)
    return all(run(lambda _, start, stop: equal_part(one, two, start, stop), parts(len(one), len(one))))


def _narrow(tensor: Tensor) -> bool:
    if tensor.dtype != torch.int64 or tensor.device.type != "cpu" or tensor.numel() < _MANY:
        return False
    least, most = tensor.aminmax()
    return int(least) >= _NARROW.min and int(most) <= _NARROW.max


__all__ = ["Copy", "Own"]

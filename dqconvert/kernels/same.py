"""Whether a graph is the one that was seen before: compared value by value, with a copy of its own.

Whose memory a tensor lies in, nobody knows: numpy may write into it, and torch does not notice.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._arrays import array, strided
from dqconvert.kernels._compiled import loop
from dqconvert.kernels._threads import parts, run

_BLOCK = 1 << 12
"""Values after which a comparison stops if one of them differs."""

_MANY = 1 << 16
"""Values from which memory, and a second thread, are worth a loop of our own."""

_NARROW = torch.iinfo(torch.int32)


class Seen:
    """A copy of a tensor, to compare others with. Of small integers it takes half of their memory.

    ```python
    >>> index = torch.tensor([[0, 1], [1, 2]])
    >>> seen = Seen(index)
    >>> seen.equals(index.clone())
    True
    >>> index.numpy()[0, 0] = 5
    >>> seen.equals(index)
    False

    ```
    """

    def __init__(self, tensor: Tensor) -> None:
        self._dtype = tensor.dtype
        with torch.inference_mode(False):
            dtype = torch.int32 if _narrow(tensor) else tensor.dtype
            self._copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    def equals(self, tensor: Tensor) -> bool:
        """Whether the tensor has the type, the shape and all the values of that one."""
        copy = self._copy
        if tensor.dtype != self._dtype or tensor.device != copy.device or tensor.shape != copy.shape:
            return False
        if copy.dtype == tensor.dtype:
            return torch.equal(copy, tensor)
        one, two = array(copy), strided(tensor)
        # As they lie: the ends of edges are often columns of a matrix, and a copy takes longer than to compare.
        rows = zip(one, two, strict=True) if one.ndim == 2 and not two.flags.c_contiguous else ((one, two),)
        return all(map(_equal, rows))


def _equal(pair: tuple[NDArray[Any], NDArray[Any]]) -> bool:
    one, two = (array.reshape(-1) for array in pair)
    return all(run(lambda _, start, stop: equal_part(one, two, start, stop), parts(len(one), len(one))))


_shared: weakref.WeakValueDictionary[tuple[Any, ...], Seen] = weakref.WeakValueDictionary()


def seen(tensor: Tensor) -> Seen:
    """A copy to compare with; of the same memory with the same values there is one copy, whoever asks for it.

    ```python
    >>> index = torch.tensor([0, 2, 1])
    >>> first = seen(index)
    >>> seen(index) is first
    True

    ```
    """
    key = tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()
    known = _shared.get(key)
    if known is None or not known.equals(tensor):
        known = _shared[key] = Seen(tensor)
    return known


def _narrow(tensor: Tensor) -> bool:
    if tensor.dtype != torch.int64 or tensor.device.type != "cpu" or tensor.numel() < _MANY:
        return False
    least, most = tensor.aminmax()
    return int(least) >= _NARROW.min and int(most) <= _NARROW.max


@loop
def equal_part(one, two, start, stop):  # type: ignore[no-untyped-def]
    for first in range(start, stop, _BLOCK):
        different = two[first] ^ two[first]
        for i in range(first, min(first + _BLOCK, stop)):
            different |= two[i] ^ one[i]
        if different != 0:
            return False
    return True


__all__ = ["Seen", "seen"]

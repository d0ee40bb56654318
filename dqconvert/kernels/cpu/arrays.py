"""Tensors as the arrays that loops take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KINDS = {
    torch.bool: "|b1",
    torch.uint8: "|u1",
    torch.int8: "|i1",
    torch.int16: "<i2",
    torch.int32: "<i4",
    torch.int64: "<i8",
    torch.float16: "<f2",
    torch.float32: "<f4",
    torch.float64: "<f8",
}
_STRIDED = torch.strided


def array(tensor: Tensor) -> NDArray[Any]:
    """Returns the values of a tensor as a contiguous array, in the same memory if they lie in order there.

    Not by :meth:`torch.Tensor.numpy`, which fixes the size of the memory for good, even that of a parameter: whoever
    shards a model (FSDP2, say) frees it between two uses.

    Args:
        tensor: On the CPU, of a type that numpy has. Whether it wants gradients does not matter.

    Raises:
        TypeError: If it is of another type, on another device, or has no memory of its values (sparse tensors, say).

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> array(weight), weight.untyped_storage().resizable()
        (array([1., 1.], dtype=float32), True)
    """
    kind = _KINDS[tensor.dtype] if tensor.dtype in _KINDS else None  # noqa: SIM401  every call counts here
    if kind is None or not tensor.is_cpu or tensor.layout is not _STRIDED:
        raise TypeError(f"no array lies in a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}")
    if not tensor.is_contiguous():
        tensor = tensor.detach().contiguous()
    if tensor.is_neg():
        tensor = tensor.detach().resolve_neg()
    shape = tuple(tensor.shape)
    if 0 in shape:
        return np.empty(shape, kind)
    memory = {"shape": shape, "typestr": kind, "data": (tensor.data_ptr(), False), "version": 3}
    return np.asarray(SimpleNamespace(tensor=tensor, __array_interface__=memory))  # the array keeps the tensor


def as_it_lies(tensor: Tensor) -> Tensor:
    """Returns a tensor whose values lie in order in its memory, the tensor itself if they do.

    Example:
        >>> as_it_lies(torch.tensor([[1, 2], [3, 4]]).t()).is_contiguous()
        True
    """
    tensor = tensor.detach().resolve_neg() if tensor.is_neg() else tensor
    return tensor if tensor.is_contiguous() else tensor.detach().contiguous()


def strided(tensor: Tensor) -> NDArray[Any]:
    """Returns the same, entries as far apart as they lie in the tensor.

    Example:
        >>> strided(torch.tensor([[1, 2], [3, 4]]).t()).flags.c_contiguous
        False
    """
    if tensor.layout is _STRIDED and tensor.is_neg():
        tensor = tensor.detach().resolve_neg()
    if tensor.layout is not _STRIDED or tensor.is_contiguous():
        return array(tensor)
    shape, steps = tuple(tensor.shape), tensor.stride()
    reach = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    memory = array(tensor.detach().as_strided((reach,), (1,)))
    return np.ndarray(shape, memory.dtype, memory, 0, tuple(step * tensor.itemsize for step in steps))


__all__ = ["array", "as_it_lies", "strided"]

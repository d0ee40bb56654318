"""Functions of torch that believe what they are told of memory, as graphs in files call them: they look first.

A graph that was traced holds torch's own function; its name in a file stands for the one here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dqconvert.errors import InputIndexError


def sparse_coo_tensor(*args: Any, **kwargs: Any) -> Tensor:
    """Calls ``torch.sparse_coo_tensor`` and checks the indices."""
    return torch.sparse_coo_tensor(*args, **{**kwargs, "check_invariants": True})


def sparse_csr_tensor(*args: Any, **kwargs: Any) -> Tensor:
    """Calls ``torch.sparse_csr_tensor`` and checks the indices."""
    return torch.sparse_csr_tensor(*args, **{**kwargs, "check_invariants": True})


def sparse_csc_tensor(*args: Any, **kwargs: Any) -> Tensor:
    """Calls ``torch.sparse_csc_tensor`` and checks the indices."""
    return torch.sparse_csc_tensor(*args, **{**kwargs, "check_invariants": True})


def segment_reduce(data: Tensor, reduce: str, *, lengths: Tensor | None = None, **options: Any) -> Tensor:
    """Calls ``torch.segment_reduce`` of segments that are as long, together, as the data.

    Raises:
        InputIndexError: If they are given by where they begin, or are not looked at.

    Example:
        >>> segment_reduce(torch.ones(3), "sum", lengths=torch.tensor([1, 2]))
        tensor([1., 2.])
    """
    if lengths is None or options.pop("unsafe", False) or options.get("indices") is not None or "offsets" in options:
        raise InputIndexError("segment_reduce in a file takes the lengths of segments, and looks at them")
    return torch.segment_reduce(data, reduce, lengths=lengths, unsafe=False, **options)


CHECKED = MappingProxyType(
    {
        f"torch.{function.__name__}": (getattr(torch, function.__name__), function)
        for function in (sparse_coo_tensor, sparse_csr_tensor, sparse_csc_tensor, segment_reduce)
    }
)
"""By name in files: torch's own function, and what stands in for it."""

"""Checks of edge orders: the loops over them do not look where they read."""

from __future__ import annotations

from torch import Tensor

from dqconvert.errors import InputIndexError
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.scan import rises
from dqconvert.kernels.derived import Derived


def check_order(ptr: Tensor, senders: Tensor, num_senders: int) -> None:
    """Checks that edges are in order and all their senders are there.

    The loops read what the edges name. An order that was found to be sound is not looked at again while its tensors are
    the same, and unchanged.

    Args:
        ptr: int64 ``[num_nodes + 1]``; the edges to node ``i`` are ``ptr[i]`` to ``ptr[i + 1]``.
        senders: int32 or int64 ``[num_edges]``.
        num_senders: Rows of what the senders name.

    Raises:
        IndexError: If not.

    Example:
        >>> import torch
        >>> check_order(torch.tensor([0, 2]), torch.tensor([0, 4]), num_senders=4)
        Traceback (most recent call last):
        dqconvert.errors.InputIndexError: an edge begins at node 4: there are 4 nodes
    """
    rows = _rows.find((senders, ptr))
    if rows is not None and rows <= num_senders:
        return
    if ptr.dim() != 1 or ptr.numel() == 0 or not rises(array(ptr), senders.numel()):
        raise InputIndexError(f"ptr must rise from 0 to the number of edges, {senders.numel()}")
    if senders.numel() > 0:
        low, high = (int(end) for end in senders.aminmax())
        if low < 0 or high >= num_senders:
            raise InputIndexError(f"an edge begins at node {low if low < 0 else high}: there are {num_senders} nodes")
    vouch(ptr, senders, num_senders)


def vouch(ptr: Tensor, senders: Tensor, num_senders: int) -> None:
    """Records that edges are in order, for code that just put them so: :func:`check_order` need not look at them."""
    _rows.keep(num_senders, (senders, ptr))


_rows = Derived[int]()
"""Of senders and ptr that are in order, a number of rows that all senders are below."""


__all__ = ["check_order", "vouch"]

"""Whether edges are in order: the loops over them do not look where they read."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor

from dqconvert.errors import InputIndexError
from dqconvert.kernels._arrays import array
from dqconvert.kernels._compiled import loop


class _Sound(NamedTuple):
    """What was found about `places`, the rows that edges name, in the order that `ptr` says.

    Attributes:
        places, ptr: The tensors; they are told apart by what they are, not by their values.
        versions: How often they had been changed.
        rows: All places are below it.
    """

    places: weakref.ref[Tensor]
    ptr: weakref.ref[Tensor]
    versions: tuple[int, int]
    rows: int


# Not attributes of the tensors: those would be copied with them, and to a copy nothing is known to have happened.
_sound: dict[int, _Sound] = {}


def check_order(ptr: Tensor, senders: Tensor, num_senders: int) -> None:
    """Makes sure that edges are in order and all their senders are there.

    The loops read what the edges name. A graph that was found to be sound is not looked at again while its tensors are
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
    known = _sound.get(id(senders))
    if (
        known is not None
        and known.places() is senders
        and known.ptr() is ptr
        and known.rows <= num_senders
        and known.versions == _versions(ptr, senders)
    ):
        return
    if ptr.dim() != 1 or ptr.numel() == 0 or not rises(array(ptr), senders.numel()):
        raise InputIndexError(f"ptr must rise from 0 to the number of edges, {senders.numel()}")
    if senders.numel() > 0:
        low, high = (int(end) for end in senders.aminmax())
        if low < 0 or high >= num_senders:
            raise InputIndexError(f"an edge begins at node {low if low < 0 else high}: there are {num_senders} nodes")
    vouch(ptr, senders, num_senders)


def vouch(ptr: Tensor, senders: Tensor, num_senders: int) -> None:
    """Says of edges that were just put in order that they are, so that :func:`check_order` need not look at them."""
    versions = _versions(ptr, senders)
    if versions is not None:
        key = id(senders)
        places = weakref.ref(senders, lambda gone: _forget(key, gone))
        _sound[key] = _Sound(places, weakref.ref(ptr), versions, num_senders)


def _versions(ptr: Tensor, senders: Tensor) -> tuple[int, int] | None:
    """How often both were changed; of tensors made in inference mode nobody knows."""
    return None if ptr.is_inference() or senders.is_inference() else (ptr._version, senders._version)


def _forget(key: int, gone: weakref.ref[Any]) -> None:
    known = _sound.get(key)
    if known is not None and known.places is gone:  # another tensor may be there by now
        del _sound[key]


@loop
def rises(ptr, count):  # type: ignore[no-untyped-def]
    """Whether numbers rise from 0 to `count`."""
    falls = False
    for i in range(ptr.size - 1):
        falls |= ptr[i + 1] < ptr[i]
    return ptr[0] == 0 and ptr[ptr.size - 1] == count and not falls


__all__ = ["check_order", "rises", "vouch"]

"""Whether edges are in order: the loops over them do not look where they read."""

from __future__ import annotations

from torch import Tensor

from dqconvert.errors import InputIndexError

_SOUND = "_dqconvert_sound"
"""The attribute of senders that says with what they were found to be there."""


def check_order(ptr: Tensor, senders: Tensor, num_senders: int) -> None:
    """Makes sure that edges are in order and all their senders are there.

    The loops read what the edges name. A graph that was found to be sound is not looked at again while its tensors are
    the same, and unchanged.

    **Arguments**: `ptr`, `senders`: see :func:`dqconvert.kernels.integer.propagate.integer_propagate`. `num_senders`:
    rows of `x`.

    **Raises** `IndexError` if not.

    ```python
    >>> import torch
    >>> check_order(torch.tensor([0, 2]), torch.tensor([0, 4]), num_senders=4)
    Traceback (most recent call last):
    dqconvert.errors.InputIndexError: an edge begins at node 4: there are 4 nodes

    ```
    """
    counted = not (ptr.is_inference() or senders.is_inference())
    now = (ptr, ptr._version, senders._version, num_senders) if counted else None
    known = getattr(senders, _SOUND, None)
    if now is not None and known is not None and known[0] is ptr and known[1:] == now[1:]:
        return
    if ptr.numel() == 0 or ptr[0] != 0 or ptr[-1] != senders.numel() or (ptr.diff() < 0).any():
        raise IndexError(f"ptr must rise from 0 to the number of edges, {senders.numel()}")
    if senders.numel() > 0:
        low, high = (int(end) for end in senders.aminmax())
        if low < 0 or high >= num_senders:
            raise InputIndexError(f"an edge begins at node {low if low < 0 else high}: there are {num_senders} nodes")
    setattr(senders, _SOUND, now)


def vouch(ptr: Tensor, senders: Tensor, num_senders: int) -> None:
    """Says of edges that were just put in order that they are, so that :func:`check_order` need not look at them."""
    if not (ptr.is_inference() or senders.is_inference()):
        setattr(senders, _SOUND, (ptr, ptr._version, senders._version, num_senders))

"""Edges whose number compiled code takes for a number of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dqconvert.kernels._operator import DEFINITIONS


@torch.library.custom_op("dqconvert::own_size", mutates_args=())
def _own_size(edges: Sequence[Tensor]) -> list[Tensor]:
    return [values.clone() for values in edges]


DEFINITIONS["own_size"] = lambda edges: [values.clone() for values in edges]


@_own_size.register_fake
def _(edges: Sequence[Tensor]) -> list[Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return [values.new_empty((*values.shape[:-1], count)) for values in edges]


def _backward(ctx: object, grads: list[Tensor | None]) -> list[Tensor | None]:
    return grads


_own_size.register_autograd(_backward)


def own_size(edges: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors whose last dimension is that of the edges, for which compiled code has a new symbol.

    Where self-loops are removed and added the number of edges is a sum, such as `u1 + s77`; inductor cannot take
    tensors of such a size over into the backward pass.

    Example:
        >>> own_size([torch.tensor([[0, 1], [1, 1]])])
        [tensor([[0, 1],
                [1, 1]])]
    """
    return _own_size(list(edges))

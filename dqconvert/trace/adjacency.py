"""Connectivity in its other forms: sparse adjacency matrices and PyG's ``EdgeIndex``.

A sparse adjacency is transposed, as PyG wants it: row ``i`` holds the nodes that send to ``i``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

_SPARSE = {
    torch.sparse_csr: to_torch_csr_tensor,
    torch.sparse_csc: to_torch_csc_tensor,
    torch.sparse_coo: to_torch_coo_tensor,
}


def is_sparse(value: Any) -> bool:
    """Whether a value is a ``torch.sparse`` matrix; its entries may be vectors.

    Example:
        >>> is_sparse(torch.eye(2).to_sparse_csr()), is_sparse(torch.ones(2, 2, 3).to_sparse_coo())
        (True, False)
    """
    return isinstance(value, Tensor) and value.layout in _SPARSE and value.dim() - value.dense_dim() == 2


def edge_index_of(value: Tensor) -> Tensor:
    """The ``[2, E]`` source and target nodes of a connectivity in any form.

    Example:
        >>> edge_index_of(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_csr())
        tensor([[1],
                [0]])
    """
    if isinstance(value, EdgeIndex):
        return value.as_tensor()
    if not is_sparse(value):
        return value
    # Not the public indices(), which would first merge parallel edges.
    indices = value._indices() if value.layout == torch.sparse_coo else value.to_sparse_coo()._indices()
    return indices.flip(0)


def plain_connectivity(value: Any) -> Any:
    """A connectivity as a graph takes it: an ``EdgeIndex`` as the tensor in it, a CSC matrix as CSR.

    The rewritten layers make their messages visible, so PyG's fused products, which want those forms, do not apply.

    Example:
        >>> type(plain_connectivity(EdgeIndex([[0, 1], [1, 0]]))).__name__
        'Tensor'
    """
    if isinstance(value, EdgeIndex):
        return value.as_tensor()
    if isinstance(value, Tensor) and value.layout == torch.sparse_csc:
        return value.to_sparse_csr()
    return value


def targets_of(value: Tensor) -> Tensor:
    """The receiving node of every edge of a sparse adjacency.

    Example:
        >>> targets_of(torch.eye(2).to_sparse_coo())
        tensor([0, 1])
    """
    return edge_index_of(value)[1]


def with_edges(value: Tensor, edge_index: Tensor, entries: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse adjacency like ``value`` with other edges; ``entries`` are the values of the matrix.

    Args:
        size: Number of source and of target nodes.
    """
    return _SPARSE[value.layout](edge_index.flip(0), entries, size=(size[1], size[0]))


def entries_of(value: Tensor) -> Tensor:
    """The values of a sparse adjacency, in the order of :func:`edge_index_of`."""
    return value._values() if value.layout == torch.sparse_coo else value.to_sparse_coo()._values()

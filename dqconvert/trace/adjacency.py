"""Connectivity in its other forms: sparse adjacency matrices and PyG's ``EdgeIndex``.

A sparse adjacency is transposed, as PyG wants it: row ``i`` holds the nodes that send to ``i``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

from dqconvert.errors import GuardError

_SPARSE = {
    torch.sparse_csr: to_torch_csr_tensor,
    torch.sparse_csc: to_torch_csc_tensor,
    torch.sparse_coo: to_torch_coo_tensor,
}


def is_sparse(value: Any) -> bool:
    """Returns True for a ``torch.sparse`` matrix; its entries may be vectors.

    Example:
        >>> is_sparse(torch.eye(2).to_sparse_csr()), is_sparse(torch.ones(2, 2, 3).to_sparse_coo())
        (True, False)
    """
    return isinstance(value, Tensor) and value.layout in _SPARSE and value.dim() - value.dense_dim() == 2


def edge_index_of(value: Tensor) -> Tensor:
    """Returns the ``[2, E]`` source and target nodes of a connectivity in any form.

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
    """Returns a connectivity as a graph takes it: an ``EdgeIndex`` as the tensor in it, a CSC matrix as CSR.

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


def with_visible_messages(value: Any) -> Any:
    """Returns a connectivity in the form in which PyG's layers compute messages, with all that it knows of its size.

    Example:
        >>> with_visible_messages(EdgeIndex([[0, 1], [0, 0]], sparse_size=(2, 1), sort_order="col")).sort_order
    """
    if isinstance(value, EdgeIndex) and value.sparse_size() != (None, None):
        return EdgeIndex(value.as_tensor(), sparse_size=value.sparse_size())
    return plain_connectivity(value)


def edge_sizes(edge_index: Tensor, known: tuple[bool, bool]) -> tuple[int | None, int | None]:
    """Returns the numbers of source and of target nodes that an ``EdgeIndex`` knows.

    Args:
        known: Which of them it knew while tracing.

    Raises:
        GuardError: If it knows others now.

    Example:
        >>> edge_sizes(EdgeIndex([[0, 1], [0, 0]], sparse_size=(2, 1)), (True, True))
        (2, 1)
    """
    sizes = edge_index.sparse_size() if isinstance(edge_index, EdgeIndex) else (None, None)
    if tuple(size is not None for size in sizes) != tuple(known):
        raise GuardError(
            f"the connectivity was an EdgeIndex that knew its numbers of nodes when the model was prepared, and a "
            f"layer takes from it how many rows to return; now it knows {sizes}. Pass EdgeIndex(…, sparse_size=…)."
        )
    return sizes


def edge_product(
    edge_index: Tensor, other: Tensor, values: Tensor | None = None, reduce: str = "sum", transpose: bool = False
) -> Tensor:
    """Returns the product of an ``EdgeIndex`` with features, as :meth:`torch_geometric.EdgeIndex.matmul` computes it.

    Raises:
        GuardError: If it is no ``EdgeIndex``, or not in the order that the product was traced with.

    Example:
        >>> edges = EdgeIndex([[1, 0], [0, 1]], sparse_size=(2, 2), sort_order="col")
        >>> edge_product(edges, torch.tensor([[3.0], [4.0]]), transpose=True).view(-1)
        tensor([4., 3.])
    """
    if not isinstance(edge_index, EdgeIndex) or not edge_index.is_sorted_by_col:
        raise GuardError(
            "the connectivity was an EdgeIndex sorted by column when the model was prepared, and the layer multiplies "
            "by it as a whole; it is another now. Pass EdgeIndex(edge_index, sparse_size=…, sort_order='col')."
        )
    return edge_index.matmul(other, values, reduce=reduce, transpose=transpose)


def size_of(value: Tensor) -> tuple[int | None, int | None]:
    """Returns the numbers of source and of target nodes of a connectivity, as far as it knows them.

    Example:
        >>> size_of(torch.ones(2, 3).to_sparse_csr()), size_of(torch.zeros(2, 5, dtype=torch.long))
        ((3, 2), (None, None))
    """
    if isinstance(value, EdgeIndex):
        return value.sparse_size()
    return (value.size(1), value.size(0)) if is_sparse(value) else (None, None)


def targets_of(value: Tensor) -> Tensor:
    """Returns the receiving node of every edge of a sparse adjacency.

    Example:
        >>> targets_of(torch.eye(2).to_sparse_coo())
        tensor([0, 1])
    """
    return edge_index_of(value)[1]


def with_edges(value: Tensor, edge_index: Tensor, entries: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a sparse adjacency like ``value`` with other edges; ``entries`` are the values of the matrix.

    Args:
        size: Number of source and of target nodes.
    """
    return _SPARSE[value.layout](edge_index.flip(0), entries, size=(size[1], size[0]))


def entries_of(value: Tensor) -> Tensor:
    """Returns the values of a sparse adjacency, in the order of :func:`edge_index_of`."""
    return value._values() if value.layout == torch.sparse_coo else value.to_sparse_coo()._values()

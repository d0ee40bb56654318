"""The edges in the order of the nodes at one of their ends: what a sum over the edges of each node needs (CSR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqconvert.errors import InputIndexError
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.counting_sort import sort_edges
from dqconvert.kernels.order import vouch


class EdgeOrder(NamedTuple):
    """Edges, grouped by node.

    Attributes:
        ptr: int64 `[num_nodes + 1]`; the edges of node `i` are `edges[ptr[i]:ptr[i + 1]]`.
        edges: int64 `[num_edges]`, positions in the list of edges, in its order within each node.
        others: int64 `[num_edges]`, the node at the other end of each of these edges.
    """

    ptr: Tensor
    edges: Tensor
    others: Tensor


def plain_edge_order(index: Tensor, other: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to."""
    ptr = torch.zeros(num_nodes + 1, dtype=torch.int64, device=index.device)
    ptr[1:] = torch.zeros_like(ptr[1:]).scatter_add_(0, index, torch.ones_like(index)).cumsum(0)
    edges = index.argsort(stable=True)
    return ptr, edges, other[edges]


def _on_cpu(index: Tensor, other: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    found = sort_edges(other, index, -1, num_nodes, torch.int64)
    if found is None:
        raise InputIndexError(f"an edge ends at a node that is not there: there are {num_nodes} nodes")
    ptr, others, edges = found
    vouch(ptr, edges, edges.numel())
    if edges.numel() > 0:
        low, high = (int(end) for end in others.aminmax())
        if low >= 0:
            vouch(ptr, others, high + 1)
    return ptr, edges, others


def _fake(index: Tensor, other: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    return index.new_empty(num_nodes + 1), index.new_empty(index.shape), index.new_empty(index.shape)


edge_order_operator = Operator(
    "edge_order",
    plain_edge_order,
    fake=_fake,
    cpu=_on_cpu,
    takes=Takes("edge_order", index="int64 [edges]", other="int64 [edges]", num_nodes="size"),
)


def edge_order(index: Tensor, other: Tensor, num_nodes: int) -> EdgeOrder:
    """Groups edges by the node at one of their ends.

    Args:
        index: int64 `[num_edges]`, that node of every edge.
        other: Likewise, the node at the other end.
        num_nodes: How many nodes there are.

    Raises:
        IndexError: For a node that is not there (on the CPU; elsewhere that is undefined, as for
            `torch.Tensor.scatter_add_`).

    Example:
        >>> order = edge_order(torch.tensor([2, 0, 2]), torch.tensor([0, 1, 1]), num_nodes=3)
        >>> order.ptr.tolist(), order.edges.tolist(), order.others.tolist()
        ([0, 1, 1, 3], [1, 0, 2], [1, 0, 1])
    """
    return EdgeOrder(*edge_order_operator(index, other, num_nodes))

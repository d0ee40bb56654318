"""The groups of in-degrees that have a scale of their own, as graphs compute them of the edges."""

from __future__ import annotations

from torch import Tensor

from dqconvert.kernels import degree_groups, in_degree


def groups_of_nodes(num_nodes: int, groups: int, *targets: Tensor) -> Tensor:
    """Returns the group of each node, by how many edges reach it.

    Args:
        num_nodes: How many nodes there are.
        groups: How many groups.
        targets: Per edge type that reaches these nodes, the target node of every edge, int64 ``[num_edges]``.

    Returns:
        uint8 ``[num_nodes]``: floor(log2(in-degree)), 0 for none, at most ``groups - 1``.

    Example:
        >>> import torch
        >>> groups_of_nodes(3, 8, torch.tensor([1, 1, 1, 2]), torch.tensor([1])).tolist()
        [0, 2, 0]
    """
    return degree_groups(in_degree(targets, num_nodes), groups)


def groups_of_edges(groups: Tensor, receiver: Tensor) -> Tensor:
    """Returns the group of each edge, which is that of the node that receives it.

    Args:
        groups: uint8 ``[num_nodes]``.
        receiver: int64 ``[num_edges]``.

    Example:
        >>> import torch
        >>> groups_of_edges(torch.tensor([0, 2], dtype=torch.uint8), torch.tensor([1, 0, 1])).tolist()
        [2, 0, 2]
    """
    return groups.index_select(0, receiver)

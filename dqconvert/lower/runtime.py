"""The functions that an integer graph calls besides the kernels, torch's and PyG's."""

from __future__ import annotations

import torch
from torch import Tensor

from dqconvert.errors import InputIndexError, InputTypeError
from dqconvert.kernels.edge_order import edge_order
from dqconvert.kernels.integer.tables import look_up


def look_up_last(codes: Tensor, table: Tensor, packed: bool = False) -> Tensor:
    """Looks each code up in a table, where columns may be spread over several dimensions.

    Args:
        codes: uint8 ``[rows, *rest]``.
        table: ``[256]``; or ``[columns, 256]`` for as many columns as there are entries in a row.
        packed: Of a matrix: whether to hold what is found, codes below 16, two to a byte.

    Example:
        >>> codes = torch.tensor([[[1], [2]]], dtype=torch.uint8)
        >>> look_up_last(codes, torch.arange(512.0).view(2, 256)).tolist()
        [[[1.0], [258.0]]]
    """
    if packed or table.dim() == 1 or codes.dim() == 2:
        return look_up(codes, table, packed=packed)
    return look_up(codes.reshape(-1, table.size(0)), table).view(codes.shape)


def check_edges(edge_index: Tensor, num_nodes: int, *, ends: bool = True) -> Tensor:
    """Returns the edges, if both ends of each are nodes that exist.

    Args:
        edge_index: ``[2, num_edges]``.
        num_nodes: How many nodes there are.
        ends: Whether to look at the ends; else only that there are two of each edge.

    Raises:
        TypeError: If the index holds no integers.
        IndexError: If a node is not there.

    Example:
        >>> check_edges(torch.tensor([[0], [3]]), 3)
        Traceback (most recent call last):
            ...
        dqconvert.errors.InputIndexError: edge_index names node 3, and there are 3 nodes: they are counted from 0
    """
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"edge_index must hold integers (torch.int64), got {edge_index.dtype}")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise InputIndexError(f"edge_index must have shape [2, num_edges], got {tuple(edge_index.shape)}")
    if ends and torch.compiler.is_compiling():  # such code cannot branch on values; it looks at them when it runs
        inside = (edge_index >= 0) & (edge_index < num_nodes)
        torch._assert_async(inside.all(), "edge_index names a node that is not there: nodes are counted from 0")
    elif ends and edge_index.numel() > 0:
        low, high = (int(end) for end in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            wrong = low if low < 0 else high
            raise InputIndexError(
                f"edge_index names node {wrong}, and there are {num_nodes} nodes: they are counted from 0"
            )
    return edge_index


def group_order(index: Tensor, num_rows: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Sorts rows by their group.

    Args:
        index: int64 or int32 ``[num_rows]``, the group of each row.
        size: How many groups; ``None``: as many as are named.

    Returns:
        Where the rows of each group begin, int64 ``[size + 1]``; the rows, int32 if they fit.

    Raises:
        TypeError: If groups are no integers.
        IndexError: If there is not one group for each row, or a group is not there.

    Example:
        >>> group_order(torch.tensor([1, 0, 1]), 3, None)
        (tensor([0, 1, 3]), tensor([1, 0, 2], dtype=torch.int32))
    """
    if index.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"the groups of rows (batch) must be integers (torch.int64), got {index.dtype}")
    if index.shape != (num_rows,):
        raise InputIndexError(f"{num_rows} rows take {num_rows} groups to which they belong, got {tuple(index.shape)}")
    if torch.compiler.is_compiling():  # an order of groups that are not there is refused by the operator
        order = edge_order(index, index, rows_named(index) if size is None else size)
        return order.ptr, order.edges
    low, high = (int(end) for end in index.aminmax()) if num_rows > 0 else (0, -1)
    size = high + 1 if size is None else size
    if low < 0 or high >= size:
        raise InputIndexError(f"a row belongs to group {low if low < 0 else high}, and there are {size} groups")
    order = edge_order(index, index, size)
    return order.ptr, order.edges.int() if num_rows < 1 << 31 else order.edges


def rows_named(index: Tensor) -> int:
    """Returns how many rows an index names, the largest and one; for code that torch.export makes, which knows it when
    it runs.

    Example:
        >>> rows_named(torch.tensor([0, 2])), rows_named(torch.tensor([], dtype=torch.int64))
        (3, 0)
    """
    size: int = torch.cat([index, index.new_full((1,), -1)]).max().item() + 1  # type: ignore[assignment]
    torch._check(size >= 0)
    return size


def in_edge_order(codes: Tensor, edges: Tensor) -> Tensor:
    """Returns rows that are in the order of the edges' receivers in the order of the edge list.

    Args:
        codes: ``[num_edges, *rest]``.
        edges: int64 ``[num_edges]``, the position of each in the list.

    Example:
        >>> in_edge_order(torch.tensor([10, 20, 30]), torch.tensor([2, 0, 1]))
        tensor([20, 30, 10])
    """
    return torch.empty_like(codes).index_copy_(0, edges, codes)


def reshaped_like(rows: Tensor, x: Tensor, columns: int) -> Tensor:
    """Restores the shape that rows had before they became a matrix, but for the last dimension.

    Example:
        >>> reshaped_like(torch.zeros(6, 4), torch.zeros(2, 3, 5), 4).shape
        torch.Size([2, 3, 4])
    """
    return rows.view(*x.shape[:-1], columns)

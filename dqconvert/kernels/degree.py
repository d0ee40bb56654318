"""In-degrees, and the probability with which Degree-Quant protects a node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputIndexError, InputShapeError
from dqconvert.kernels._operator import nobody_looks

_CELLS = 1 << 20  # pairs of graph and degree that are counted whatever the number of nodes


def in_degree(index: Sequence[Tensor], num_nodes: int, device: torch.device | None = None) -> Tensor:
    """Returns how many edges reach each node, summed over edge types.

    Args:
        index: Per edge type the target node of every edge, integers `[num_edges]`; may be empty.
        num_nodes: How many nodes there are.
        device: Where the result lies; `None`: where the first index does, or on the CPU if there is none.

    Returns:
        int64 `[num_nodes]`.

    Example:
        >>> in_degree([torch.tensor([0, 2, 2]), torch.tensor([2])], num_nodes=4).tolist()
        [1, 0, 3, 0]
    """
    if device is None and index:
        device = index[0].device
    degree = torch.zeros(num_nodes, dtype=torch.int64, device=device)
    one = torch.ones((), dtype=torch.int64, device=device)
    for targets in index:
        targets = targets.long()  # within a list or a dict they are as they were given
        # Not bincount, which waits for the largest index. Sums of integers do not depend on their order. Not a one for
        # each edge in memory, either: targets may be a file, mapped, and larger.
        degree.scatter_add_(0, targets, one.expand(targets.shape))
    return degree


def degree_groups(degree: Tensor, groups: int) -> Tensor:
    """Returns the group of each in-degree: `min(floor(log2(max(degree, 1))), groups - 1)`, uint8.

    Example:
        >>> degree_groups(torch.tensor([0, 1, 2, 3, 4, 1000]), 8).tolist()
        [0, 0, 1, 1, 2, 7]
    """
    if not 1 <= groups <= 32:
        raise ValueError(f"groups={groups!r}: must be from 1 to 32")
    bounds = torch.tensor([1 << power for power in range(1, groups)], dtype=degree.dtype, device=degree.device)
    return torch.bucketize(degree, bounds, right=True).to(torch.uint8)


def nearest_seen(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ranges `[groups]`, where those that never saw a value (lo > hi) are as the nearest that did.

    Of two that are equally near, it is the lower one; where none did, all stay as they are.

    Example:
        >>> inf = torch.inf
        >>> nearest_seen(torch.tensor([inf, -1.0, inf, -3.0]), torch.tensor([-inf, 1.0, -inf, 3.0]))
        (tensor([-1., -1., -1., -3.]), tensor([1., 1., 1., 3.]))
    """
    place = torch.arange(lo.numel(), device=lo.device)
    apart = (place[:, None] - place).abs() + lo.numel() * (lo > hi)
    nearest = apart.argmin(1)
    return lo[nearest], hi[nearest]


def protection_probability(
    index: Sequence[Tensor],
    num_nodes: int,
    p_min: float,
    p_max: float,
    batch: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Returns the probability with which each node is protected: `p_min + (p_max - p_min) F(d)`.

    `F(d)` is the share of nodes of the same graph that have in-degree `d` or less. Where no edge reaches any
    node, there are no aggregation errors to protect from, and every probability is `p_min`.

    Args:
        index: Per edge type the target node of every edge, int64 `[num_edges]`; in-degrees are summed.
        num_nodes: How many nodes there are; may be 0.
        p_min, p_max: The bounds, `0 <= p_min <= p_max <= 1`.
        batch: int64 `[num_nodes]`, the graph that each node belongs to, in any order; `None`: there is one graph.
        device: Where the result lies; `None`: where the first index, else `batch` does, else on the CPU.

    Returns:
        float32 `[num_nodes]`.

    Raises:
        ValueError: If `batch` does not fit.

    Source: Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021, section 3, and its official
    implementation.

    Example:
        >>> probability = protection_probability([torch.tensor([1, 2, 2])], num_nodes=4, p_min=0.0, p_max=0.1)
        >>> [round(p, 3) for p in probability.tolist()]
        [0.05, 0.075, 0.1, 0.05]
    """
    if batch is not None and batch.shape != (num_nodes,):
        raise InputShapeError(
            f"batch must have one entry per node: got shape {tuple(batch.shape)} for {num_nodes} nodes"
        )
    if device is None:
        device = index[0].device if index else batch.device if batch is not None else None
    if num_nodes == 0 or sum(targets.numel() for targets in index) == 0:
        return torch.full((num_nodes,), p_min, dtype=torch.float32, device=device)
    return _by_degree(in_degree(index, num_nodes, device), p_min, p_max, batch)


def probability_in_parts(
    parts: Iterable[Any], num_nodes: int, p_min: float, p_max: float, size: int = 1 << 22
) -> Tensor:
    """Returns the same for one graph whose edges come in parts: of each one piece after the other is in memory.

    Args:
        parts: The target node of each edge, integers `[edges]` each: tensors, or arrays, of a mapped file too.
        size: Edges that are in memory at once.

    Raises:
        InputIndexError: For an edge that ends at no node.
    """
    degree = torch.zeros(num_nodes, dtype=torch.int64)
    for number, targets in enumerate(parts):
        for begin in range(0, len(targets), size):
            piece = targets[begin : begin + size]
            # Copied: numpy maps files read-only, which tensors do not know.
            piece = piece.long() if isinstance(piece, Tensor) else torch.from_numpy(np.array(piece, np.int64))
            low, high = (int(end) for end in piece.aminmax())
            if low < 0 or high >= num_nodes:
                beyond = low if low < 0 else high
                edge = begin + int((piece == beyond).nonzero()[0])
                raise InputIndexError(f"part {number}, edge {edge}: it ends at node {beyond} of {num_nodes}")
            degree.scatter_add_(0, piece, torch.ones_like(piece))
    if not degree.any():
        return torch.full((num_nodes,), p_min)
    return _by_degree(degree, p_min, p_max, None)


def _by_degree(degree: Tensor, p_min: float, p_max: float, batch: Tensor | None) -> Tensor:
    graph = torch.zeros_like(degree) if batch is None else batch
    # Counting reads sizes back, which neither an accelerator nor compiled code is to wait for.
    at_most, size = (_counted if nobody_looks((degree, graph)) else _sorted)(degree, graph)
    # In double precision, rounded once: the node with the highest in-degree has exactly p_max.
    return (p_min + (p_max - p_min) * (at_most.double() / size)).float()


def _counted(degree: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
    """Of each node, how many nodes of its graph have its degree or less, and how many there are; by counting."""
    graphs, width = int(graph.max()) + 1, int(degree.max()) + 1
    if graphs * width > _CELLS + 8 * degree.numel() or int(graph.min()) < 0:
        return _sorted(degree, graph)
    keys = graph * width + degree
    counts = torch.zeros(graphs * width, dtype=torch.int64).scatter_add_(0, keys, torch.ones_like(keys))
    at_most = counts.view(graphs, width).cumsum(1)
    return at_most.view(-1)[keys], at_most[:, -1][graph]


def _sorted(degree: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the same by sorting: nothing is read back from the device."""
    # One sort serves all graphs: keys order nodes by graph, then by degree. No degree reaches `width`.
    width = degree.max() + 1
    first_key = graph * width
    keys = (first_key + degree).sort().values
    start = torch.searchsorted(keys, first_key)
    size = torch.searchsorted(keys, first_key + width) - start
    return torch.searchsorted(keys, first_key + degree, right=True) - start, size

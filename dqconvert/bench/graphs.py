"""Graphs with hubs, for benchmarks: as fast to make as to train on, and of exactly the size asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from dqconvert.errors import UsageError

_Draw: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]

_DENSEST = 1 / 8
"""The largest share of all pairs of nodes that may be edges: with hubs, drawing distinct ones takes ever longer."""


def zipf_edges(num_nodes: int, num_edges: int, *, exponent: float = 0.8, seed: int = 0) -> Tensor:
    """Draws directed edges, both ends independently, node ``k`` in proportion to ``k ** -exponent``.

    In- and out-degrees are heavy-tailed and a node that has many of one has many of the other. The numbers of the nodes
    are shuffled, so that hubs lie anywhere.

    Args:
        seed: Of the draws; the global random state is left alone.

    Returns:
        ``edge_index``, int64 ``[2, num_edges]``: distinct, without self-loops, sorted by source, as PyG's datasets are.

    Raises:
        CommandError: If so few nodes cannot have so many edges.

    Example:
        >>> edge_index = zipf_edges(1000, 5000)
        >>> edge_index.shape, bool(edge_index[1].bincount().max() > 50)
        (torch.Size([2, 5000]), True)
    """
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([num_nodes])
    cdf = _zipf_cdf(sizes, exponent, rng)
    one = torch.zeros(1, dtype=torch.int64)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        graph = one.expand(count)
        return _by_weight(cdf, graph, sizes, rng), _by_weight(cdf, graph, sizes, rng)

    return _distinct(draw, num_nodes, num_edges, num_nodes**2, rng)


def zipf_batch(sizes: Tensor, num_edges: int, *, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """Draws undirected edges within the graphs of a batch, with hubs in each: threads of a forum, citations.

    One end of an edge is any node (each in turn, so that few have no edge), the other is drawn in the same graph as in
    :func:`zipf_edges`.

    Args:
        sizes: Number of nodes of each graph, int64 ``[num_graphs]``.
        num_edges: How many edges in all, each direction counted; even.

    Returns:
        ``edge_index``, int64 ``[2, num_edges]``: both directions of each edge, distinct, without self-loops, sorted by
        source.

    Raises:
        CommandError: If so few nodes cannot have so many edges.

    Example:
        >>> edge_index = zipf_batch(torch.tensor([30, 20]), 100)
        >>> edge_index.shape, bool(((edge_index < 30).sum(dim=0) != 1).all())
        (torch.Size([2, 100]), True)
    """
    rng = torch.Generator().manual_seed(seed)
    cdf = _zipf_cdf(sizes, exponent, rng)
    graph_of = torch.arange(sizes.numel()).repeat_interleave(sizes)
    num_nodes = graph_of.numel()

    def draw(count: int) -> tuple[Tensor, Tensor]:
        turns = torch.cat([torch.randperm(num_nodes, generator=rng) for _ in range(-(-count // num_nodes))])
        one = turns[:count]
        other = _by_weight(cdf, graph_of[one], sizes, rng)
        return torch.minimum(one, other), torch.maximum(one, other)

    pairs = _distinct(draw, num_nodes, num_edges // 2, int((sizes**2).sum()) // 2, rng)
    both = torch.cat([pairs, pairs.flip(0)], dim=1)
    return both[:, (both[0] * num_nodes + both[1]).argsort()]


def graph_sizes(num_graphs: int, num_nodes: int, *, smallest: int = 8, seed: int = 0) -> Tensor:
    """Draws the sizes of a batch's graphs, log-normal as those of many collections, with the sum ``num_nodes``."""
    rng = torch.Generator().manual_seed(seed)
    spare = num_nodes - smallest * num_graphs
    if spare < 0:
        raise UsageError(f"{num_nodes} nodes are too few for {num_graphs} graphs: pass a larger --scale.")
    weight = torch.randn(num_graphs, generator=rng, dtype=torch.float64).exp()
    ends = (weight.cumsum(0) / weight.sum() * spare).round().long()
    ends[-1] = spare
    return smallest + ends.diff(prepend=torch.zeros(1, dtype=torch.int64))


def _zipf_cdf(sizes: Tensor, exponent: float, rng: torch.Generator) -> Tensor:
    """Returns cumulative weights of all nodes, graph ``g``'s between ``g`` and ``g + 1``; float64 ``[num_nodes]``."""
    parts = []
    for graph, size in enumerate(sizes.tolist()):
        rank = torch.randperm(size, generator=rng) + 1
        weight = rank.double().pow(-exponent)
        parts.append(graph + weight.cumsum(0) / weight.sum())
    return torch.cat(parts)


def _by_weight(cdf: Tensor, graph: Tensor, sizes: Tensor, rng: torch.Generator) -> Tensor:
    """Draws a node of each of the given graphs."""
    found = torch.searchsorted(cdf, graph + torch.rand(graph.numel(), generator=rng, dtype=torch.float64))
    end = sizes.cumsum(0)
    # Rounding of the cumulative weights may lead past the last node of a graph.
    return torch.minimum(torch.maximum(found, (end - sizes)[graph]), end[graph] - 1)


def _distinct(draw: _Draw, num_nodes: int, count: int, possible: int, rng: torch.Generator) -> Tensor:
    """Draws pairs until ``count`` of them are distinct and join two nodes; ``[2, count]``, sorted."""
    if count > possible * _DENSEST:
        raise UsageError(f"{num_nodes} nodes are too few for so many edges: pass a larger --scale or fewer --edges.")
    keys = torch.empty(0, dtype=torch.int64)
    while (missing := count - keys.numel()) > 0:
        one, other = draw(missing + missing // 8 + 1)
        new = (one * num_nodes + other)[one != other].unique()
        new = new[~torch.isin(new, keys)]
        new = new[torch.randperm(new.numel(), generator=rng)[:missing]]
        keys = torch.cat([keys, new])
    keys = keys.sort().values
    return torch.stack([keys // num_nodes, keys % num_nodes])

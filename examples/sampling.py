"""Neighbourhoods sampled in plain torch, in batches laid out as PyG's NeighborLoader lays them out.

For machines without pyg-lib and torch-sparse, one of which NeighborLoader needs; it knows nothing of dqconvert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE


class NeighborSamples:
    """Yields a batch for each few of the input nodes, in order: these, and sampled neighbourhoods of theirs.

    A batch is a ``Data`` of ``x``, ``y`` and every other node or edge attribute of `data`, cut to what was sampled, and

    - ``n_id``, ``e_id``: the nodes and edges in the whole graph; input nodes first, then those found in each hop;
    - ``edge_index``: from sampled neighbour to the node it was sampled for, by place in ``n_id``, hop by hop;
    - ``input_id``, ``batch_size``: which input nodes, by place, and how many;
    - ``num_sampled_nodes``, ``num_sampled_edges``: how many were found in each hop, for ``trim_to_layer``.

    Draws follow ``torch.manual_seed``.

    Args:
        data: The whole graph.
        num_neighbors: For each hop, of how many in-edges of a node to sample, without replacement; -1: of all.
        input_nodes: int64 ``[number]``.
        batch_size: How many of these make a batch.
    """

    def __init__(self, data: Data, num_neighbors: Sequence[int], input_nodes: Tensor, batch_size: int) -> None:
        self.data, self.num_neighbors, self.input_nodes = data, num_neighbors, input_nodes
        self.batch_size = batch_size
        self._by_target = data.edge_index[1].argsort(stable=True)
        degrees = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
        self._begins = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        self._place = torch.full((data.num_nodes,), -1)

    def __len__(self) -> int:
        return -(-len(self.input_nodes) // self.batch_size)

    def __iter__(self) -> Iterator[Data]:
        for input_id in torch.arange(len(self.input_nodes)).split(self.batch_size):
            yield self(input_id)

    def __call__(self, input_id: Tensor) -> Data:
        """Returns the batch of these input nodes, by place, as NeighborLoader does."""
        seeds = self.input_nodes[input_id]
        hops, edges = [seeds], []
        self._place[seeds] = torch.arange(len(seeds))
        for number in self.num_neighbors:
            found = self._in_edges(hops[-1], number)
            new = _in_order_met(self.data.edge_index[0][found])
            new = new[self._place[new] < 0]
            self._place[new] = sum(map(len, hops)) + torch.arange(len(new))
            hops.append(new)
            edges.append(found)
        n_id, e_id = torch.cat(hops), torch.cat(edges)
        batch = Data(edge_index=self._place[self.data.edge_index[:, e_id]], num_nodes=len(n_id), n_id=n_id, e_id=e_id)
        for key, value in self.data:
            if key != "edge_index" and self.data.is_node_attr(key):
                batch[key] = value[n_id]
            elif key != "edge_index" and self.data.is_edge_attr(key):
                batch[key] = value[e_id]
        self._place[n_id] = -1
        batch.input_id, batch.batch_size = input_id, len(seeds)
        batch.num_sampled_nodes, batch.num_sampled_edges = [*map(len, hops)], [*map(len, edges)]
        return batch

    def _in_edges(self, nodes: Tensor, number: int) -> Tensor:
        """Returns edges that end at these nodes, of each up to so many, drawn."""
        begins, counts = self._begins[nodes], self._begins[nodes + 1] - self._begins[nodes]
        owner = torch.repeat_interleave(counts)
        within = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        if number >= 0:
            # Sorted by owner, and in any order within one.
            order = (owner + torch.rand(len(owner), dtype=torch.float64)).argsort()
            chosen = order[within < number]
            owner, within = owner[chosen], within[chosen]
        return self._by_target[begins[owner] + within]


def _in_order_met(nodes: Tensor) -> Tensor:
    """Returns each node once, by when it occurs first."""
    found, which = nodes.unique(return_inverse=True)
    first = which.new_full((len(found),), len(nodes)).scatter_reduce(0, which, torch.arange(len(nodes)), "amin")
    return found[first.argsort()]


def link_batch(loader: NeighborLoader | NeighborSamples, links: Tensor) -> Data:
    """Returns a batch around the ends of some links, laid out as LinkNeighborLoader's.

    Args:
        loader: Whose input nodes are all nodes.
        links: int64 ``[2, links]``, in the whole graph; ``edge_label_index`` of the batch has their places in it.
    """
    ends, places = links.unique(return_inverse=True)
    batch = loader(ends)
    batch.edge_label_index = places
    return batch


def loader_of(
    data: Data, num_neighbors: Sequence[int], input_nodes: Tensor, batch_size: int
) -> tuple[NeighborLoader | NeighborSamples, str]:
    """Returns PyG's loader where it can sample, else the one above; and which of them, in words."""
    if WITH_PYG_LIB or WITH_TORCH_SPARSE:
        loader = NeighborLoader(data, list(num_neighbors), input_nodes=input_nodes, batch_size=batch_size)
        return loader, "sampled by NeighborLoader"
    return (
        NeighborSamples(data, num_neighbors, input_nodes, batch_size),
        "sampled by examples/sampling.py: NeighborLoader needs pyg-lib or torch-sparse, and neither is installed",
    )

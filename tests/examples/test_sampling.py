"""``examples/sampling.py``: batches are those that NeighborLoader describes."""

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import k_hop_subgraph

from sampling import NeighborSamples


def whole():
    draw = torch.Generator().manual_seed(3)
    edges = torch.randint(30, (2, 150), generator=draw)  # duplicates and self-loops among them
    edges[1, edges[1] == 7] = 8  # node 7 has no in-edge
    return Data(x=torch.arange(30.0)[:, None], edge_index=edges, edge_attr=torch.arange(150.0), y=torch.arange(30))


INPUT = torch.tensor([7, 4, 11, 20, 0])


@pytest.mark.parametrize("numbers", [(3, 2), (-1, 1), (0, 2), (100, 100)])
def test_a_batch_is_a_part_of_the_graph(numbers):
    data = whole()
    batches = list(NeighborSamples(data, numbers, INPUT, 2))
    assert [batch.input_id.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    for batch in batches:
        assert batch.n_id[: batch.batch_size].tolist() == INPUT[batch.input_id].tolist()
        assert len(batch.n_id.unique()) == batch.num_nodes == sum(batch.num_sampled_nodes)
        assert len(batch.e_id.unique()) == batch.num_edges == sum(batch.num_sampled_edges)
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert batch.x[:, 0].tolist() == batch.y.tolist() == batch.n_id.tolist()
        assert batch.edge_attr.tolist() == batch.e_id.tolist()


@pytest.mark.parametrize("numbers", [(3, 2), (-1, 1), (0, 2), (100, 100)])
def test_each_hop_samples_for_the_nodes_of_the_one_before(numbers):
    data = whole()
    degrees = torch.bincount(data.edge_index[1], minlength=30)
    for batch in NeighborSamples(data, numbers, INPUT, 2):
        nodes, edges = batch.n_id.split(batch.num_sampled_nodes), batch.edge_index.split(batch.num_sampled_edges, dim=1)
        for hop, number in enumerate(numbers):
            got = torch.bincount(batch.n_id[edges[hop][1]], minlength=30)
            wanted = degrees if number < 0 else degrees.clamp(max=number)
            assert got.sum() == got[nodes[hop]].sum()
            assert got[nodes[hop]].tolist() == wanted[nodes[hop]].tolist()
            seen = sum(batch.num_sampled_nodes[: hop + 1])
            met = [one for one in dict.fromkeys(edges[hop][0].tolist()) if one >= seen]
            assert met == list(range(seen, seen + len(nodes[hop + 1])))  # new ones, in the order met


def test_all_neighbours_are_the_whole_neighbourhood():
    data = whole()
    (batch,) = NeighborSamples(data, (-1, -1), INPUT, 5)
    assert sorted(batch.n_id.tolist()) == k_hop_subgraph(INPUT, 2, data.edge_index)[0].tolist()


def test_every_in_edge_is_drawn_as_often():
    data = Data(edge_index=torch.stack([torch.arange(1, 6), torch.zeros(5, dtype=torch.long)]), num_nodes=6)
    loader = NeighborSamples(data, (2,), torch.tensor([0]), 1)
    counts = torch.bincount(torch.cat([batch.e_id for _ in range(500) for batch in loader]), minlength=5)
    assert counts.sum() == 1000
    assert ((counts - 200).abs() < 55).all()  # five standard deviations


def test_draws_follow_the_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        return [batch.e_id.tolist() for batch in NeighborSamples(whole(), (2, 2), INPUT, 2)]

    assert drawn(1) == drawn(1) != drawn(2)

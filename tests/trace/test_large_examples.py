"""A large example is traced on a part of it, and the result is that of the whole."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_torch_csr_tensor

import dqconvert
from dqconvert.trace.grow import LARGE, shrink
from dqconvert.trace.inputs import bind

NODES, EDGES = 3 * LARGE, 5 * LARGE
PART = "traced on a part of the example inputs"


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    return torch.randn(NODES, 8), torch.randint(NODES, (2, EDGES))


def traced_on_a_part(report):
    return any(PART in remark for remark in report.remarks)


def same_outputs(model, module, *inputs):
    """Without quantizers the prepared module is the float model, at any size."""
    module.apply(dqconvert.disable_fake_quant)
    module.apply(dqconvert.disable_observer)
    with torch.no_grad():
        return torch.equal(module.eval()(*inputs), model.eval()(*inputs))


@pytest.mark.parametrize("layer", [pyg.GCN, pyg.GIN, pyg.GraphSAGE])
def test_the_graph_is_that_of_the_whole(large, layer):
    model = layer(8, 8, num_layers=2)
    module, report = dqconvert.prepare(model, "int8-dq", large)
    assert traced_on_a_part(report)
    assert same_outputs(model, module, *large)
    whole = dqconvert.prepare(model, "int8-dq").module  # on inputs made up
    assert [(node.op, str(node.target)) for node in module.graph.nodes] == [
        (node.op, str(node.target)) for node in whole.graph.nodes
    ]


def test_a_small_example_is_taken_whole(large):
    x, edge_index = large
    inside = (edge_index < 3000).all(dim=0)
    _, report = dqconvert.prepare(pyg.GCN(8, 8, 2), "int8-dq", (x[:3000], edge_index[:, inside]))
    assert not traced_on_a_part(report)


def test_a_csr_adjacency(large):
    x, edge_index = large
    adj_t = to_torch_csr_tensor(edge_index.flip(0), size=(NODES, NODES))
    model = pyg.SAGEConv(8, 8)
    module, report = dqconvert.prepare(model, "int8-dq", (x, adj_t))
    assert traced_on_a_part(report)
    module.apply(dqconvert.disable_fake_quant)
    module.apply(dqconvert.disable_observer)
    with torch.no_grad():  # messages are added up one by one: in another order than torch's product does
        torch.testing.assert_close(module.eval()(x, adj_t), model.eval()(x, adj_t))


class BySize(nn.Module):
    """Goes another way on large graphs."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = pyg.GCNConv(8, 8), pyg.SAGEConv(8, 8)

    def forward(self, x, edge_index):
        return self.other(x, edge_index) if x.size(0) > NODES // 2 else self.conv(x, edge_index)


def test_a_model_that_branches_on_its_size_goes_the_way_of_the_whole(large):
    model = BySize()
    module, report = dqconvert.prepare(model, "int8-dq", large)
    assert not traced_on_a_part(report)
    assert same_outputs(model, module, *large)


class OfSoMany(nn.Module):
    """Knows how many nodes there are."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(NODES, 8))
        self.conv = pyg.GCNConv(8, 8)

    def forward(self, x, edge_index):
        return self.conv(x + self.own, edge_index)


def test_a_model_of_a_fixed_number_of_nodes_is_traced_on_the_whole(large):
    model = OfSoMany()
    module, report = dqconvert.prepare(model, "int8-dq", large)
    assert not traced_on_a_part(report)
    assert same_outputs(model, module, *large)


def test_the_models_own_error_comes_first(large):
    x, edge_index = large
    with pytest.raises(dqconvert.TraceError, match="rejects the example_inputs"):
        dqconvert.prepare(pyg.GCN(9, 8, 2), "int8-dq", (x, edge_index))


# -- what the part is ----------------------------------------------------------------------------------------------


class Takes(nn.Module):
    """Any of what models take."""

    def forward(self, data=None, x=None, edge_index=None, edge_attr=None, x_dict=None, edge_index_dict=None):
        return data


def part_of(**inputs):
    part = shrink(bind(Takes(), "forward", inputs))
    return None if part is None else {name: part.arguments[name] for name in inputs}


def test_edges_and_what_belongs_to_them_stay_together(large):
    x, edge_index = large
    edge_attr = edge_index.t().float()
    part = part_of(x=x, edge_index=edge_index, edge_attr=edge_attr)
    nodes = part["x"].size(0)
    assert 0 < nodes < LARGE
    assert torch.equal(part["x"], x[:nodes])
    assert torch.equal(part["edge_attr"], part["edge_index"].t().float())
    assert part["edge_index"].max() < nodes
    assert part["edge_index"].size(1) == int((edge_index < nodes).all(dim=0).sum()) > 64


def test_graphs_of_a_batch_stay_whole():
    torch.manual_seed(0)
    graphs = [
        Data(torch.randn(n, 4), torch.randint(n, (2, 3 * n)), u=torch.tensor([float(n)]))
        for n in torch.randint(20, 200, (300,)).tolist()
    ]
    batch = Batch.from_data_list(graphs)
    part = part_of(data=batch)["data"]
    count = int(part.batch.max()) + 1
    assert 1 < count < 300
    assert part.num_graphs == count
    assert torch.equal(part.u, batch.u[:count])
    assert torch.equal(part.ptr, batch.ptr[: count + 1])
    assert part.x.size(0) == part.batch.numel() == sum(graph.num_nodes for graph in graphs[:count]) == part.ptr[-1]
    assert part.edge_index.size(1) == sum(graph.num_edges for graph in graphs[:count])


def test_every_node_type_is_cut():
    torch.manual_seed(0)
    x_dict = {"a": torch.randn(NODES, 4), "b": torch.randn(100, 4)}
    ends = torch.stack([torch.randint(NODES, (EDGES,)), torch.randint(100, (EDGES,))])
    part = part_of(x_dict=x_dict, edge_index_dict={("a", "to", "b"): ends})
    nodes = part["x_dict"]["a"].size(0)
    assert nodes < LARGE
    assert part["x_dict"]["b"].size(0) == 100
    index = part["edge_index_dict"]["a", "to", "b"]
    assert torch.equal(index, ends[:, ends[0] < nodes])


@pytest.mark.parametrize(
    "batch", [torch.arange(NODES) % 5, torch.zeros(NODES, dtype=torch.long)], ids=["in no order", "one graph"]
)
def test_batches_that_cannot_be_cut(large, batch):
    x, edge_index = large
    assert part_of(data=Data(x, edge_index, batch=batch)) is None


def test_rows_without_edges_are_cut_and_edges_without_rows_are_not():
    assert part_of(x=torch.randn(NODES, 8))["x"].size(0) < LARGE
    assert part_of(edge_index=torch.randint(NODES, (2, EDGES))) is None


class PooledByCount(nn.Module):
    """Asks the batch how many graphs there are."""

    def __init__(self):
        super().__init__()
        self.conv = pyg.GCNConv(4, 8)

    def forward(self, data):
        return pyg.global_add_pool(self.conv(data.x, data.edge_index), data.batch, size=data.num_graphs)


def test_a_batch_that_grows_counts_its_graphs():
    torch.manual_seed(0)
    batch = Batch.from_data_list([Data(torch.randn(6, 4), torch.randint(6, (2, 9))) for _ in range(5)])
    model = PooledByCount()
    module, report = dqconvert.prepare(model, "int8-dq", batch)
    assert not any("no second input" in remark for remark in report.remarks)
    other = Batch.from_data_list([Data(torch.randn(4, 4), torch.randint(4, (2, 7))) for _ in range(8)])
    assert same_outputs(model, module, other)

"""Where scales per group of in-degrees are placed, and which edges and rows the groups come from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GAT, GCN, GIN, GCNConv, GraphSAGE, SAGEConv, SimpleConv, TopKPooling, global_mean_pool

import dqconvert
from dqconvert import Protect, QConfig, QSpec
from dqconvert.kernels import degree_groups, in_degree


def config(range_="minmax", bits=8, **fields):
    spec = QSpec(bits=bits, granularity="degree", range=range_)
    return QConfig(weight=QSpec(bits=bits), activation=spec, message=spec, aggregate=spec, **fields)


def graph(nodes=40, edges=200, seed=0):
    torch.manual_seed(seed)
    targets = (torch.rand(edges) ** 3 * nodes).long()
    return torch.randn(nodes, 6), torch.stack([torch.randint(0, nodes, (edges,)), targets])


def grouped(module):
    return {path: quantizer.grouped for path, quantizer in module.quantizers()}


def scheme(report, path):
    return next(entry.scheme for entry in report.entries if entry.path == path)


@pytest.mark.parametrize("model", [GCN, GIN, GraphSAGE, GAT])
def test_all_but_weights_and_plain_sums_have_a_scale_per_group(model):
    module, report = dqconvert.prepare(model(6, 8, 2), config(), graph())
    for entry in report.entries:
        plain = entry.role == "message" and model in (GIN, GraphSAGE)
        assert ("in-degree group (8)" in entry.scheme) == (entry.role != "weight" and not plain)
        if plain:
            assert "per tensor (a plain sum of what nodes send, whose receivers differ)" in entry.scheme
            assert "in-degree" not in str(module.get_submodule(entry.path))
        assert grouped(module)[entry.path] == ("in-degree" in entry.scheme)


def test_rows_have_the_group_of_the_given_edges_before_self_loops():
    x, edge_index = graph()
    module, _ = dqconvert.prepare(GCN(6, 8, 1), config(), (x, edge_index))
    module(x, edge_index)
    groups = degree_groups(in_degree([edge_index[1]], len(x)), 8)
    observed = module.get_submodule("convs.0.lin.quant.input")
    for group in range(8):
        rows = x[groups == group]
        wanted = (rows.min(), rows.max()) if len(rows) else (torch.inf, -torch.inf)
        assert (observed.min_val[group], observed.max_val[group]) == wanted
    message = module.get_submodule("convs.0.quant.message")
    assert torch.equal(message.min_val <= message.max_val, observed.min_val <= observed.max_val)


def test_edges_have_the_group_of_their_receiver_whichever_way_they_flow():
    class Weighted(GCNConv):
        def message(self, x_j, edge_weight):
            return edge_weight.view(-1, 1) * x_j

    x, edge_index = graph()
    for flow, row in (("source_to_target", 1), ("target_to_source", 0)):
        layer = Weighted(6, 4, normalize=False, add_self_loops=False, flow=flow)
        weight = torch.rand(edge_index.size(1))
        module, _ = dqconvert.prepare(layer, config(), (x, edge_index, weight))
        module(x, edge_index, weight)
        groups = degree_groups(in_degree([edge_index[row]], len(x)), 8)[edge_index[row]]
        observed = module.get_submodule("quant.edge_weight").max_val
        for group in groups.unique().tolist():
            assert observed[group] == weight[groups == group].max()


def test_batches_count_within_their_graphs_and_unseen_graphs_by_their_own_degrees():
    one, two = (Data(x=x, edge_index=edges) for x, edges in (graph(seed=1), graph(30, 60, seed=2)))
    module, _ = dqconvert.prepare(GIN(6, 8, 2), config(), (one.x, one.edge_index))
    both = Batch.from_data_list([one, two])
    module(both.x, both.edge_index)
    module.eval()
    out = module(both.x, both.edge_index)
    assert torch.allclose(out[:40], module(one.x, one.edge_index), atol=1e-5)
    assert torch.allclose(out[40:], module(two.x, two.edge_index), atol=1e-5)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.pool, self.second = SAGEConv(6, 8), TopKPooling(8, ratio=0.5), SAGEConv(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        x, edge_index, _, batch, _, _ = self.pool(self.first(x, edge_index).relu(), edge_index, None, batch)
        return self.last(global_mean_pool(self.second(x, edge_index), batch))


def test_graph_level_values_stay_per_tensor_and_the_report_says_so():
    x, edge_index = graph()
    module, report = dqconvert.prepare(Pooled(), config(), (x, edge_index, torch.zeros(40, dtype=torch.long)))
    assert "per tensor (its rows are neither nodes nor edges)" in scheme(report, "last.quant.input")
    assert grouped(module)["second.quant.aggregate"]  # rows that survive a pooling keep their group
    module(x, edge_index, torch.zeros(40, dtype=torch.long)).sum().backward()


class TwoKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lin = SAGEConv((6, 6), 8), nn.Linear(6, 8)

    def forward(self, users, items, edge_index):
        return self.conv((users, items), edge_index), self.lin(users)


def test_nodes_that_no_edge_type_reaches_stay_per_tensor():
    users, edge_index = graph()
    args = users, torch.randn(40, 6), edge_index
    module, report = dqconvert.prepare(TwoKinds(), config(), (users, torch.randn(23, 6), edge_index % 23))
    assert "no edges are known that reach its nodes" in scheme(report, "lin.quant.input")
    assert grouped(module)["conv.quant.aggregate"]
    module(*args)


@pytest.mark.sample(5)
@pytest.mark.parametrize("model", [GCN, GIN, GAT])
@pytest.mark.parametrize("range_", ["percentile", "mse"])
def test_fused_or_not_and_copied_or_not_all_is_the_same(model, range_):
    x, edge_index = graph()
    float_model = model(6, 8, 2)
    options = config(range_, 4, protect=Protect(p_max=0.4))
    outputs = []
    for fuse in (True, False):
        module, _ = dqconvert.prepare(float_model, options, (x, edge_index), fuse=fuse)
        torch.manual_seed(3)
        for _ in range(2):
            out = module(x, edge_index)
        out.sum().backward()
        state = {name: value.clone() for name, value in module.state_dict().items()}
        grads = [parameter.grad for parameter in module.parameters()]
        outputs.append((out, state, grads, copy.deepcopy(module).eval()(x, edge_index)))
    (out, state, grads, evaluated), (other, state_2, grads_2, evaluated_2) = outputs
    torch.testing.assert_close(out, other, rtol=1e-5, atol=1e-5)  # sums differ in the last bits
    torch.testing.assert_close(evaluated, evaluated_2, rtol=1e-5, atol=1e-5)
    assert state.keys() == state_2.keys()
    assert all(torch.equal(state[name], state_2[name]) for name in state)
    for one, two in zip(grads, grads_2, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_files_give_the_same_module(tmp_path):
    x, edge_index = graph()
    module, _ = dqconvert.prepare(GCN(6, 8, 2), config(), (x, edge_index))
    dqconvert.calibrate(module, (x, edge_index))
    dqconvert.save(module, tmp_path / "model.dq")
    again = dqconvert.load(tmp_path / "model.dq", model=GCN(6, 8, 2))
    assert torch.equal(again.eval()(x, edge_index), module.eval()(x, edge_index))


def test_a_part_that_knows_no_edges_says_so():
    x, edge_index = graph()
    module, _ = dqconvert.prepare(GCN(6, 8, 1), config(), (x, edge_index))
    module(x, edge_index)
    with pytest.raises(dqconvert.ConfigError, match=r"a range for each group of in-degrees"):
        module.convs[0].lin(x)


def test_simple_sums_alone_are_per_tensor():
    x, edge_index = graph()
    _, report = dqconvert.prepare(SimpleConv(aggr="sum"), config(), (x, edge_index))
    assert [("in-degree" in entry.scheme, entry.role) for entry in report.entries] == [
        (False, "message"),
        (True, "aggregate"),
    ]

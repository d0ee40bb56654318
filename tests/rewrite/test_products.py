"""What nothing quantizes over a sparse adjacency is computed as PyG computes it: as one product, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import (
    APPNP,
    EGConv,
    GCN2Conv,
    GCNConv,
    GraphConv,
    MessagePassing,
    SAGEConv,
    SGConv,
    SSGConv,
    TAGConv,
)
from torch_geometric.utils import spmm, to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

import dqconvert
from checks import assert_same, evaluation, normal, step
from dqconvert import QConfig, QSpec, Rule
from dqconvert.errors import GuardError

N = 40
"""With more than ten edges a row, the order of a sum shows in the last bits."""


def edges(nodes=N, number=700):
    index = torch.randint(nodes, (2, number), generator=torch.Generator().manual_seed(nodes)).unique(dim=1)
    return index[:, index[1].argsort(stable=True)].contiguous()


def adjacency(to_sparse=to_torch_csr_tensor, nodes=N, weighted=True):
    index = edges(nodes)
    values = torch.rand(index.size(1), generator=torch.Generator().manual_seed(2)) + 0.5
    return to_sparse(index.flip(0), values if weighted else None, size=(nodes, nodes))


class Initial(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.conv = nn.Linear(8, 8), GCN2Conv(8, 0.1)

    def forward(self, x, adj_t):
        return self.conv(self.lin(x), x, adj_t)


class Propagated(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.conv = nn.Linear(8, 4), APPNP(3, 0.1)

    def forward(self, x, adj_t):
        return self.conv(self.lin(x), adj_t)


LAYERS = {
    "GCNConv": lambda: GCNConv(8, 4),
    "GraphConv": lambda: GraphConv(8, 4),
    "SGConv": lambda: SGConv(8, 4, K=2),
    "SSGConv": lambda: SSGConv(8, 4, 0.1, K=2),
    "TAGConv": lambda: TAGConv(8, 4, K=2),
    "APPNP": Propagated,
    "GCN2Conv": Initial,
    "SAGEConv": lambda: SAGEConv(8, 4),
    "EGConv": lambda: EGConv(8, 4, num_heads=2, aggregators=["symnorm"]),
}


IN_COORDINATES = ("GraphConv", "APPNP", "SAGEConv")


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "to_sparse"),
    [*((name, to_torch_csr_tensor) for name in LAYERS), *((name, to_torch_coo_tensor) for name in IN_COORDINATES)],
)
def test_what_is_left_in_float_is_the_float_models(name, to_sparse):
    torch.manual_seed(0)
    model = LAYERS[name]()
    module, _ = dqconvert.prepare(model, QConfig(), (normal(N, 8), adjacency(to_sparse)))
    inputs = normal(55, 8), adjacency(to_sparse, 55)
    assert_same(step(copy.deepcopy(module), inputs), step(copy.deepcopy(model), inputs))
    inputs = normal(N, 8), adjacency(to_sparse)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))


def test_compressed_columns_are_multiplied_as_they_are():
    model, inputs = SAGEConv(8, 4), (normal(N, 8), adjacency(to_torch_csc_tensor))
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(step(copy.deepcopy(module), inputs), step(copy.deepcopy(model), inputs))


def test_edges_in_order():
    """GraphConv multiplies by a sorted EdgeIndex, too."""
    model, weight = GraphConv(8, 4), torch.rand(edges().size(1))
    inputs = normal(N, 8), EdgeIndex(edges(), sparse_size=(N, N), sort_order="col"), weight
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(step(copy.deepcopy(module), inputs), step(model, inputs))
    with pytest.raises(GuardError, match="EdgeIndex sorted by column"):
        module(inputs[0], edges(), weight)


@pytest.mark.parametrize(("layer", "sorted_by"), [(GraphConv, "col"), (SAGEConv, None)])
def test_edges_that_know_how_many_targets_there_are(layer, sorted_by):
    """With (x, None) nothing else says how many rows the result has: here more than any edge ends at, and fewer than
    there are sources."""
    model = layer((8, 8), 4) if layer is GraphConv else layer(8, 4, root_weight=False)
    index = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])
    inputs = (normal(6, 8), None), EdgeIndex(index, sparse_size=(6, 4), sort_order=sorted_by)
    module, report = dqconvert.prepare(model, QConfig(), inputs)
    assert not [remark for remark in report.remarks if "no second input" in remark]
    assert module(*inputs).shape == (4, 4)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))
    wider = (normal(9, 8), None), EdgeIndex(index, sparse_size=(9, 5), sort_order=sorted_by)
    assert_same(evaluation(module, wider), evaluation(model, wider))


# -- where something is quantized ----------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(8, 8), SAGEConv(8, 4)

    def forward(self, x, adj_t):
        return self.conv2(self.conv1(x, adj_t).relu(), adj_t)


def products(module):
    return sum(node.target is spmm for node in module.graph.nodes)


ONE = QSpec(range="minmax")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QConfig(), 2),
        (QConfig(weight=ONE), 2),
        (QConfig(message=ONE), 0),
        (QConfig(aggregate=ONE), 0),
        (QConfig(message=ONE, rules=[Rule(module="conv1", spec=None)]), 1),
        (QConfig(rules=[Rule(module="conv1", role="edge_weight", spec=ONE)]), 1),
    ],
)
def test_a_product_stands_where_no_message_is_quantized(config, expected):
    module, _ = dqconvert.prepare(Two(), config, (normal(N, 8), adjacency()))
    assert products(module) == expected


def test_quantized_features_go_into_the_product():
    """Weights and features on their grids, messages in float: the product of what was quantized."""
    config = QConfig(activation=ONE, rules=[Rule(role="edge_weight", spec=None)])
    module, _ = dqconvert.prepare(GCNConv(8, 4), config, (normal(N, 8), adjacency()))
    (product,) = (node for node in module.graph.nodes if node.target is spmm)
    assert product.args[1].target == "lin.quant.feature"


def test_messages_come_back_where_another_config_quantizes_them(tmp_path):
    model, inputs = Two(), (normal(N, 8), adjacency())
    plain, _ = dqconvert.prepare(model, QConfig(), inputs)
    dqconvert.save(plain, tmp_path / "plain.dq")
    loaded = dqconvert.load(tmp_path / "plain.dq", model=model)
    assert_same(evaluation(loaded, inputs), evaluation(model, inputs))
    wanted = dqconvert.prepare(model, "int8-dq", inputs).report.totals["role"]
    for module in (plain, loaded):
        assert dqconvert.prepare(module, "int8-dq").report.totals["role"] == wanted


class OnlyProduct(MessagePassing):
    """A layer that has no messages over a matrix."""

    def __init__(self):
        super().__init__(aggr="add")
        self.lin = nn.Linear(8, 4)

    def forward(self, x, adj_t):
        return self.propagate(adj_t, x=self.lin(x))

    def message(self, x_j):
        raise AssertionError

    def message_and_aggregate(self, edge_index, x):
        return spmm(edge_index, x) * 2


def test_a_layer_without_messages_stays_a_product_and_is_reported():
    model, inputs = OnlyProduct(), (normal(N, 8), adjacency())
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(step(copy.deepcopy(module), inputs), step(copy.deepcopy(model), inputs))
    assert_same(inputs[1].to_dense(), adjacency().to_dense())
    _, report = dqconvert.prepare(model, "int8-dq", inputs)
    assert report.totals["role"]["weight"] == 1
    assert [left.reason for left in report.left_float if left.what == "the root module: message"]

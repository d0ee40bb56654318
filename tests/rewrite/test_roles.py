"""Which values get which role: small models, one rule of the method each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, LGConv, MessagePassing, RGCNConv, SAGEConv, SimpleConv
from torch_geometric.utils import softmax

import dqconvert
from dqconvert.errors import TraceError

EDGE_INDEX = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
X = torch.randn(6, 8)


def paths(model, inputs=None, qconfig="int8-dq"):
    """Path and level of each quantizer, in the order of the computation."""
    report = dqconvert.prepare(model, qconfig, inputs or (X, EDGE_INDEX)).report
    return [(entry.path, entry.level) for entry in report.entries]


def test_a_gcn_layer_has_the_papers_seven_places():
    assert paths(GCNConv(8, 4)) == [
        ("lin.quant.input", "node"),
        ("lin.quant.weight", "parameter"),
        ("lin.quant.feature", "node"),
        ("quant.edge_weight", "edge"),
        ("quant.message", "edge"),
        ("quant.aggregate", "node"),
        ("quant.update", "node"),
    ]


def test_attention_vectors_are_weights_logits_features_coefficients_edge_weights():
    assert paths(GATConv(8, 4))[3:] == [
        ("quant.weight", "parameter"),
        ("quant.feature", "node"),
        ("quant.weight_1", "parameter"),
        ("quant.feature_1", "node"),
        ("quant.feature_2", "edge"),
        ("quant.edge_weight", "edge"),
        ("quant.message", "edge"),
        ("quant.aggregate", "node"),
        ("quant.update", "node"),
    ]


class Attention(MessagePassing):
    """Attention whose logits pass a nonlinearity: a function, or a module."""

    def __init__(self, nonlinearity):
        super().__init__()
        self.lin, self.att = nn.Linear(8, 4), nn.Linear(8, 1)
        self.nonlinearity = nonlinearity

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=self.lin(x))

    def message(self, x_i, x_j, index):
        logit = self.nonlinearity(self.att(torch.cat([x_i, x_j], dim=-1)))
        return softmax(logit, index) * x_j


@pytest.mark.parametrize("function", [F.leaky_relu, F.elu])
def test_a_nonlinearity_between_logit_and_softmax_counts_as_nothing_also_as_a_module(function):
    module = {F.leaky_relu: nn.LeakyReLU(), F.elu: nn.ELU()}[function]
    found = paths(Attention(function))
    assert paths(Attention(module)) == found
    assert [path for path, level in found if level == "edge"] == [
        "att.quant.feature",
        "quant.edge_weight",
        "quant.message",
    ]


def test_an_output_that_is_already_on_a_grid_is_not_quantized_again():
    found = [path for path, _ in paths(GINConv(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))))]
    assert found[-1] == "nn.2.quant.feature"
    assert not any("update" in path for path in found)
    assert "quant.update" not in [path for path, _ in paths(GCNConv(8, 4, bias=False))]


def test_a_norm_from_the_graph_alone_is_never_protected_an_attention_coefficient_is():
    protected = {
        type(layer).__name__: next(
            entry.protected
            for entry in dqconvert.prepare(layer, None, (X, EDGE_INDEX)).report.entries
            if entry.role == "edge_weight"
        )
        for layer in (GCNConv(8, 4), GATConv(8, 4))
    }
    assert protected == {"GCNConv": False, "GATConv": True}
    plain = dqconvert.prepare(GATConv(8, 4), "int8-qat", (X, EDGE_INDEX)).report
    assert not any(entry.protected for entry in plain.entries)  # without protection nothing is


class Gain(nn.Module):
    """A gain as norms have it, and a product with a vector that is summed up."""

    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(8, 8)
        self.gain = nn.Parameter(torch.ones(8))
        self.vector = nn.Parameter(torch.ones(8))

    def forward(self, x, edge_index):
        x = self.conv(x, edge_index) * self.gain
        return (x * self.vector).sum(-1)


def test_a_gain_is_not_a_weight_a_summed_product_is():
    module, _ = dqconvert.prepare(Gain(), None, (X, EDGE_INDEX), fuse=False)
    code = module.code
    assert "self.quant.weight(vector)" in code
    assert "(gain)" not in code


class Concatenated(nn.Module):
    """Parts of one grid side by side stay on it; parts of two grids do not."""

    def __init__(self, same):
        super().__init__()
        self.conv, self.other = SAGEConv(8, 8), SAGEConv(8, 8)
        self.lin = nn.Linear(16, 4)
        self.same = same

    def forward(self, x, edge_index):
        one = self.conv(x, edge_index)
        two = one.flip(0) if self.same else self.other(x, edge_index)
        return self.lin(torch.cat([one, two], dim=-1))


@pytest.mark.parametrize(("same", "again"), [(True, False), (False, True)])
def test_a_concatenation_is_quantized_again_unless_its_parts_share_a_grid(same, again):
    assert (("lin.quant.input", "node") in paths(Concatenated(same))) is again


def test_an_input_after_relu_is_unsigned_and_every_other_role_signed():
    entries = dqconvert.prepare(Stack(), "int8-dq", (X, EDGE_INDEX)).report.entries
    unsigned = [entry.path for entry in entries if not entry.signed]
    assert unsigned == ["second.lin.quant.input"]


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(8, 8), GCNConv(8, 4)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Table(nn.Module):
    """An embedding table that messages are taken from."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.conv = LGConv()

    def forward(self, edge_index):
        return self.conv(self.embedding.weight, edge_index)


def test_an_embedding_table_that_messages_are_taken_from_is_a_weight():
    assert ("embedding.quant.weight", "parameter") in paths(Table(), (EDGE_INDEX,))


class Own(MessagePassing):
    """A user's layer that overrides every stage."""

    def __init__(self):
        super().__init__(aggr="add")
        self.lin = nn.Linear(16, 4)

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x)

    def message(self, x_i, x_j):
        return self.lin(torch.cat([x_i, x_j - x_i], dim=-1))

    def aggregate(self, inputs, index, dim_size):
        return inputs.new_zeros(dim_size, inputs.size(-1)).index_add_(0, index, inputs)

    def update(self, inputs):
        return inputs.tanh()


def test_a_users_own_layer_gets_the_same_places():
    assert paths(Own()) == [
        ("lin.quant.input", "edge"),
        ("lin.quant.weight", "parameter"),
        ("lin.quant.feature", "edge"),
        ("quant.message", "edge"),
        ("quant.aggregate", "node"),
        ("quant.update", "node"),
    ]


def test_a_layer_without_weights_still_has_messages_and_aggregates():
    assert paths(SimpleConv()) == [("quant.message", "edge"), ("quant.aggregate", "node")]


def test_a_model_with_nothing_to_quantize_is_an_error():
    with pytest.raises(TraceError, match="there is nothing to quantize"):
        dqconvert.prepare(nn.Sequential(nn.ReLU()), None, (X,))


def test_rows_and_widths_of_one_size_are_told_apart():
    x, ring = torch.randn(7, 7), torch.stack([torch.arange(7), torch.arange(7).roll(1)])
    levels = dict(paths(GCNConv(7, 7, add_self_loops=False), (x, ring)))
    assert levels["quant.message"] == "edge"
    assert levels["quant.aggregate"] == "node"
    assert levels["lin.quant.feature"] == "node"


def test_a_relation_with_as_many_edges_as_nodes_has_edge_level_messages():
    # Of the first relation, half the edges lie among half the nodes: it has as many as there are nodes in larger
    # graphs made of this one, too.
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3, 3, 4, 5, 0, 1, 2]])
    edge_type = torch.tensor([0] * 6 + [1] * 6)
    found = paths(RGCNConv(8, 4, 2), (X, edge_index, edge_type))
    assert {level for path, level in found if "message" in path} == {"edge"}

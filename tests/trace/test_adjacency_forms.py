"""Connectivities in the form that an argument's name or hint asks for, and calls with another form than was traced."""

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import (
    DenseGCNConv,
    GCNConv,
    GENConv,
    GINConv,
    GMMConv,
    GraphConv,
    NNConv,
    RGATConv,
    SAGEConv,
    SignedConv,
)
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

import dqconvert
from checks import assert_same, evaluation, normal
from dqconvert import QConfig
from dqconvert.errors import ArgumentError
from dqconvert.trace import trace
from dqconvert.trace.guards import ARGUMENT_CHECKS, same_layout

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 5, 4]])
N = 7


def forms(edge_index=EDGES, nodes=N, values=None):
    """One graph in every form."""
    transposed, size = edge_index.flip(0), (nodes, nodes)
    return {
        "edge_index": edge_index,
        "EdgeIndex": EdgeIndex(edge_index, sparse_size=size),
        "csr": to_torch_csr_tensor(transposed, values, size=size),
        "coo": to_torch_coo_tensor(transposed, values, size=size),
        "csc": to_torch_csc_tensor(transposed, values, size=size),
    }


class AdjT(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(8, 4)

    def forward(self, x, adj_t):
        return self.conv(x, adj_t)


class Hinted(AdjT):
    def forward(self, x, edges: SparseTensor):
        return self.conv(x, edges)


class A(AdjT):
    def forward(self, x, A: SparseTensor):  # noqa: N803  (as papers call it)
        return self.conv(x, A)


class Index(AdjT):
    def forward(self, x, edge_index: EdgeIndex):
        return self.conv(x, edge_index)


class Product(nn.Module):
    """As the first public GCN has it: a matrix product with the adjacency."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 4)

    def forward(self, x, adj):
        return torch.sparse.mm(adj, self.lin(x))


# -- the form that a name asks for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "form"), [(AdjT, "csr"), (A, "csr"), (Product, "csr"), (Index, "EdgeIndex")])
def test_inputs_are_made_up_in_the_form_that_a_name_or_hint_asks_for(model, form):
    model, inputs = model(), (normal(N, 8), forms()[form])
    module, _ = dqconvert.prepare(model, QConfig())
    assert_same(evaluation(module, inputs), evaluation(model, inputs))


def test_an_adjacency_that_only_a_dense_layer_takes():
    model, inputs = DenseGCNConv(8, 4), (normal(N, 8), torch.ones(N, N))
    module, _ = dqconvert.prepare(model, QConfig())
    assert_same(evaluation(module, inputs), evaluation(model, inputs))


# -- another form than was traced ----------------------------------------------------------------------------------


OTHERS = {
    "edge_index": ("csr", "coo", "csc"),
    "EdgeIndex": ("csr", "coo", "csc"),
    "csr": ("edge_index", "EdgeIndex", "coo", "csc"),
    "coo": ("edge_index", "EdgeIndex", "csr", "csc"),
    "csc": ("edge_index", "EdgeIndex", "coo"),
}
"""By the form of tracing, those that its graph refuses. Compressed rows do where columns were traced."""


@pytest.fixture(scope="module", params=["edge_index", "csr", "csc"])
def traced(request):
    """The form that a prepared module, trained for a step, was traced in, and the module."""
    module, _ = dqconvert.prepare(AdjT(), "int8-dq", (normal(N, 8), forms()[request.param]))
    module.train()(normal(N, 8), forms()[request.param])
    return request.param, module.eval()


@pytest.mark.parametrize("form", OTHERS)
def test_a_graph_refuses_a_connectivity_in_another_form(form):
    nodes = trace(AdjT(), (normal(N, 8), forms()[form])).module.graph.nodes
    (check,) = (node for node in nodes if node.target is same_layout and node.args[2] == "adj_t")
    for called in OTHERS[form]:
        with pytest.raises(ArgumentError, match=r"argument 'adj_t' was a .* when the model was prepared and is a"):
            same_layout(forms()[called], *check.args[1:])


def test_it_does_so_before_it_computes_anything(traced):
    """Argument checks come before protection: the graph's first nodes that are no inputs."""
    nodes = list(traced[1].graph.nodes)
    drawn = next(node for node in nodes if str(node.target) == "quant.protect")
    assert all(check < drawn for check in nodes if check.target in ARGUMENT_CHECKS)


def test_a_connectivity_in_another_form_is_traced_anew(traced):
    """With the same quantizers: in the last bits another order of sums, which may move a value by a step."""
    form, module = traced
    wanted = evaluation(module, (normal(N, 8), forms()[form]))
    for called in OTHERS[form]:
        found = evaluation(module, (normal(N, 8), forms()[called]))
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_so_it_is_in_float():
    module, _ = dqconvert.prepare(AdjT(), QConfig(), (normal(N, 8), forms()["EdgeIndex"]))
    wanted = evaluation(module, (normal(N, 8), EDGES))
    assert_same(evaluation(module, (normal(N, 8), forms()["EdgeIndex"])), wanted)
    for called in ("coo", "csr"):
        torch.testing.assert_close(evaluation(module, (normal(N, 8), forms()[called])), wanted)


def test_an_edge_index_object_is_an_edge_index():
    module, _ = dqconvert.prepare(AdjT(), QConfig(), (normal(N, 8), EDGES))
    wanted = evaluation(module, (normal(N, 8), EDGES))
    assert_same(evaluation(module, (normal(N, 8), forms()["EdgeIndex"])), wanted)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_features_as_a_sparse_matrix(layout):
    model, inputs = GCNConv(8, 4), (normal(N, 8).relu().to_sparse(layout=layout), EDGES)
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))


def test_features_in_another_layout_are_refused():
    with pytest.raises(ArgumentError, match=r"was a dense tensor .* is a sparse matrix \(torch.sparse_coo\)"):
        same_layout(normal(N, 8).to_sparse(), "strided", "x")


# -- matrices with as many entries as nodes, and with vectors as entries ---------------------------------------------


def square(entries=None, form="csr"):
    """Four nodes, four edges: no number tells the ones from the others."""
    index = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])
    return forms(index, 4, entries)[form]


class Signed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SignedConv(8, 4, first_aggr=True)

    def forward(self, x, positive, negative):
        return self.conv(x, positive, negative)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (lambda: SAGEConv(8, 4), "csr"),
        (lambda: SAGEConv(8, 4, aggr="max"), "coo"),
        (lambda: GINConv(nn.Linear(8, 4)), "csc"),
        (lambda: GraphConv(8, 4), "coo"),
        (Signed, "csr"),
    ],
)
def test_a_square_matrix_with_as_many_entries_as_nodes(layer, form):
    model = layer()
    adjacencies = (square(form=form),) * (2 if isinstance(model, Signed) else 1)
    inputs = (normal(4, 8), *adjacencies)
    module, report = dqconvert.prepare(model, QConfig(), inputs)
    assert not [remark for remark in report.remarks if "no second input" in remark]
    plain = (normal(4, 8), *(square(form="csr" if form == "csc" else form) for _ in adjacencies))
    assert_same(evaluation(module, inputs), evaluation(model, plain))
    if not isinstance(model, Signed):
        _, report = dqconvert.prepare(model, "int8-dq", inputs)
        assert report.totals["role"]["message"]


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (lambda: GENConv(8, 4, edge_dim=3), "csr"),
        (lambda: GMMConv(8, 4, dim=3, kernel_size=2), "coo"),
        (lambda: NNConv(8, 4, nn.Linear(3, 32)), "csr"),
    ],
)
def test_matrices_whose_entries_are_vectors(layer, form):
    model, inputs = layer(), (normal(4, 8), square(normal(4, 3, seed=3).abs(), form))
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))
    trained, report = dqconvert.prepare(model, "int8-dq", inputs)
    trained.train()(*inputs).sum().backward()
    assert report.totals["role"]["message"]


class Relational(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = RGATConv(8, 4, num_relations=2, edge_dim=3)

    def forward(self, x, adj_t, edge_type):
        return self.conv(x, adj_t, edge_type)


@pytest.mark.parametrize("form", ["csr", "coo"])
def test_relations_beside_a_matrix_whose_entries_are_vectors(form):
    model = Relational()
    inputs = normal(4, 8), square(normal(4, 3, seed=3), form), torch.tensor([0, 1, 1, 0])
    module, _ = dqconvert.prepare(model, QConfig(), inputs)
    assert_same(evaluation(module, inputs), evaluation(model, inputs))


def test_a_layer_whose_messages_take_a_weight():
    """GCNConv's and GraphConv's take the matrix's values as their own."""
    for layer in (GCNConv(8, 4), GraphConv(8, 4)):
        inputs = normal(4, 8), square(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        module, _ = dqconvert.prepare(layer, QConfig(), inputs)
        assert_same(evaluation(module, inputs), evaluation(layer, inputs))

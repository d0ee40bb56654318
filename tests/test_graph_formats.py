"""Connectivity in every form, sampled neighbourhoods, batches, and heads of every level."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader, NeighborLoader, RandomNodeLoader
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    PNA,
    EdgeCNN,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    GraphSAGE,
    MessagePassing,
    SAGEConv,
    TAGConv,
    global_add_pool,
    global_max_pool,
)
from torch_geometric.utils import (
    degree,
    k_hop_subgraph,
    spmm,
    to_torch_coo_tensor,
    to_torch_csc_tensor,
    to_torch_csr_tensor,
    trim_to_layer,
)

import dqconvert
import zoo
from checks import assert_float_identity, assert_same, assert_trains, evaluation, mask_of, normal, step
from dqconvert import QConfig, TraceError
from dqconvert.errors import GuardError
from test_prepare_protection import (
    Watch,
    assert_frequencies,
    draws_only,
    expected_probability,
    protecting,
    some,
    watched,
)

WIDTH = 8
SIZES = {"N != E": (14, 40), "N == E": (18, 18)}
OTHER = (23, 71)


def edges(nodes, number, seed=1, sort=True):
    """Distinct random edges with a hub; the last node has none. Sorted as an adjacency matrix is."""
    pairs = torch.randperm((nodes - 1) ** 2, generator=torch.Generator().manual_seed(seed))[: 2 * number]
    index = torch.stack([pairs // (nodes - 1), pairs % (nodes - 1)])
    index[1, : number // 4] = 0
    index = index.unique(dim=1)
    index = index[:, torch.randperm(index.size(1), generator=torch.Generator().manual_seed(seed))[:number]]
    assert index.size(1) == number
    return index[:, (index[1] * nodes + index[0]).argsort()] if sort else index


def mlp(width=WIDTH):
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4))


# -- sparse adjacency, EdgeIndex -----------------------------------------------------------------------------------


def transposed(to_sparse, weighted=False):
    """The adjacency matrix as PyG wants it: a row per target."""

    def make(size):
        index = edges(*size)
        weight = torch.rand(size[1], generator=torch.Generator().manual_seed(2)) + 0.5 if weighted else None
        return to_sparse(index.flip(0), weight, size=(size[0], size[0]))

    return make


def edge_index_object(size, **options):
    return EdgeIndex(edges(*size), sparse_size=(size[0], size[0]), **options)


FORMS = {
    "CSR": transposed(to_torch_csr_tensor),
    "COO": transposed(to_torch_coo_tensor),
    "CSC": transposed(to_torch_csc_tensor),
    "CSR, weighted": transposed(to_torch_csr_tensor, weighted=True),
    "COO, weighted": transposed(to_torch_coo_tensor, weighted=True),
    "EdgeIndex": edge_index_object,
    "EdgeIndex, sorted": lambda size: edge_index_object(size, sort_order="col"),
    "EdgeIndex, cached": lambda size: edge_index_object(size, sort_order="col").fill_cache_(),
}
LAYERS = {
    "GCNConv": lambda: GCNConv(WIDTH, 4),
    "SAGEConv": lambda: SAGEConv(WIDTH, 4),
    "SAGEConv, max": lambda: SAGEConv(WIDTH, 4, aggr="max"),
    "GraphConv": lambda: GraphConv(WIDTH, 4),
    "GINConv": lambda: GINConv(mlp()),
    "TAGConv": lambda: TAGConv(WIDTH, 4, K=2),
    "GATConv": lambda: GATConv(WIDTH, 4, heads=2, add_self_loops=False),
    "GCN": lambda: GCN(WIDTH, 16, 2, 4),
    "GraphSAGE": lambda: GraphSAGE(WIDTH, 16, 2, 4),
}
REFUSED = {("GCNConv", "CSC"), ("GATConv", "CSC"), ("TAGConv", "CSC"), ("GCN", "CSC")}
"""PyG's own gcn_norm and softmax take no CSC matrix."""
SUPPORTED = [(layer, form) for layer in LAYERS for form in FORMS if (layer, form) not in REFUSED]


def layer_of(name):
    torch.manual_seed(0)
    return LAYERS[name]()


def over(form):
    return lambda size: (normal(size[0], WIDTH), FORMS[form](size))


@pytest.mark.sample(11)
@pytest.mark.parametrize(("layer", "form"), SUPPORTED)
def test_float_identity(layer, form):
    model, inputs = layer_of(layer), over(form)
    for size in SIZES.values():
        module, report = dqconvert.prepare(model, QConfig(), inputs(size))
        assert not [remark for remark in report.remarks if "no second input" in remark]
        for run_size in (size, OTHER):
            wanted = step(copy.deepcopy(model), inputs(run_size))
            assert_same(step(copy.deepcopy(module), inputs(run_size)), wanted)
            assert_same(evaluation(module, inputs(run_size)), evaluation(copy.deepcopy(model), inputs(run_size)))


@pytest.mark.sample(6)
@pytest.mark.parametrize(("layer", "form"), SUPPORTED)
def test_it_trains(layer, form):
    model, inputs = layer_of(layer), over(form)
    module, report = dqconvert.prepare(model, "int8-dq", inputs(SIZES["N != E"]))
    assert {"weight", "message", "aggregate"} <= set(report.totals["role"])
    for size in (SIZES["N != E"], OTHER):
        _, gradients, _ = step(module, inputs(size))
        assert set(gradients) == {name for name, _ in model.named_parameters()}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert all(out.isfinite().all() for out in evaluation(module, inputs(size)))


@pytest.mark.sample(2)
@pytest.mark.parametrize("form", [form for form in FORMS if "weighted" not in form])
def test_every_form_of_a_graph_quantizes_alike(form):
    """The quantizers, the draw and the result are those of the plain edge_index."""
    model, size = layer_of("GraphSAGE"), SIZES["N == E"]
    given = some(OTHER[0])
    results = []
    for inputs in (over(form), lambda size: (normal(size[0], WIDTH), edges(*size))):
        module, report = dqconvert.prepare(model, protecting(0.0, 0.1), inputs(size))
        out, *_ = step(module, inputs(OTHER), protect_prob=given)
        results.append(([e.path for e in report.entries], [e.protected for e in report.entries], out))
    assert results[0][:2] == results[1][:2]
    (found,), (wanted,) = results[0][2], results[1][2]
    # A matrix's rows are summed in another order: in the last bits, which may move a value over the edge of a step.
    assert (~torch.isclose(found, wanted, rtol=1e-5, atol=1e-6)).float().mean() < 0.1
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.002)


@pytest.mark.sample(3)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_protection_over_every_form(form, size):
    module, watch = watched(layer_of("SAGEConv"), protecting(0.0, 0.1), over(form)(SIZES[size]))
    for run_size in (SIZES[size], OTHER):
        given = some(run_size[0])
        module(*over(form)(run_size), protect_prob=given)
        assert torch.equal(mask_of(watch, "quant.message"), given.bool()[edges(*run_size)[0]])
        assert torch.equal(mask_of(watch, "quant.aggregate"), given.bool())


@pytest.mark.sample(2)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["CSR", "COO", "EdgeIndex, sorted"])
@pytest.mark.parametrize("layer", ["GCNConv", "GATConv"])
def test_protection_of_normalized_and_attention_layers(layer, form, size):
    """Messages by their sender, self-loops included."""
    module, watch = watched(layer_of(layer), protecting(0.0, 0.1), over(form)(SIZES[size]))
    for run_size in (SIZES[size], OTHER):
        given = some(run_size[0])
        module(*over(form)(run_size), protect_prob=given)
        plain = watched(layer_of(layer), protecting(0.0, 0.1), (normal(run_size[0], WIDTH), edges(*run_size)))
        plain[0](normal(run_size[0], WIDTH), edges(*run_size), protect_prob=given)
        found, wanted = (mask_of(w, "quant.message") for w in (watch, plain[1]))
        assert found.sum() == wanted.sum()  # the order of self-loops among the edges is the format's
        assert torch.equal(mask_of(watch, "quant.aggregate"), given.bool())


@pytest.mark.sample(2)
@pytest.mark.parametrize("form", FORMS)
def test_in_degrees_are_those_of_the_rows(form):
    module, watch = watched(layer_of("SAGEConv"), draws_only(0.0, 1.0), over(form)(SIZES["N != E"]))
    with torch.no_grad():
        for _ in range(300):
            module(*over(form)(OTHER))
    assert_frequencies(watch.draws, expected_probability(edges(*OTHER)[1], OTHER[0], 0.0, 1.0))


def test_a_plain_edge_index_where_an_adjacency_was_given_is_not_silently_wrong():
    module, _ = dqconvert.prepare(layer_of("SAGEConv"), QConfig(), over("CSR")(OTHER))
    model = layer_of("SAGEConv")
    inputs = normal(OTHER[0], WIDTH), edges(*OTHER)
    try:
        found = module.eval()(*inputs)
    except Exception:  # refused, in whatever words
        return
    torch.testing.assert_close(found, model.eval()(*inputs))


@pytest.mark.parametrize("form", ["CSR", "COO", "CSC"])
def test_values_that_were_not_there_when_it_was_prepared_are_refused(form):
    """SAGEConv's messages leave them out, its fused product does not: the graph has no place for them."""
    module, _ = dqconvert.prepare(layer_of("SAGEConv"), QConfig(), over(form)(OTHER))
    x, adjacency = over(form)(SIZES["N != E"])
    module.eval()(x, adjacency)
    with pytest.raises(GuardError, match="had no values but 1"):
        module(x, adjacency * 2)


@pytest.mark.parametrize("layer", ["SAGEConv", "SAGEConv, max", "GINConv", "GraphSAGE"])
def test_values_weight_messages_that_say_nothing_of_them(layer):
    model = layer_of(layer)
    module, report = dqconvert.prepare(model, "int8-dq", over("CSR, weighted")(SIZES["N != E"]))
    roles = report.totals["role"]
    assert roles["edge_weight"] == roles["message"]
    assert all(not e.protected for e in report.entries if e.role == "edge_weight")
    assert all(e.protected for e in report.entries if e.role == "message")
    for name, found in module.named_modules():  # nothing of the tracing is left on the layers
        assert not any("_dqconvert" in attribute for attribute in vars(found)), name
        assert not getattr(found, "_message_forward_hooks", {}), name


class SquaredProduct(MessagePassing):
    """A user's own layer whose product with an adjacency is not the sum of its messages."""

    def __init__(self):
        super().__init__(aggr="add")
        self.lin = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=self.lin(x))

    def message_and_aggregate(self, edge_index, x):
        return spmm(edge_index, x) ** 2


class WithSquaredProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = SAGEConv(WIDTH, WIDTH), SquaredProduct(), SAGEConv(WIDTH, 4)

    def forward(self, x, edge_index):
        return self.conv3(self.conv2(self.conv1(x, edge_index), edge_index), edge_index)


@pytest.mark.parametrize("form", ["CSR", "CSR, weighted", "COO, weighted"])
def test_a_product_that_is_no_sum_of_messages_stays_a_product(form):
    torch.manual_seed(0)
    model = WithSquaredProduct()
    module, report = dqconvert.prepare(model, QConfig(), over(form)(SIZES["N != E"]))
    (left,) = [left for left in report.left_float if left.what == "conv2: message" and "config" not in left.reason]
    assert "product with a sparse adjacency" in left.reason
    assert "test_graph_formats.py:" in left.source
    assert_same(step(module, over(form)(OTHER)), step(model, over(form)(OTHER)))
    _, report = dqconvert.prepare(model, "int8-dq", over(form)(SIZES["N != E"]))
    assert {"conv1", "conv3"} <= {e.module for e in report.entries if e.role == "message"}
    assert {e.role for e in report.entries if e.module == "conv2"} == {"update"}
    assert {e.role for e in report.entries if e.module == "conv2.lin"} == {"weight", "feature"}
    with pytest.raises(TraceError, match="product with a sparse adjacency"):
        dqconvert.prepare(model, QConfig(), over(form)(SIZES["N != E"]), strict=True)
    alone, _ = dqconvert.prepare(SquaredProduct(), QConfig(), over(form)(SIZES["N != E"]))
    assert_same(step(alone, over(form)(OTHER)), step(alone, over(form)(OTHER)))


class MakesAdjacency(nn.Module):
    """Turns edges into an adjacency in its forward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(WIDTH, WIDTH), GraphConv(WIDTH, 4)

    def forward(self, x, edge_index, edge_weight):
        adjacency = to_torch_csr_tensor(edge_index.flip(0), edge_weight, size=(x.size(0), x.size(0)))
        return self.conv2(self.conv1(x, adjacency), adjacency)


def test_an_adjacency_that_the_model_makes():
    def inputs(size):
        return normal(size[0], WIDTH), edges(*size), torch.rand(size[1]) + 0.5

    model = MakesAdjacency()
    report = dqconvert.prepare(model, "int8-dq", inputs(SIZES["N != E"])).report
    assert report.totals["role"]["message"] == 2
    arguments = inputs(OTHER)
    plain, _ = dqconvert.prepare(model, QConfig(), inputs(SIZES["N != E"]))
    assert_same(step(plain, arguments), step(copy.deepcopy(model), arguments))
    assert_same(evaluation(plain, arguments), evaluation(model, arguments))


class OwnFused(MessagePassing):
    """A user's own layer with a product for sparse adjacencies."""

    def __init__(self):
        super().__init__(aggr="mean")
        self.lin = nn.Linear(WIDTH, 4)

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=self.lin(x))

    def message(self, x_j):
        return x_j

    def message_and_aggregate(self, edge_index, x):
        return spmm(edge_index, x, self.aggr)


@pytest.mark.parametrize("form", ["CSR", "COO", "CSC", "EdgeIndex, sorted"])
def test_a_layer_that_fuses_message_and_aggregate(form):
    torch.manual_seed(0)
    model = OwnFused()
    module, report = dqconvert.prepare(model, "int8-qat", over(form)(SIZES["N == E"]))
    assert {"message", "aggregate"} <= set(report.totals["role"])
    step(module, over(form)(OTHER))
    found, wanted = evaluation(module, over(form)(OTHER))[0], evaluation(model, over(form)(OTHER))[0]
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    assert any("one by one" in remark for remark in report.remarks)


# -- sampled neighbourhoods ----------------------------------------------------------------------------------------


def sampled(size, seeds, seed=1):
    """A batch as NeighborLoader makes it: seeds first, then each hop's nodes; edges hop by hop.

    Built from ``k_hop_subgraph``: the nodes and edges that two hops from the seeds reach.
    """
    nodes, number = size
    index, x = edges(nodes, number, seed), normal(nodes, WIDTH)
    order, per_hop, edges_per_hop, parts = list(range(seeds)), [seeds], [], []
    frontier = list(range(seeds))
    for _ in range(2):
        reached, _, _, _ = k_hop_subgraph(torch.tensor(frontier), 1, index, num_nodes=nodes)
        new = [node for node in reached.tolist() if node not in order]
        inward = torch.isin(index[1], torch.tensor(frontier))
        parts.append(index[:, inward])
        order += new
        per_hop.append(len(new))
        edges_per_hop.append(int(inward.sum()))
        frontier = new
    position = torch.full((nodes,), -1)
    position[torch.tensor(order)] = torch.arange(len(order))
    edge_index = position[torch.cat(parts, dim=1)]
    assert (edge_index >= 0).all()
    return x[torch.tensor(order)], edge_index, per_hop, edges_per_hop


class Trimmed(nn.Module):
    """A hand-written model on sampled neighbourhoods."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([SAGEConv(WIDTH, 16), SAGEConv(16, 4)])

    def forward(self, x, edge_index, num_sampled_nodes, num_sampled_edges):
        for i, conv in enumerate(self.convs):
            x, edge_index, _ = trim_to_layer(i, num_sampled_nodes, num_sampled_edges, x, edge_index)
            x = conv(x, edge_index)
            if i == 0:
                x = x.relu()
        return x[: num_sampled_nodes[0]]


class ByKeyword(nn.Module):
    """A BasicGNN as users call it on sampled batches."""

    def __init__(self, gnn):
        super().__init__()
        self.gnn = gnn

    def forward(self, x, edge_index, num_sampled_nodes_per_hop, num_sampled_edges_per_hop):
        return self.gnn(
            x,
            edge_index,
            num_sampled_nodes_per_hop=num_sampled_nodes_per_hop,
            num_sampled_edges_per_hop=num_sampled_edges_per_hop,
        )


TRIMMED = {
    "by hand": Trimmed,
    "GraphSAGE": lambda: ByKeyword(GraphSAGE(WIDTH, 16, 2, 4)),
    "GIN": lambda: ByKeyword(GIN(WIDTH, 16, 2, 4)),
    "GAT": lambda: ByKeyword(GAT(WIDTH, 16, 2, 4, add_self_loops=False)),
    "GCN": lambda: ByKeyword(GCN(WIDTH, 16, 2, 4, norm="BatchNorm")),
    "EdgeCNN": lambda: ByKeyword(EdgeCNN(WIDTH, 16, 2, 4)),
    "PNA": lambda: ByKeyword(PNA(WIDTH, 16, 2, 4, deg=zoo.degrees(), **zoo.PNA_OPTIONS)),
}
SAMPLES = [((30, 45), 3), ((44, 60), 5), ((60, 150), 7)]


def equal_sample():
    """A sample with as many nodes as edges."""
    for number in range(60, 160):
        found = sampled((120, number), 16)
        if len(found[0]) == found[1].size(1):
            return found
    raise AssertionError("no sample has N == E")


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", TRIMMED)
def test_trimmed_float_identity(name):
    torch.manual_seed(0)
    model = TRIMMED[name]()
    batches = [sampled(*sample) for sample in SAMPLES]
    assert len({tuple(batch[2] + batch[3]) for batch in batches}) == 3
    module, report = dqconvert.prepare(model, QConfig(), batches[0])
    assert report.remarks == ()
    for batch in batches:
        assert_same(step(copy.deepcopy(module), batch), step(copy.deepcopy(model), batch))
        assert_same(evaluation(copy.deepcopy(module), batch), evaluation(copy.deepcopy(model), batch))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", TRIMMED)
def test_trimmed_trains(name):
    torch.manual_seed(0)
    model = TRIMMED[name]()
    _, report = assert_trains(model, *(sampled(*sample) for sample in SAMPLES))
    assert {"weight", "message", "aggregate"} <= set(report.totals["role"])


@pytest.mark.parametrize("example", ["N != E", "N == E"])
def test_trimmed_protection(example):
    """A node keeps its draw while the graph shrinks around it, layer by layer."""
    torch.manual_seed(0)
    batch = sampled(*SAMPLES[0]) if example == "N != E" else equal_sample()
    module, report = dqconvert.prepare(Trimmed(), protecting(0.0, 0.1), batch)
    watch = Watch(module, report)
    for x, edge_index, nodes, number in (batch, sampled(*SAMPLES[2])):
        given = some(len(x))
        module.train()(x, edge_index, nodes, number, protect_prob=given)
        kept_nodes, kept_edges = nodes[0] + nodes[1], number[0]
        assert torch.equal(mask_of(watch, "convs.0.quant.message"), given.bool()[edge_index[0]])
        assert torch.equal(mask_of(watch, "convs.0.quant.aggregate"), given.bool())
        assert torch.equal(mask_of(watch, "convs.1.quant.message"), given.bool()[edge_index[0, :kept_edges]])
        assert torch.equal(mask_of(watch, "convs.1.quant.aggregate"), given.bool()[:kept_nodes])


@pytest.mark.parametrize("example", ["N != E", "N == E"])
def test_trimmed_protection_in_a_basic_gnn(example):
    torch.manual_seed(0)
    batch = sampled(*SAMPLES[0]) if example == "N != E" else equal_sample()
    module, report = dqconvert.prepare(ByKeyword(GraphSAGE(WIDTH, 16, 2, 4)), protecting(0.0, 0.1), batch)
    watch = Watch(module, report)
    for x, edge_index, nodes, number in (batch, sampled(*SAMPLES[2])):
        given = some(len(x))
        module.train()(x, edge_index, nodes, number, protect_prob=given)
        assert torch.equal(mask_of(watch, "gnn.convs.0.quant.message"), given.bool()[edge_index[0]])
        first = given.bool()[edge_index[0, : number[0]]]
        assert torch.equal(mask_of(watch, "gnn.convs.1.quant.message"), first)
        assert torch.equal(mask_of(watch, "gnn.convs.1.quant.aggregate"), given.bool()[: nodes[0] + nodes[1]])


def test_one_draw_serves_all_layers_of_a_trimmed_model():
    torch.manual_seed(0)
    batch = sampled(*SAMPLES[2])
    module, report = dqconvert.prepare(Trimmed(), protecting(0.5, 0.5), batch)
    watch = Watch(module, report)
    for _ in range(5):
        module.train()(*batch)
        first, second = mask_of(watch, "convs.0.quant.aggregate"), mask_of(watch, "convs.1.quant.aggregate")
        assert torch.equal(second, first[: len(second)])


def test_batches_of_neighbor_loader():
    data = Data(x=normal(60, WIDTH), edge_index=edges(60, 150), y=torch.arange(60) % 4)
    try:
        loader = NeighborLoader(data, [5, 5], batch_size=8)
        batches = list(loader)
    except ImportError:
        pytest.skip("NeighborLoader needs pyg-lib or torch-sparse")
    module, _ = dqconvert.prepare(Trimmed(), "int8-dq", trimmed_inputs(batches[0]))
    for batch in batches:
        assert module.train()(*trimmed_inputs(batch)).isfinite().all()


def trimmed_inputs(batch):
    return batch.x, batch.edge_index, batch.num_sampled_nodes, batch.num_sampled_edges


def test_batches_of_random_node_loader():
    data = Data(x=normal(60, WIDTH), edge_index=edges(60, 300), y=torch.arange(60) % 4)
    torch.manual_seed(0)
    batches = list(RandomNodeLoader(data, num_parts=4))
    model = GraphSAGE(WIDTH, 16, 2, 4)
    others = [(batch.x, batch.edge_index) for batch in batches]
    assert_float_identity(model, *others)
    module, _ = assert_trains(model, *others)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(module.train()(batch.x, batch.edge_index), batch.y).backward()
        optimizer.step()


def test_sampled_batches_carry_probabilities_of_the_whole_graph():
    """DegreeProtection counts in the whole graph; a loader cuts it along with x."""
    data = dqconvert.DegreeProtection(0.0, 1.0)(Data(x=normal(60, WIDTH), edge_index=edges(60, 300)))
    torch.manual_seed(0)
    batch = next(iter(RandomNodeLoader(data, num_parts=3)))

    class OnData(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = SAGEConv(WIDTH, 4)

        def forward(self, data):
            return self.conv(data.x, data.edge_index)

    module, watch = watched(OnData(), protecting(0.0, 0.1), batch)
    with torch.no_grad():
        for _ in range(300):
            module(copy.copy(batch))
    assert_frequencies(watch.draws, batch.protect_prob)


# -- mini-batches of graphs, heads of every level ------------------------------------------------------------------


def molecules(number, seed=0, nodes=6, extra=0):
    """Small graphs of different sizes, with edge attributes."""
    found = []
    for graph in range(number):
        size = nodes + graph + extra
        index = edges(size, 2 * size, seed + graph)
        found.append(
            Data(x=normal(size, WIDTH, seed=graph), edge_index=index, edge_attr=normal(2 * size, 5, seed=graph))
        )
    return found


def batched(number, **options):
    return Batch.from_data_list(molecules(number, **options))


class NodeHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lin = SAGEConv(WIDTH, 16), nn.Linear(16, 4)

    def forward(self, data):
        return self.lin(self.conv(data.x, data.edge_index).relu())


class EdgeHead(NodeHead):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2 * 16 + 5, 4)

    def forward(self, data):
        x, (row, col) = self.conv(data.x, data.edge_index).relu(), data.edge_index
        return self.lin(torch.cat([x[row], x[col], data.edge_attr], dim=-1))


class GraphHead(NodeHead):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(32, 4)

    def forward(self, data):
        x = self.conv(data.x, data.edge_index).relu()
        pooled = torch.cat([global_add_pool(x, data.batch), global_max_pool(x, data.batch)], dim=-1)
        return self.lin(pooled)


class LinkHead(NodeHead):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(16, 8)

    def forward(self, data, edge_label_index):
        z = self.lin(self.conv(data.x, data.edge_index).relu())
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=-1)


class LinkMLP(NodeHead):
    def __init__(self):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(32, 8), nn.Linear(8, 1)

    def forward(self, data, edge_label_index):
        z = self.conv(data.x, data.edge_index)
        row, col = edge_label_index
        return self.lin2(self.lin1(torch.cat([z[row], z[col]], dim=-1)).relu()).view(-1)


def with_pairs(data, number):
    return data, edges(data.num_nodes, number, seed=9, sort=False)


HEADS = {
    "node": (NodeHead, lambda data: (data,)),
    "edge": (EdgeHead, lambda data: (data,)),
    "graph": (GraphHead, lambda data: (data,)),
    "link": (LinkHead, lambda data: with_pairs(data, data.num_nodes + 3)),
    "link, as many as nodes": (LinkHead, lambda data: with_pairs(data, data.num_nodes)),
    "link MLP": (LinkMLP, lambda data: with_pairs(data, data.num_nodes + 3)),
    "link MLP, as many as edges": (LinkMLP, lambda data: with_pairs(data, data.num_edges)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("head", HEADS)
def test_heads_over_mini_batches(head):
    torch.manual_seed(0)
    factory, inputs = HEADS[head]
    model = factory()
    arguments = [inputs(batched(3)), inputs(batched(4, seed=5)), inputs(batched(2, extra=3))]
    assert_float_identity(model, *arguments)
    _, report = assert_trains(model, *arguments)
    level = {"node": "node", "edge": "edge", "graph": "graph"}.get(head)
    if level:
        assert {e.level for e in report.entries if e.module == "lin" and e.role == "feature"} == {level}


@pytest.mark.parametrize("head", ["node", "graph"])
def test_data_loader_and_training(head):
    """Batches of a DataLoader, the last one smaller."""
    torch.manual_seed(0)
    model = HEADS[head][0]()
    loader = DataLoader(molecules(10), batch_size=4)
    module, _ = dqconvert.prepare(model, "int8-dq", next(iter(loader)))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for batch in loader:
        optimizer.zero_grad()
        module.train()(batch).square().mean().backward()
        optimizer.step()
    for batch in loader:
        assert module.eval()(batch).isfinite().all()


@pytest.mark.parametrize("head", ["link", "link, as many as nodes", "link MLP", "link MLP, as many as edges"])
def test_link_values_get_no_mask_of_other_rows(head):
    """A pair's values are told what one of its nodes is told, or nothing."""
    torch.manual_seed(0)
    factory, inputs = HEADS[head]
    module, report = dqconvert.prepare(factory(), protecting(0.0, 0.1), inputs(batched(3)))
    watch = Watch(module, report)
    data, pairs = inputs(batched(4, seed=5))
    given = some(data.num_nodes)
    module.train()(data, pairs, protect_prob=given)
    node, options = given.bool(), [given.bool()[pairs[0]], given.bool()[pairs[1]]]
    assert torch.equal(mask_of(watch, "conv.quant.message"), node[data.edge_index[0]])
    for entry in report.entries:
        if not entry.module.startswith("lin") or entry.role == "weight":
            continue
        rows, told = len(watch.passed[entry.path][-1]), watch.told[entry.path][-1]
        if told is None:
            assert not entry.protected, entry.path
            continue
        assert len(told) == rows, entry.path
        assert torch.equal(told, node) or any(torch.equal(told, option) for option in options), entry.path


def test_edge_head_is_protected_by_its_sender():
    torch.manual_seed(0)
    for example in (batched(3), Batch.from_data_list([cyclic(7), cyclic(9)])):
        module, report = dqconvert.prepare(EdgeHead(), protecting(0.0, 0.1), example)
        watch = Watch(module, report)
        for data in (example, batched(4, seed=5)):
            given = some(data.num_nodes)
            module.train()(data, protect_prob=given)
            for role in ("input", "feature"):
                path = next(e.path for e in report.entries if e.module == "lin" and e.role == role)
                assert torch.equal(mask_of(watch, path), given.bool()[data.edge_index[0]]), role


def cyclic(nodes):
    """As many edges as nodes."""
    index = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    return Data(x=normal(nodes, WIDTH), edge_index=index, edge_attr=normal(nodes, 5))


@pytest.mark.parametrize("name", ["graph", "node"])
def test_graphs_with_as_many_nodes_as_edges(name):
    torch.manual_seed(0)
    example = Batch.from_data_list([cyclic(7), cyclic(9)])
    model = HEADS[name][0]()
    assert_float_identity(model, (example,), (batched(4, seed=5),))
    module, report = dqconvert.prepare(model, protecting(0.0, 0.1), example)
    watch = Watch(module, report)
    for data in (example, batched(4, seed=5)):
        given = some(data.num_nodes)
        module.train()(data, protect_prob=given)
        assert torch.equal(mask_of(watch, "conv.quant.message"), given.bool()[data.edge_index[0]])
        assert torch.equal(mask_of(watch, "conv.quant.aggregate"), given.bool())


def test_a_width_that_equals_the_numbers_of_nodes_and_edges():
    """16 nodes, 16 edges, 16 channels everywhere."""
    model = GATv2Conv(16, 16)
    example = normal(16, 16), edges(16, 16)
    assert_float_identity(model, example, (normal(23, 16), edges(*OTHER)))
    module, watch = watched(GATv2Conv(16, 16, add_self_loops=False), protecting(0.0, 0.1), example)
    for x, index in (example, (normal(23, 16), edges(*OTHER))):
        given = some(len(x))
        module(x, index, protect_prob=given)
        assert torch.equal(mask_of(watch, "quant.message"), given.bool()[index[0]])
        assert torch.equal(mask_of(watch, "quant.aggregate"), given.bool())


# -- numbers stay in the graph -------------------------------------------------------------------------------------


class Derived(nn.Module):
    """Numbers from sizes, degrees and from what index tensors hold."""

    def __init__(self):
        super().__init__()
        self.conv, self.lin = SAGEConv(WIDTH, 16), nn.Linear(16, 4)

    def forward(self, x, edge_index, batch):
        num_graphs = int(batch.max()) + 1
        num_linked = edge_index.max().item() + 1
        average = edge_index.size(1) / x.size(0)
        x = self.conv(x, edge_index) / average**0.5
        highest = degree(edge_index[1], x.shape[0]).max()
        x = x / highest + x.new_zeros(x.size(0), 1).fill_(num_linked / len(x))
        out = x.new_zeros(num_graphs, x.size(-1)).index_add_(0, batch, x)
        return self.lin(out / (x.size(0) // num_graphs))


def test_numbers_are_not_traced_away():
    def inputs(nodes, number, graphs):
        return normal(nodes, WIDTH), edges(nodes, number), torch.arange(nodes) * graphs // nodes

    module = assert_float_identity(
        Derived(), inputs(14, 40, 2), inputs(23, 71, 5), inputs(11, 20, 1), inputs(18, 18, 3)
    )
    assert module.eval()(*inputs(23, 71, 5)).shape == (5, 4)

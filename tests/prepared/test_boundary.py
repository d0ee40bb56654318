"""What a forward cannot use is an error in the user's words, the same in all modes; and it leaves no trace."""

from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    AttentionalAggregation,
    GATConv,
    GCNConv,
    GraphSAGE,
    HeteroConv,
    SAGEConv,
    global_mean_pool,
)

import dqconvert
from dqconvert.errors import ConfigError, InputIndexError, InputShapeError, InputTypeError, LoweringError

X, EDGES = (
    torch.randn(40, 16, generator=torch.Generator().manual_seed(0)),
    torch.stack([torch.arange(160), 3 * torch.arange(160) + 1]) % 40,
)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(16, 4)

    def forward(self, x, edge_index, edge_weight):
        return self.conv(x, edge_index, edge_weight)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.lin = SAGEConv(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        return self.lin(global_mean_pool(self.norm(self.conv(x, edge_index)).relu(), batch))


class Read(nn.Module):
    """The groups of its readout are as many as the largest one says."""

    def __init__(self):
        super().__init__()
        self.conv, self.read = SAGEConv(16, 8), AttentionalAggregation(nn.Linear(8, 1))

    def forward(self, x, edge_index, batch):
        return self.read(self.conv(x, edge_index), batch)


class Hetero(nn.Module):
    def __init__(self):
        super().__init__()
        convs = {
            ("a", "to", "b"): SAGEConv((16, 12), 8),
            ("b", "back", "a"): GATConv((12, 16), 8, add_self_loops=False),
        }
        self.convs = HeteroConv(convs)

    def forward(self, x_dict, edge_index_dict):
        return self.convs(x_dict, edge_index_dict)["b"]


HETERO = (
    {"a": X, "b": torch.ones(20, 12)},
    {("a", "to", "b"): EDGES % 20, ("b", "back", "a"): EDGES % 20},
)
EXAMPLES = {
    "GCN": (lambda: GCN(16, 8, 2, 3), (X, EDGES)),
    "GIN": (lambda: GIN(16, 8, 2, 3), (X, EDGES)),
    "SAGE": (lambda: GraphSAGE(16, 8, 2, 3, aggr="max"), (X, EDGES)),
    "GAT": (lambda: GAT(16, 8, 2, 3), (X, EDGES)),
    "Weighted": (Weighted, (X, EDGES, torch.rand(160))),
    "Pooled": (Pooled, (X, EDGES, torch.arange(40) // 10)),
    "Read": (Read, (X, EDGES, torch.arange(40) // 10)),
    "Hetero": (Hetero, HETERO),
}
_made = {}


def modes(kind):
    """A model prepared, fused and not, and its integer module."""
    if kind not in _made:
        make, example = EXAMPLES[kind]
        fused, _ = dqconvert.prepare(make(), "int8-dq", example)
        fused.train()(*example).sum().backward()
        plain = copy.deepcopy(fused)
        plain.fuse = False
        plain.recompile()
        _made[kind] = fused, plain, dqconvert.convert(copy.deepcopy(fused).eval())
    return _made[kind]


def refused(kind, error, message, *args, integer=True, **kwargs):
    fused, plain, lowered = modes(kind)
    for module in (fused, plain):
        before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        for training in (True, False):
            with pytest.raises(error, match=message):
                module.train(training)(*args, **kwargs)
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in before.items())
        assert torch.equal(torch.get_rng_state(), state)
    if integer:
        with pytest.raises(error, match=message):
            lowered(*args)


LAYERS = {"GCN": "convs.0.lin", "GIN": "(convs.0.nn.lins.0|the model)", "SAGE": ".*", "GAT": "convs.0.lin"}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("kind", "columns"),
    [*itertools.product(LAYERS, [0, 1, 17]), ("GCN", 15), ("GIN", 8), ("SAGE", 24), ("GAT", 50_000)],
)
def test_features_of_another_width(kind, columns):
    message = rf"^x has {columns} columns?, {LAYERS[kind]} takes 16$"
    refused(kind, InputShapeError, message, torch.randn(40, columns), EDGES)
    with pytest.raises(RuntimeError):  # as the float model's
        modes(kind)[0](torch.randn(40, columns), EDGES)


def test_no_nodes_where_groups_are_counted():
    message = r"^x, batch: there are no rows, and the model was prepared on some; .* \(max.*\). Leave out graphs"
    refused("Read", InputShapeError, message, torch.randn(0, 16), EDGES[:, :0], torch.arange(0))


@pytest.mark.parametrize("shape", [(16,), (2, 40, 16), ()])
def test_features_that_are_no_matrix(shape):
    refused("GCN", InputShapeError, r"^x has shape .* and the model was prepared for 2$", torch.randn(shape), EDGES)


def test_weights_changed_in_shape_after_prepare():
    module = copy.deepcopy(modes("GCN")[0])
    module.convs[0].lin.weight = nn.Parameter(torch.randn(8, 20))
    for training in (True, False):
        with pytest.raises(InputShapeError, match=r"x has 16 columns, convs\.0\.lin takes 20"):
            module.train(training)(X, EDGES)


@pytest.mark.parametrize("entries", [150, 161, 1])
def test_weights_for_other_edges(entries):
    message = rf"^edge_weight has {entries} entries, and there are 160 edges of edge_index: one for each$"
    refused("Weighted", InputShapeError, message, X, EDGES, torch.rand(entries))


def test_a_batch_of_another_length():
    message = "^batch has 39 entries, and there are 40 rows of x: one for each$"
    refused("Pooled", InputShapeError, message, X, EDGES, torch.arange(39) // 10)
    refused("Pooled", InputIndexError, "group -1", X, EDGES, torch.arange(40) // 10 - 1)


@pytest.mark.parametrize("kind", ["GCN", "GIN", "SAGE", "GAT"])
def test_edges_to_nowhere(kind):
    text = "^edge_index names node {}, and there are 40 nodes: they are counted from 0$"
    refused(kind, InputIndexError, text.format(40), X, EDGES + 1)
    refused(kind, InputIndexError, text.format(-1), X, EDGES - 1)
    refused(kind, InputIndexError, "names node 39, and there are 0 nodes", X[:0], EDGES)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("GCN", torch.float32), ("GIN", torch.bool), ("SAGE", torch.uint8), ("GAT", torch.int16), ("GIN", torch.float32)],
)
def test_edges_of_another_type(kind, dtype):
    message = rf"^edge_index must hold integers \(torch.int64\), got {dtype}$"
    refused(kind, InputTypeError, message, X, EDGES.to(dtype))
    refused("Pooled", InputTypeError, f"^batch must hold.*{dtype}$", X, EDGES, torch.arange(40).to(dtype))


@pytest.mark.parametrize("kind", ["GCN", "GIN", "SAGE", "GAT"])
def test_edges_of_32_bits(kind):
    for module in modes(kind):
        assert torch.equal(module.eval()(X, EDGES.int()), module(X, EDGES))
    modes(kind)[0].train()(X, EDGES.int()).sum().backward()


def test_edges_in_another_shape():
    for edges in (EDGES.t(), torch.cat([EDGES, EDGES[:1]]), EDGES[0]):
        refused("GIN", InputIndexError, r"^edge_index must have shape \[2, num_edges\], got", X, edges)
    refused("GCN", InputTypeError, "edge_index", X, EDGES.tolist())
    refused("GCN", InputTypeError, "edge_index", X, EDGES.numpy())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("GCN", torch.float64), ("GIN", torch.bfloat16), ("SAGE", torch.float16), ("GAT", torch.float64)],
)
def test_features_of_another_type(kind, dtype):
    message = rf"^x is {dtype}, and the model computes in torch.float32: give x.to\(torch.float32\)$"
    refused(kind, InputTypeError, message, X.to(dtype), EDGES)
    refused(
        kind, InputTypeError, r"^x must hold floating-point values, got torch.int64: give x.float\(\)", X.long(), EDGES
    )


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["GCN", "GIN", "SAGE", "Pooled"])
def test_sparse_features(kind):
    rest = EXAMPLES[kind][1][1:]
    for sparse in (X.to_sparse(), X.to_sparse_csr()):
        message = rf"^x is a {sparse.layout} tensor, and .*: give x\.to_dense\(\)"
        refused(kind, InputTypeError, message, sparse, *rest)
    refused(kind, InputTypeError, r"rounds each value|give x.to_dense\(\)", X.to_sparse_csc(), *rest)


def test_sparse_features_of_a_layer_of_its_own():
    quantizer = modes("GCN")[0].convs[0].lin.quant.input
    with pytest.raises(InputTypeError, match=r"'convs.0.lin.quant.input' rounds each value.* give \.to_dense\(\)"):
        quantizer(X.to_sparse())


def test_weights_of_edges_in_a_column():
    weight = EXAMPLES["Weighted"][1][2]
    for module in modes("Weighted"):
        assert torch.equal(module.eval()(X, EDGES, weight[:, None]), module(X, EDGES, weight))
    refused("Weighted", InputShapeError, "^edge_weight has shape", X, EDGES, torch.rand(160, 2))
    refused("Weighted", InputTypeError, "^edge_weight must hold floating", X, EDGES, torch.ones(160).long())


def test_types_of_nodes_and_edges_are_named():
    x, edges = HETERO
    key = ("a", "to", "b")
    name = re.escape("edge_index_dict[('a', 'to', 'b')]")
    refused("Hetero", InputIndexError, f"^{name} names node", x, {**edges, key: edges[key] + 30})
    refused("Hetero", InputTypeError, f"^{name} must hold integers", x, {**edges, key: edges[key].float()})
    refused(
        "Hetero", InputShapeError, r"^x_dict\['b'\] has 13 columns, .* takes 12$", {**x, "b": torch.ones(20, 13)}, edges
    )


@pytest.mark.parametrize("wrong", [3.0, -0.1, float("nan"), float("inf")])
def test_probabilities_that_are_none(wrong):
    given = torch.full((40,), 0.5)
    given[7] = wrong
    refused("GCN", ConfigError, "must hold probabilities, from 0 to 1", X, EDGES, protect_prob=given, integer=False)
    x, edges = HETERO
    given = {"a": torch.full((40,), wrong)}
    refused("Hetero", ConfigError, "must hold probabilities", x, edges, protect_prob=given, integer=False)


def test_probabilities_of_unknown_nodes():
    x, edges = HETERO
    refused("GCN", ConfigError, "pass a tensor", X, EDGES, protect_prob={"a": torch.ones(40)}, integer=False)
    refused("Hetero", ConfigError, "'c'", x, edges, protect_prob={"c": torch.ones(40)}, integer=False)
    modes("Hetero")[0].train()(x, edges, protect_prob={"b": torch.ones(20)})
    for bounds in ((0.5, 0.1), (-0.1, 0.1), (0.0, 1.5), (float("nan"), 1.0)):
        with pytest.raises(ConfigError):
            dqconvert.DegreeProtection(*bounds)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("GCN", torch.float64), ("GIN", torch.bfloat16), ("SAGE", torch.float16), ("GAT", torch.float64)],
)
def test_integer_modules_of_models_of_other_types(kind, dtype):
    x, make = X.to(dtype), EXAMPLES[kind][0]
    module, _ = dqconvert.prepare(make().to(dtype), "int8-dq", (x, EDGES))
    module.train()(x, EDGES)
    expected, found = module.eval()(x, EDGES), dqconvert.convert(module)(x, EDGES)
    assert found.dtype == expected.dtype == dtype
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_module_that_was_cast_after_prepare_converts_as_one_that_was_cast_before(dtype):
    torch.manual_seed(0)
    x, edge_index = torch.randn(40, 16), torch.randint(40, (2, 160))
    model = GCN(16, 8, 2, 4)
    after = dqconvert.prepare(model, "int8-dq", (x, edge_index)).module.to(dtype)
    after(x.to(dtype), edge_index).sum().backward()
    before = dqconvert.prepare(model.to(dtype), "int8-dq", (x.to(dtype), edge_index)).module
    before.load_state_dict(after.state_dict())
    found, wanted = (dqconvert.convert(module.eval())(x.to(dtype), edge_index) for module in (after, before))
    assert found.dtype is dtype
    assert torch.equal(found, wanted)
    with pytest.raises(InputTypeError, match=rf"x is torch.float32, and the model computes in {dtype}"):
        dqconvert.convert(after)(x, edge_index)


@pytest.mark.parametrize("cast", ["half", "double", "bfloat16"])
def test_integer_modules_stay_in_their_types(cast):
    module = modes("GCN")[2]
    with pytest.raises(LoweringError, match="stays in the types that it was converted in"):
        getattr(module, cast)()
    with pytest.raises(LoweringError, match="stays in the types"):
        module.to(torch.float16)
    expected = module(X, EDGES)
    assert torch.equal(module.float().to("cpu")(X, EDGES), expected)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["GIN", "SAGE", "GAT", "Weighted", "Pooled", "Hetero"])
def test_no_memory_of_the_user_s_is_fixed(kind):
    make, example = EXAMPLES[kind]
    example = copy.deepcopy(example)
    module, _ = dqconvert.prepare(make(), "int8-dq", example)
    module.train()(*example).sum().backward()
    dqconvert.convert(module.eval())(*example)
    tensors = [*module.state_dict().values(), *(p.grad for p in module.parameters() if p.grad is not None)]
    for given in example:
        tensors += given.values() if isinstance(given, dict) else [given]
    assert all(tensor.untyped_storage().resizable() for tensor in tensors)


def test_edges_that_lie_apart_are_compared_where_they_lie():
    """A large list of edges that is transposed: the same graph, seen without a copy of it in every call."""
    edges = torch.randint(1000, (60_000, 2))
    module = modes("GCN")[2]
    x = torch.randn(1000, 16)
    expected = module(x, edges.t().contiguous())
    assert torch.equal(module(x, edges.t()), expected)
    computed = module.graph_memory.computed
    assert torch.equal(module(x, edges.t()), expected)
    assert module.graph_memory.computed == computed

"""`convert`: the integer module against the prepared module in evaluation, operation by operation and as a whole."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx import Interpreter
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    BatchNorm,
    GATConv,
    GCNConv,
    GINConv,
    GraphSAGE,
    SAGEConv,
    SGConv,
    TAGConv,
    aggr,
    global_add_pool,
    global_max_pool,
    global_mean_pool,
)

import dqconvert
from dqconvert.errors import InputTypeError, LoweringError
from dqconvert.kernels.integer.codes import check_numbers, quantize
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.linear import integer_linear
from dqconvert.lower.evaluation import evaluation_graph
from dqconvert.lower.values import Codes
from dqconvert.lower.walk import walk
from dqconvert.ops import op_name
from dqconvert.quant import FakeQuantize

NODES, EDGES, WIDTH = 60, 240, 16


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(WIDTH, WIDTH), GCNConv(WIDTH, WIDTH)
        self.norm, self.head = BatchNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x, edge_index):
        h = self.first(x, edge_index).relu()
        h = h + self.norm(self.second(h, edge_index)).relu()
        return self.head(nn.functional.dropout(h, 0.5, self.training))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        layers = (nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.first, self.second = GINConv(nn.Sequential(*layers)), SAGEConv(8, 8)

    def forward(self, x, edge_index):
        h = self.first(x, edge_index)
        g = h.relu_()
        return self.second(g, edge_index) + h


class PooledByName(nn.Module):
    """Calls the functions as most models do; they stay one node each."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.head, self.how = GCNConv(WIDTH, 8), nn.Linear(8, 3), how

    def forward(self, x, edge_index, batch):
        x = self.conv(x, edge_index).relu()
        if self.how == "sum":
            return self.head(global_add_pool(x, batch))
        return self.head(global_mean_pool(x, batch) if self.how == "mean" else global_max_pool(x, batch, size=4))


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool, self.head = GCNConv(WIDTH, 8), pool, nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        return self.head(self.pool(self.conv(x, edge_index).relu(), batch))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(20, WIDTH), GINConv(mlp())

    def forward(self, x, edge_index):
        return self.conv(self.embedding((x[:, 0].abs() * 5).long().clamp(max=19)), edge_index)


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


MODELS = {
    "GCNConv": lambda: GCNConv(WIDTH, 8),
    "GCN": lambda: GCN(WIDTH, 16, 2, 7),
    "GCN, cat": lambda: GCN(WIDTH, 16, 2, 7, jk="cat"),
    "GCN, batch norm": lambda: GCN(WIDTH, 16, 3, 7, norm="batch_norm", dropout=0.5),
    "GIN": lambda: GIN(WIDTH, 16, 2, 7),
    "GINConv": lambda: GINConv(mlp(), train_eps=True),
    "SAGEConv": lambda: SAGEConv(WIDTH, 8),
    "GraphSAGE": lambda: GraphSAGE(WIDTH, 16, 2, 7),
    "GraphSAGE, max": lambda: GraphSAGE(WIDTH, 16, 2, 7, aggr="max"),
    "GATConv": lambda: GATConv(WIDTH, 4, heads=4),
    "GAT": lambda: GAT(WIDTH, 16, 2, 7, heads=4),
    "residual": Residual,
    "in place": InPlace,
    "pooled": lambda: Pooled(global_add_pool),
    "pooled, sum by name": lambda: PooledByName("sum"),
    "pooled, mean by name": lambda: PooledByName("mean"),
    "pooled, max by name": lambda: PooledByName("max"),
    "pooled, aggregation": lambda: Pooled(aggr.MeanAggregation()),
    "pooled, mean": lambda: Pooled(global_mean_pool),
    "pooled, max": lambda: Pooled(global_max_pool),
    "embedding": Embedded,
    "SGConv": lambda: SGConv(WIDTH, 8, K=2),
    "TAGConv": lambda: TAGConv(WIDTH, 8, K=2),
    "GIN, cat": lambda: GIN(WIDTH, 16, 3, 7, norm="batch_norm", jk="cat", train_eps=True),
    "GCN, lstm": lambda: GCN(WIDTH, 16, 2, 7, jk="lstm"),
}

CHANNELS = {"weight": {"bits": 8, "granularity": "channel", "symmetric": True}}
CONFIGS = {"int8-dq": "int8-dq", "int4-dq": "int4-dq", "int8-qat": "int8-qat", "by channel": CHANNELS}
CASES = [
    *itertools.product([name for name in MODELS if name != "GCN, lstm"], ("int8-dq", "int4-dq")),
    *itertools.product(("GCN, batch norm", "GIN", "GraphSAGE, max"), ("int8-qat", "by channel")),
]


def a_graph(nodes=NODES, edges=EDGES):
    return torch.randn(nodes, WIDTH), torch.randint(nodes, (2, edges))


def inputs(name, nodes=NODES, edges=EDGES):
    graph = a_graph(nodes, edges)
    return (*graph, torch.arange(nodes) * 4 // nodes) if name.startswith("pooled") else graph


def trained(name, config="int8-dq"):
    return copy.deepcopy(_trained_once(name, config))


@functools.cache
def _trained_once(name, config):
    torch.manual_seed(len(name))
    example = inputs(name)
    module = dqconvert.prepare(MODELS[name](), CONFIGS[config], example).module
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        module.train()(*example).square().mean().backward()
        optimizer.step()
    return module.eval()


class Recorded(Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, root, graph):
        super().__init__(root, graph=graph)
        self.seen = {}

    def run_node(self, n):
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def padded(graph, args):
    return [*args, *[None] * (sum(node.op == "placeholder" for node in graph.nodes) - len(args))]


TIES = pytest.mark.xfail(
    strict=True,
    reason="its scales are so related that many products lie half way between two messages: last bits decide",
)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("name", "config"), [pytest.param(*case, marks=TIES if case == ("SGConv", "int8-dq") else ()) for case in CASES]
)
def test_every_operation_gives_the_codes_of_the_prepared_one(name, config):
    """Both graphs run side by side; codes that differ are set right, so that each operation is given the same.

    Where a sum in float, of products or of messages, lies half way between two codes, its last bit decides: either may
    come out. Everything else is computed in the same steps, ties included.
    """
    assert_codes_of_the_prepared_one(name, config, inputs(name, 90, 700))


EXTREME = {
    "one-hot": lambda x: nn.functional.one_hot(torch.arange(len(x)) % x.size(1), x.size(1)).float(),
    "beyond all ranges": lambda x: x * 1e30,
    "below all steps": lambda x: x * 1e-30,
    "some rows beyond": lambda x: torch.where(torch.arange(len(x)).unsqueeze(1) % 7 == 0, x * 1e30, x),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("features", EXTREME)
@pytest.mark.parametrize("name", ["GIN", "GAT"])
def test_every_operation_does_so_on_extreme_features(name, features):
    x, edge_index = inputs(name, 90, 700)
    assert_codes_of_the_prepared_one(name, "int8-dq", (EXTREME[features](x), edge_index))


def assert_codes_of_the_prepared_one(name, config, args):
    module = trained(name, config)
    graph = evaluation_graph(module)
    lowering = walk(graph, module)
    prepared = Recorded(module, graph)
    with torch.no_grad():
        prepared.run(*padded(graph, args))
    wanted, ties = {}, {}
    for node in graph.nodes:
        value = lowering.values[node]
        if isinstance(lowering.module(node), FakeQuantize) and isinstance(value, Codes):
            source = node.args[0]
            wanted[value.node] = (prepared.seen[node] / value.grid.scale + value.grid.zero).round()
            if op_name(source) in ("linear", "matmul", "scatter") or source in lowering.propagations:
                ties[value.node] = ((prepared.seen[source] / value.grid.scale) % 1 - 0.5).abs() < 2e-5
    checked = []

    class Corrected(Interpreter):
        def run_node(self, n):
            found = super().run_node(n)
            if n in wanted:
                steps = (found.float() - wanted[n]).abs()
                wrong = (steps > 0) & ~ties.get(n, torch.tensor(False))
                checked.append((n.name, steps.max().item(), wrong.float().mean().item()))
                return wanted[n].to(torch.uint8)
            return found

    with torch.no_grad():
        Corrected(lowering.program.root, graph=lowering.program.graph).run(*padded(graph, args))
    assert len(checked) >= 3
    assert max(step for _, step, _ in checked) <= 1, checked
    assert max(share for _, _, share in checked) <= 1e-3, checked


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_prepared_module(name):
    """Few differ, and by little; many, but still by little, where scales are so related that sums often lie half way
    between two codes (for "GIN, cat" one scale is near enough half of another): one that differs moves those after it.
    """
    module = trained(name)
    integer = dqconvert.convert(module)
    for nodes, edges in ((NODES, EDGES), (33, 0), (90, 700), (200, 20)):
        args = inputs(name, nodes, edges)
        with torch.no_grad():
            wanted = module(*args)
        found = integer(*args)
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert not found.requires_grad
        off = (found - wanted).abs()
        assert off.norm() < 0.03 * wanted.norm()
        assert (off > 1e-5).float().mean() < (0.2 if name in ("SGConv", "GIN, cat") else 0.02)


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GIN"])
def test_no_quantizer_and_no_float_weight_is_left(name):
    integer = dqconvert.convert(trained(name))
    assert not [m for m in integer.modules() if isinstance(m, FakeQuantize)]
    assert not list(integer.parameters())
    assert sum(b.dtype == torch.int16 for b in integer.buffers()) == sum(
        "integer_linear" in node.name for node in integer.graph.nodes
    )


INTEGERS = ("GCN", "GIN", "GIN, cat", "GraphSAGE", "GraphSAGE, max", *(name for name in MODELS if "pooled" in name))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_all_integers_has_nothing_in_float(name):
    assert dqconvert.convert(trained(name)).report.floats == ()


def test_floats_are_reported():
    report = dqconvert.convert(trained("GCN, lstm")).report
    assert any("softmax" in entry.op for entry in report.floats)
    assert all(entry.reason for entry in report.floats)
    assert "softmax" in str(report)
    assert report.to_dict()["ops"]["integer_linear"] == 4


def test_a_graph_is_prepared_once_and_changes_are_noticed():
    module = trained("GCN")
    integer = dqconvert.convert(module)
    x, edge_index = a_graph()
    memory = integer.graph_memory

    def agrees(x, edge_index):
        with torch.no_grad():
            wanted = module(x, edge_index)
        return ((integer(x, edge_index) - wanted).abs() > 1e-5).float().mean() < 0.02

    assert agrees(x, edge_index)
    computed = memory.computed
    assert agrees(x + 1, edge_index)
    assert agrees(x, edge_index.clone())
    assert memory.computed == computed
    edge_index[0, :50] = 3
    assert agrees(x, edge_index)
    assert memory.computed > computed
    assert agrees(x[:55], edge_index.clamp(max=54))


def test_edge_weights_that_are_given_are_compared_too():
    torch.manual_seed(0)
    x, edge_index = a_graph()
    weight = torch.rand(EDGES)
    module = dqconvert.prepare(GCNConv(WIDTH, 8), "int8-dq", (x, edge_index, weight)).module
    module.train()(x, edge_index, weight)
    module.eval()
    integer = dqconvert.convert(module)
    for given in (weight, weight * 0.5, weight):
        with torch.no_grad():
            wanted = module(x, edge_index, given)
        assert ((integer(x, edge_index, given) - wanted).abs() > 1e-5).float().mean() < 0.02


def test_the_prepared_module_and_the_inputs_stay_as_they_are():
    module = trained("GIN").train()
    before = copy.deepcopy(module.state_dict())
    x, edge_index = a_graph()
    given = x.clone(), edge_index.clone()
    integer = dqconvert.convert(module)
    integer(x, edge_index)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert torch.equal(x, given[0])
    assert torch.equal(edge_index, given[1])


def test_copies_pickles_threads_and_inference_mode():
    integer = dqconvert.convert(trained("GCN"))
    x, edge_index = a_graph()
    wanted = integer(x, edge_index)
    for other in (copy.deepcopy(integer), pickle.loads(pickle.dumps(integer))):
        assert torch.equal(other(x, edge_index), wanted)
    with torch.inference_mode():
        assert torch.equal(integer(x.clone(), edge_index.clone()), wanted)
    assert torch.equal(integer(x, edge_index), wanted)
    assert not integer.train().training
    graphs = [a_graph(nodes, 4 * nodes) for nodes in range(20, 40)]
    alone = [integer(*graph) for graph in graphs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda graph: integer(*graph), graphs))
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("wrong", [lambda e: e + NODES, lambda e: e - NODES, lambda e: e[:1]])
def test_edges_to_nowhere_are_refused(wrong):
    integer = dqconvert.convert(trained("GraphSAGE"))
    x, edge_index = a_graph()
    with pytest.raises(IndexError, match="edge_index"):
        integer(x, wrong(edge_index))


def test_edges_must_be_integers():
    integer = dqconvert.convert(trained("GCN"))
    x, edge_index = a_graph()
    with pytest.raises(TypeError, match="integers"):
        integer(x, edge_index.float())


def test_only_prepared_modules_are_converted():
    with pytest.raises(LoweringError, match="prepare"):
        dqconvert.convert(GCN(4, 4, 1))


def test_ranges_that_nobody_observed_are_named():
    module = dqconvert.prepare(MODELS["GCN"](), "int8-dq", a_graph()).module
    with pytest.raises(LoweringError, match=r"convs\.0\.quant\.message"):
        dqconvert.convert(module)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(value):
    module = trained("GCN")
    with torch.no_grad():
        module.convs[1].lin.weight[0, 0] = value
    with pytest.raises(LoweringError, match=r"convs\.1\.lin\.weight"):
        dqconvert.convert(module)


@pytest.mark.sample(5)
@pytest.mark.parametrize("config", ["int8-dq", "int4-dq"])
@pytest.mark.parametrize("name", ["GCN", "GAT", "GraphSAGE", "in place", "pooled, max", "TAGConv"])
def test_features_that_are_nan_are_refused(name, config):
    integer = dqconvert.convert(trained(name, config))
    x, *graph = inputs(name)
    x[3, 1] = torch.nan
    with pytest.raises(dqconvert.InputError, match="x holds NaN, for which there is no code"):
        integer(x, *graph)


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ["GCN", "GIN", "GraphSAGE", "GAT", "TAGConv"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_features_that_are_no_floats_are_an_error(name, dtype):
    """Bytes above all: they are no codes."""
    x, edge_index = a_graph()
    with pytest.raises(InputTypeError, match=rf"x must hold floating-point values, got {dtype}: give x.float\(\)"):
        dqconvert.convert(trained(name))(x.to(dtype), edge_index)


def test_features_are_looked_at_once():
    """By what quantizes them, or by themselves if something else reads them before."""

    def looks(module):
        graph = dqconvert.convert(module).graph
        return [node.target for node in graph.nodes if node.target is check_numbers or node.kwargs.get("name") == "x"]

    assert looks(trained("GIN")) == [quantize]
    assert looks(trained("GCN")) == [integer_linear]

    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.last = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

        def forward(self, x):
            return self.last(x.sort(0).values) + self.lin(x)

    module = dqconvert.prepare(Sorted(), "int8-dq", (torch.randn(9, WIDTH),)).module
    module(torch.randn(9, WIDTH))
    assert looks(module.eval()) == [check_numbers]


def test_sums_of_two_values_are_planes():
    """What GraphSAGE adds to what its neighbours send, in 8 bits: a few numbers, where a table would have 65,536."""
    integer = dqconvert.convert(trained("GraphSAGE"))
    finishes = [part for node in integer.graph.nodes for part in node.args if isinstance(part, Finish)]
    with_other = [finish for finish in finishes if finish.other is not None]
    tables = [integer.get_buffer(finish.table.target) for finish in with_other]
    assert [table.numel() for table in tables] == [5, 7], "codes, and what the module returns: their values"


def test_edge_weights_that_are_nan_are_refused():
    model, (x, edge_index) = GCN(WIDTH, 8, 2, 4), a_graph()
    weight = torch.rand(edge_index.size(1))
    module = dqconvert.prepare(model, "int8-dq", {"x": x, "edge_index": edge_index, "edge_weight": weight}).module
    module.train()(x, edge_index, edge_weight=weight)
    integer = dqconvert.convert(module)
    integer(x, edge_index, edge_weight=weight)
    weight[5] = torch.nan
    with pytest.raises(ValueError, match="edge_weight holds NaN"):
        integer(x, edge_index, edge_weight=weight)


def test_infinite_features_are_the_ends_of_the_grid():
    module = trained("GCN")
    x, edge_index = a_graph()
    x[3, 1], x[4, 2] = torch.inf, -torch.inf
    with torch.no_grad():
        expected = module.eval()(x, edge_index)
    assert (dqconvert.convert(module)(x, edge_index) - expected).abs().max() < 0.05

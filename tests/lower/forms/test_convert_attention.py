"""Attention in `convert`: operation by operation and as a whole, against the prepared module in evaluation."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.fx import Interpreter
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv, MessagePassing, SuperGATConv, TransformerConv
from torch_geometric.utils import softmax

import dqconvert
from dqconvert.lower.evaluation import evaluation_graph
from dqconvert.lower.runtime import in_edge_order
from dqconvert.lower.values import Codes
from dqconvert.lower.walk import walk
from dqconvert.quant import FakeQuantize

WIDTH, EDGE = 16, 3


class Weighed(MessagePassing):
    """Weighs neighbours by a softmax of any function of what two linear layers say of both ends."""

    def __init__(self, function, channels=8, node_dim=0):
        super().__init__(aggr="add", node_dim=node_dim)
        self.lin, self.score, self.function = nn.Linear(WIDTH, channels), nn.Linear(WIDTH, 1), function

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=self.lin(x), score=self.score(x))

    def message(self, x_j, score_i, score_j, index, size_i):
        return x_j * softmax(self.function(score_i + score_j), index, num_nodes=size_i)


class Told(nn.Module):
    """Returns the weights, too."""

    def __init__(self):
        super().__init__()
        self.conv = GATConv(WIDTH, 4, heads=2)

    def forward(self, x, edge_index):
        out, (_, weights) = self.conv(x, edge_index, return_attention_weights=True)
        return out, weights


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GATConv(WIDTH, 4, heads=4), GATConv(16, 5, heads=4, concat=False)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


def nodes_of_one_kind(nodes, edges):
    return torch.randn(nodes, WIDTH), torch.randint(nodes, (2, edges))


def with_edge_features(nodes, edges):
    return *nodes_of_one_kind(nodes, edges), torch.randn(edges, EDGE)


def nodes_of_two_kinds(nodes, edges):
    few = nodes // 2
    ends = torch.stack([torch.randint(nodes, (edges,)), torch.randint(few, (edges,))])
    return (torch.randn(nodes, WIDTH), torch.randn(few, WIDTH)), ends


CASES = {
    "GAT": (lambda: GATConv(WIDTH, 4, heads=4), nodes_of_one_kind),
    "GAT, one head": (lambda: GATConv(WIDTH, 6), nodes_of_one_kind),
    "GAT, mean": (lambda: GATConv(WIDTH, 5, heads=3, concat=False), nodes_of_one_kind),
    "GAT, mean, no bias": (lambda: GATConv(WIDTH, 5, heads=3, concat=False, bias=False), nodes_of_one_kind),
    "GAT, no loops": (lambda: GATConv(WIDTH, 4, heads=2, add_self_loops=False), nodes_of_one_kind),
    "GAT, edges": (lambda: GATConv(WIDTH, 4, heads=2, edge_dim=EDGE), with_edge_features),
    "GAT, two kinds": (lambda: GATConv((WIDTH, WIDTH), 4, heads=2, add_self_loops=False), nodes_of_two_kinds),
    "GAT, residual": (lambda: GATConv(WIDTH, 4, heads=2, residual=True), nodes_of_one_kind),
    "GAT, two layers": (TwoLayers, nodes_of_one_kind),
    "GAT, told": (Told, nodes_of_one_kind),
    "GATv2": (lambda: GATv2Conv(WIDTH, 4, heads=2), nodes_of_one_kind),
    "GATv2, edges": (lambda: GATv2Conv(WIDTH, 4, heads=2, edge_dim=EDGE, concat=False), with_edge_features),
    "Transformer": (lambda: TransformerConv(WIDTH, 4, heads=2), nodes_of_one_kind),
    "Transformer, mean": (lambda: TransformerConv(WIDTH, 4, heads=2, concat=False, beta=True), nodes_of_one_kind),
    "Transformer, edges": (lambda: TransformerConv(WIDTH, 4, heads=2, edge_dim=EDGE), with_edge_features),
    "SuperGAT": (lambda: SuperGATConv(WIDTH, 4, heads=2), nodes_of_one_kind),
    "AGNN": (AGNNConv, nodes_of_one_kind),
    "falling logits": (lambda: Weighed(torch.neg), nodes_of_one_kind),
    "logits up and down": (lambda: Weighed(torch.abs), nodes_of_one_kind),
}

BY_CHANNEL = {"weight": {"bits": 8, "granularity": "channel", "symmetric": True}}
RUNS = [
    *((name, "int8-dq") for name in CASES),
    *((name, "int4-dq") for name in ("GAT", "GAT, mean", "GATv2", "Transformer", "logits up and down")),
    *((name, "by channel") for name in ("GAT, two layers", "SuperGAT")),
]


@functools.cache
def _trained_once(name, config):
    torch.manual_seed(len(name))
    model, inputs = CASES[name]
    example = inputs(40, 160)
    module = dqconvert.prepare(model(), BY_CHANNEL if config == "by channel" else config, example).module
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        out = module.train()(*example)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
        optimizer.step()
    return module.eval()


def trained(name, config="int8-dq"):
    return copy.deepcopy(_trained_once(name, config))


def outputs(module, args):
    with torch.no_grad():
        found = module(*args)
    return torch.cat([part.flatten() for part in found]) if isinstance(found, tuple) else found


class Recorded(Interpreter):
    """Runs a graph and keeps every value; values in `given` are set right, so that what follows is given the same."""

    def __init__(self, root, graph, given=()):
        super().__init__(root, graph=graph)
        self.seen, self.given = {}, dict(given)

    def run_node(self, n):
        self.seen[n] = super().run_node(n)
        return self.given.get(n, self.seen[n])


def recorded(root, graph, args, given=()):
    runner = Recorded(root, graph, given)
    rest = sum(node.op == "placeholder" for node in graph.nodes) - len(args)
    with torch.no_grad():
        runner.run(*args, *[None] * rest)
    return runner.seen


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "config"), RUNS)
def test_every_operation_gives_the_codes_of_the_prepared_one(name, config):
    """Where a sum in float lies half way between two codes, its last bit decides: either may come out."""
    module = trained(name, config)
    graph = evaluation_graph(module)
    lowering = walk(graph, module)
    args = CASES[name][1](70, 600)
    prepared = recorded(module, graph, args)
    wanted, ties = {}, {}
    for node in graph.nodes:
        value = lowering.values[node]
        if isinstance(lowering.module(node), FakeQuantize) and isinstance(value, Codes):
            steps = prepared[node] / value.grid.scale + value.grid.zero
            wanted[value.node] = steps.round().to(torch.uint8)
            source = prepared[node.args[0]] / value.grid.scale
            ties[value.node] = (source % 1 - 0.5).abs() < 2e-5
    found = recorded(lowering.program.root, lowering.program.graph, args, wanted)
    assert len(wanted) >= 3
    for node, want in wanted.items():
        off = (found[node].int() - want.int()).abs()
        assert off.max() <= 1, node
        assert ((off > 0) & ~ties[node]).sum() <= 1e-3 * off.numel(), node


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_prepared_module(name):
    module = trained(name)
    integer = dqconvert.convert(module)
    for nodes, edges in ((40, 160), (33, 0), (70, 600), (120, 20)):
        args = CASES[name][1](nodes, edges)
        wanted, found = outputs(module, args), outputs(integer, args)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert ((found - wanted).abs() > 1e-5).float().mean() < 0.02
        assert torch.equal(outputs(integer, args), found)


@pytest.mark.parametrize("name", ["GAT", "GAT, one head", "GAT, mean", "GAT, no loops", "GAT, two layers", "GATv2"])
def test_graph_attention_has_nothing_in_float(name):
    assert dqconvert.convert(trained(name)).report.floats == ()


def test_a_layer_is_four_products_of_integers_and_no_gather():
    ops = dict(dqconvert.convert(trained("GAT, two layers")).report.ops)
    assert {name: ops.pop(name, 0) for name in ("integer_linear", "attention_codes", "integer_propagate")} == {
        "integer_linear": 6,
        "attention_codes": 2,
        "integer_propagate": 2,
    }
    assert ops.pop("add_heads") == 1
    assert not {"softmax", "index_select", "in_edge_order", "look_up_pairs", "mean", "quantize", "look_up_last"} & {
        *ops
    }


@pytest.mark.parametrize("name", ["GATv2", "GAT, edges", "Transformer", "falling logits", "logits up and down"])
def test_weights_stay_in_the_order_in_which_messages_read_them(name):
    ops = dqconvert.convert(trained(name)).report.ops
    assert ops.get("softmax_codes", 0) + ops.get("attention_codes", 0) == 1
    assert "softmax" not in ops
    assert "in_edge_order" not in ops


def test_weights_that_are_returned_are_in_the_order_of_the_edges():
    ops = dqconvert.convert(trained("GAT, told")).report.ops
    assert (ops["attention_codes"], ops["in_edge_order"], ops["integer_propagate"]) == (1, 1, 1)


def test_a_softmax_of_floats_stays_and_is_reported():
    """There are more sums of two codes than codes."""
    module = trained("GAT")
    module.get_submodule("quant.feature_2").fake_quant_enabled = False
    integer, args = dqconvert.convert(module), nodes_of_one_kind(70, 600)
    assert not {"softmax_codes", "attention_codes"} & {*integer.report.ops}
    assert [entry.op.rsplit(".", 1)[-1] for entry in integer.report.floats] == ["softmax"]
    assert ((integer(*args) - outputs(module, args)).abs() > 1e-5).float().mean() < 0.02


def test_in_edge_order_undoes_the_order():
    edges = torch.randperm(50)
    listed = torch.randint(256, (50, 3), dtype=torch.uint8)
    assert torch.equal(in_edge_order(listed[edges], edges), listed)


def test_edges_to_nowhere_are_refused():
    integer = dqconvert.convert(trained("GAT, two kinds"))
    x, edge_index = nodes_of_two_kinds(40, 160)
    for wrong in (edge_index + 40, edge_index - 40):
        with pytest.raises(IndexError):
            integer(x, wrong)

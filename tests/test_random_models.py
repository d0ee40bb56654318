"""Property: whatever PyG's layers are put together to, the graph computes what the model computes."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric.nn import (
    ARMAConv,
    BatchNorm,
    ChebConv,
    EdgeConv,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GENConv,
    GINConv,
    GINEConv,
    GraphConv,
    GraphNorm,
    LayerNorm,
    LEConv,
    RGCNConv,
    SAGEConv,
    SAGPooling,
    TAGConv,
    TopKPooling,
    TransformerConv,
    global_add_pool,
    global_max_pool,
    global_mean_pool,
)

import dqconvert
from checks import assert_same, evaluation, step
from dqconvert import QConfig

WIDTH, EDGE_WIDTH, RELATIONS = 6, 3, 2


def mlp(width):
    return nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


# Name: how to build it, and what it takes besides x and edge_index.
LAYERS = {
    "gcn": (lambda: GCNConv(WIDTH, WIDTH), ()),
    "weighted gcn": (lambda: GCNConv(WIDTH, WIDTH), ("edge_weight",)),
    "sage": (lambda: SAGEConv(WIDTH, WIDTH), ()),
    "sage max": (lambda: SAGEConv(WIDTH, WIDTH, aggr="max"), ()),
    "sage several": (lambda: SAGEConv(WIDTH, WIDTH, aggr=["mean", "std"]), ()),
    "graph": (lambda: GraphConv(WIDTH, WIDTH), ("edge_weight",)),
    "gat": (lambda: GATConv(WIDTH, WIDTH // 2, heads=2, dropout=0.1), ()),
    "gatv2": (lambda: GATv2Conv(WIDTH, WIDTH, edge_dim=EDGE_WIDTH), ("edge_attr",)),
    "transformer": (lambda: TransformerConv(WIDTH, WIDTH // 2, heads=2, edge_dim=EDGE_WIDTH), ("edge_attr",)),
    "gin": (lambda: GINConv(mlp(WIDTH), train_eps=True), ()),
    "gine": (lambda: GINEConv(mlp(WIDTH), edge_dim=EDGE_WIDTH), ("edge_attr",)),
    "edge": (lambda: EdgeConv(mlp(2 * WIDTH)), ()),
    "cheb": (lambda: ChebConv(WIDTH, WIDTH, K=2), ()),
    "tag": (lambda: TAGConv(WIDTH, WIDTH, K=2), ()),
    "arma": (lambda: ARMAConv(WIDTH, WIDTH), ()),
    "le": (lambda: LEConv(WIDTH, WIDTH), ()),
    "gen": (lambda: GENConv(WIDTH, WIDTH, num_layers=1, learn_t=True), ()),
    "rgcn": (lambda: RGCNConv(WIDTH, WIDTH, RELATIONS), ("edge_type",)),
    "gcn2": (lambda: GCN2Conv(WIDTH, alpha=0.1, theta=0.5, layer=1), ("x_0",)),
    "linear": (lambda: nn.Linear(WIDTH, WIDTH), None),
}
NORMS = {
    "none": (nn.Identity, False),
    "batch": (lambda: BatchNorm(WIDTH), False),
    "layer": (lambda: LayerNorm(WIDTH), True),
    "graph": (lambda: GraphNorm(WIDTH), True),
}
ACTIVATIONS = {"relu": F.relu, "elu": F.elu, "tanh": torch.tanh, "dropout": None, "none": lambda x: x}
JOINS = ("replace", "add", "concatenate", "gate")
POOLINGS = {"top-k": lambda: TopKPooling(WIDTH, 0.6), "sag": lambda: SAGPooling(WIDTH, 0.6)}
READOUTS = {"none": None, "add": global_add_pool, "mean": global_mean_pool, "max": global_max_pool}

BLOCK = st.fixed_dictionaries(
    {
        "layer": st.sampled_from(sorted(LAYERS)),
        "norm": st.sampled_from(sorted(NORMS)),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "join": st.sampled_from(JOINS),
        "again": st.booleans(),
    }
)
RECIPE = st.fixed_dictionaries(
    {
        "blocks": st.lists(BLOCK, min_size=1, max_size=4),
        "pooling": st.sampled_from([None, None, *sorted(POOLINGS)]),
        "pool_after": st.integers(0, 3),
        "shared": st.booleans(),
        "readout": st.sampled_from(sorted(READOUTS)),
        "seed": st.integers(0, 2**16),
    }
)


class Composed(nn.Module):
    """A model made from a recipe."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        blocks = recipe["blocks"]
        self.layers = nn.ModuleList([LAYERS[block["layer"]][0]() for block in blocks])
        if recipe["shared"]:  # blocks of the same kind are one and the same layer
            first = {}
            self.layers = nn.ModuleList(
                [first.setdefault(block["layer"], layer) for block, layer in zip(blocks, self.layers, strict=True)]
            )
        self.norms = nn.ModuleList([NORMS[block["norm"]][0]() for block in blocks])
        self.joins = nn.ModuleList(
            [nn.Linear(2 * WIDTH, WIDTH) if block["join"] == "concatenate" else nn.Identity() for block in blocks]
        )
        self.pooling = POOLINGS[recipe["pooling"]]() if recipe["pooling"] else None
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x, edge_index, edge_weight, edge_attr, edge_type, batch):
        given = {"edge_weight": edge_weight, "edge_attr": edge_attr, "edge_type": edge_type, "x_0": x}
        for number, block in enumerate(self.recipe["blocks"]):
            h = self.run(number, block, x, edge_index, given)
            if block["again"]:
                h = self.run(number, block, h, edge_index, given)
            h = self.norms[number](h, batch) if NORMS[block["norm"]][1] else self.norms[number](h)
            activation = ACTIVATIONS[block["activation"]]
            h = F.dropout(h, 0.2, training=self.training) if activation is None else activation(h)
            if block["join"] == "add":
                h = x + h
            elif block["join"] == "gate":
                h = torch.sigmoid(h) * x
            elif block["join"] == "concatenate":
                h = self.joins[number](torch.cat([x, h], dim=-1))
            x = h
            if self.pooling is not None and number == min(self.recipe["pool_after"], len(self.layers) - 1):
                weighted = torch.cat([edge_weight.view(-1, 1), edge_attr, edge_type.view(-1, 1).to(x.dtype)], dim=-1)
                x, edge_index, kept, batch, _, _ = self.pooling(x, edge_index, weighted, batch)
                edge_weight, edge_attr, edge_type = kept[:, 0], kept[:, 1:-1], kept[:, -1].long()
                given = {"edge_weight": edge_weight, "edge_attr": edge_attr, "edge_type": edge_type}
                given["x_0"] = x
        readout = READOUTS[self.recipe["readout"]]
        return self.head(x if readout is None else readout(x, batch))

    def run(self, number, block, x, edge_index, given):
        names = LAYERS[block["layer"]][1]
        if names is None:
            return self.layers[number](x)
        if names == ("x_0",):
            return self.layers[number](x, given["x_0"], edge_index)
        return self.layers[number](x, edge_index, *(given[name] for name in names))


def inputs(nodes, edges, graphs, seed):
    """Graphs side by side, each with edges of its own."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.arange(nodes) * graphs // nodes
    per_graph = [edges * (graph + 1) // graphs - edges * graph // graphs for graph in range(graphs)]
    parts = []
    for graph, number in enumerate(per_graph):
        members = (batch == graph).nonzero().view(-1)
        parts.append(members[torch.randint(len(members), (2, number), generator=generator)])
    return (
        torch.randn(nodes, WIDTH, generator=generator),
        torch.cat(parts, dim=1),
        torch.rand(edges, generator=generator) + 0.5,
        torch.randn(edges, EDGE_WIDTH, generator=generator),
        torch.randint(RELATIONS, (edges,), generator=generator),
        batch,
    )


# A failing recipe is small enough as it is, and seconds to shrink. The parts run side by side.
PARTS, CASES = 5, 200
OPTIONS = {
    "phases": [Phase.explicit, Phase.generate],
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def recipes(number, part, check):
    """Checks a number of recipes; which ones depends on the part alone."""
    found = []

    @seed(part)
    @settings(max_examples=number, **OPTIONS)
    @given(RECIPE)
    def run(recipe):
        found.append(recipe)
        check(recipe)

    run()
    assert len(found) == number


@pytest.mark.study
def test_the_recipes_show_what_they_are_for():
    """At least twelve types of layers, and every way to put them together, each several times."""
    found = []
    for part in range(PARTS):
        recipes(CASES // PARTS, part, found.append)
    assert len(found) == CASES
    blocks = [block for recipe in found for block in recipe["blocks"]]
    types = Counter(type(LAYERS[block["layer"]][0]()) for block in blocks)
    assert sum(number >= 3 for number in types.values()) >= 12
    for join in JOINS:
        assert sum(block["join"] == join for block in blocks) >= 10
    assert sum(block["again"] for block in blocks) >= 10
    shared = [[block["layer"] for block in recipe["blocks"]] for recipe in found if recipe["shared"]]
    assert sum(len(set(layers)) < len(layers) for layers in shared) >= 3
    for pooling in POOLINGS:
        assert sum(recipe["pooling"] == pooling for recipe in found) >= 10


@pytest.mark.study
@pytest.mark.parametrize("part", range(PARTS))
def test_float_identity(part):
    recipes(CASES // PARTS, part, is_float)


def test_float_identity_of_a_few():
    recipes(4, PARTS + 1, is_float)


def is_float(recipe):
    torch.manual_seed(recipe["seed"])
    model = Composed(recipe)
    module, report = dqconvert.prepare(model, QConfig(), inputs(15, 36, 2, recipe["seed"]))
    assert not [left for left in report.left_float if left.reason != "by the config"]
    other = inputs(22, 61, 3, recipe["seed"] + 1)
    assert_same(step(copy.deepcopy(module), other), step(copy.deepcopy(model), other))
    assert_same(evaluation(module, other), evaluation(model, other))


@pytest.mark.parametrize("number", [2, pytest.param(25, marks=pytest.mark.study)])
def test_a_training_step(number):
    """Every gradient that float has is there, finite; evaluation is finite and draws nothing."""
    recipes(number, PARTS, trains)


def trains(recipe):
    torch.manual_seed(recipe["seed"])
    model = Composed(recipe)
    module, _ = dqconvert.prepare(model, "int8-dq", inputs(15, 36, 2, recipe["seed"]))
    other = inputs(22, 61, 3, recipe["seed"] + 1)
    _, wanted, _ = step(model, other)
    _, found, _ = step(module, other)
    assert set(wanted) <= set(found)
    assert all(gradient.isfinite().all() for gradient in found.values())
    first, second = evaluation(module, other), evaluation(module, other)
    assert first[0].isfinite().all()
    assert_same(first, second)

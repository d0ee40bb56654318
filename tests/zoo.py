"""Layers and models with example inputs, shared by the tests: what a PyG user might bring to ``prepare``."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    PNA,
    ChebConv,
    EdgeCNN,
    EdgeConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    GraphConv,
    GraphSAGE,
    NNConv,
    PNAConv,
    SAGEConv,
    TransformerConv,
    global_add_pool,
    global_mean_pool,
)

# (nodes, edges) of the graphs that models are traced on, and of another that they must work on as well.
TRACED, OTHER = (11, 30), (23, 71)
WIDTH, EDGE_WIDTH = 6, 3


def graph(size=TRACED, seed=0, width=WIDTH):
    """x and edge_index of a random graph with a hub, a self-loop, a duplicate edge and an isolated node."""
    nodes, edges = size
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes - 1, (2, edges), generator=generator)
    edge_index[1, : edges // 4] = 0
    edge_index[:, -1] = edge_index[:, -2]
    edge_index[1, 0] = edge_index[0, 0]
    return torch.randn(nodes, width, generator=generator), edge_index


def edge_weight(size=TRACED):
    return torch.rand(size[1], generator=torch.Generator().manual_seed(1)) + 0.5


def edge_attr(size=TRACED):
    return torch.randn(size[1], EDGE_WIDTH, generator=torch.Generator().manual_seed(2))


def batch(size=TRACED):
    return torch.arange(size[0]) * 3 // size[0]


def data(size=TRACED, batched=True):
    """A ``Data``, or a ``Batch`` of three graphs that grow with ``size``."""
    if not batched:
        x, edge_index = graph(size)
        return Data(x=x, edge_index=edge_index)
    parts = [graph((size[0] + 2 * part, size[1] + 3 * part), seed=part) for part in range(3)]
    return Batch.from_data_list([Data(x=x, edge_index=edge_index) for x, edge_index in parts])


def x_only(size):
    return graph(size)


def with_weight(size):
    return *graph(size), edge_weight(size)


def with_attr(size):
    return *graph(size), edge_attr(size)


def with_batch(size):
    return *graph(size), batch(size)


def as_data(size):
    return (data(size, batched=False),)


def as_batch(size):
    return (data(size),)


def mlp(*widths):
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def degrees():
    return torch.tensor([2, 5, 4, 1, 0, 0, 1])


# -- models that only tests need ---------------------------------------------------------------------------------


class WeightedGCN(nn.Module):
    """Takes edge weights and carries what users put on their models."""

    def __init__(self):
        super().__init__()
        self.num_classes = 4
        self.conv1 = GCNConv(WIDTH, 8)
        self.conv2 = GCNConv(8, self.num_classes)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def reset_parameters(self):
        self.conv1.reset_parameters()
        self.conv2.reset_parameters()

    def encode(self, x, edge_index, edge_weight=None):
        return F.relu(self.conv1(x, edge_index, edge_weight))

    def forward(self, x, edge_index, edge_weight=None):
        h = self.encode(x, edge_index, edge_weight)
        h = F.dropout(h, 0.5, training=self.training)
        return F.log_softmax(self.conv2(h, edge_index, edge_weight), dim=-1)


class GraphClassifier(nn.Module):
    """GINE-like features from edge attributes are left out: x, edge_index and batch, pooled per graph."""

    def __init__(self):
        super().__init__()
        self.conv1 = GINConv(mlp(WIDTH, 8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.conv2 = GINConv(mlp(8, 8), train_eps=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x, edge_index, batch):
        h = F.relu(self.norm(self.conv1(x, edge_index)))
        h = h + self.conv2(h, edge_index)
        return self.head(global_add_pool(h, batch))


class DataClassifier(GraphClassifier):
    """The same on a ``Data``."""

    def forward(self, data):
        return super().forward(data.x, data.edge_index, data.batch)


class DataNodes(nn.Module):
    """One output per node of a ``Data``; no batch."""

    def __init__(self):
        super().__init__()
        self.conv1 = SAGEConv(WIDTH, 8)
        self.conv2 = GATConv(8, 4)

    def forward(self, data):
        x, edge_index = data.x, data.edge_index
        h = F.relu(self.conv1(x, edge_index))
        return self.conv2(h, edge_index)


class EdgeFeatures(nn.Module):
    """Edge attributes all the way, then a mean over each graph where there are several."""

    def __init__(self):
        super().__init__()
        self.conv1 = GINEConv(mlp(WIDTH, 8), edge_dim=EDGE_WIDTH)
        self.conv2 = GATv2Conv(8, 4, heads=2, edge_dim=EDGE_WIDTH)

    def forward(self, x, edge_index, edge_attr, batch=None):
        h = self.conv2(F.relu(self.conv1(x, edge_index, edge_attr)), edge_index, edge_attr)
        return h if batch is None else global_mean_pool(h, batch)


class NoisyInTraining(nn.Module):
    """Does structurally different things in training and in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv1 = GCNConv(WIDTH, 8)
        self.conv2 = GCNConv(8, 4)

    def forward(self, x, edge_index):
        h = self.conv1(x, edge_index)
        if self.training:
            h = h + 0.1 * torch.randn_like(h)
        return self.conv2(F.relu(h), edge_index)


class Tied(nn.Module):
    """Calls one layer twice, with a residual connection around the second call."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(WIDTH, WIDTH)

    def forward(self, x, edge_index):
        h = F.relu(self.conv(x, edge_index))
        return h + self.conv(h, edge_index)


class Siamese(nn.Module):
    """Two encoders that are one and the same module."""

    def __init__(self):
        super().__init__()
        self.left = GCN(WIDTH, 8, num_layers=2, out_channels=4)
        self.right = self.left

    def forward(self, x, edge_index):
        return self.left(x, edge_index) * self.right(x.flip(0), edge_index)


class Gated(nn.Module):
    """Branches on the values of a tensor: no graph can hold that."""

    def forward(self, x):
        if x.mean() > 0:
            return x * 2
        return x


class HasGated(nn.Module):
    """Can be traced but for one submodule."""

    def __init__(self):
        super().__init__()
        self.conv1 = GCNConv(WIDTH, 8)
        self.gate = Gated()
        self.conv2 = GCNConv(8, 4)

    def forward(self, x, edge_index):
        return self.conv2(self.gate(self.conv1(x, edge_index)), edge_index)


class GatedRoot(nn.Module):
    """Branches on values in its own forward."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(WIDTH, 4)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        if h.sum() > 0:
            return h
        return -h


# -- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """How to build a model and its inputs of a given size."""

    factory: Any
    make_inputs: Any = x_only

    def model(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.factory()

    def inputs(self, size=TRACED):
        return self.make_inputs(size)


PNA_OPTIONS = {"aggregators": ["mean", "min", "max", "std"], "scalers": ["identity", "amplification"]}

LAYERS = {
    "GCNConv": Case(lambda: GCNConv(WIDTH, 5)),
    "GCNConv_weight": Case(lambda: GCNConv(WIDTH, 5), with_weight),
    "GCNConv_plain": Case(lambda: GCNConv(WIDTH, 5, normalize=False, bias=False), with_weight),
    "GCNConv_cached": Case(lambda: GCNConv(WIDTH, 5, cached=True)),
    "GATConv": Case(lambda: GATConv(WIDTH, 4, heads=2, dropout=0.3)),
    "GATConv_attr": Case(lambda: GATConv(WIDTH, 4, heads=2, concat=False, edge_dim=EDGE_WIDTH), with_attr),
    "GATv2Conv": Case(lambda: GATv2Conv(WIDTH, 4, heads=2, dropout=0.3)),
    "GATv2Conv_attr": Case(lambda: GATv2Conv(WIDTH, 4, edge_dim=EDGE_WIDTH, residual=True), with_attr),
    "GINConv": Case(lambda: GINConv(mlp(WIDTH, 8, 5), train_eps=True)),
    "GINEConv": Case(lambda: GINEConv(mlp(WIDTH, 8, 5), edge_dim=EDGE_WIDTH), with_attr),
    "SAGEConv": Case(lambda: SAGEConv(WIDTH, 5)),
    "SAGEConv_max": Case(lambda: SAGEConv(WIDTH, 5, aggr="max", normalize=True, project=True)),
    "GraphConv": Case(lambda: GraphConv(WIDTH, 5)),
    "GraphConv_weight": Case(lambda: GraphConv(WIDTH, 5, aggr="mean"), with_weight),
    "PNAConv": Case(lambda: PNAConv(WIDTH, 4, deg=degrees(), **PNA_OPTIONS)),
    "PNAConv_attr": Case(
        lambda: PNAConv(WIDTH, 4, deg=degrees(), edge_dim=EDGE_WIDTH, towers=2, **PNA_OPTIONS), with_attr
    ),
    "TransformerConv": Case(lambda: TransformerConv(WIDTH, 4, heads=2, dropout=0.2, beta=True)),
    "TransformerConv_attr": Case(lambda: TransformerConv(WIDTH, 4, edge_dim=EDGE_WIDTH), with_attr),
    "ChebConv": Case(lambda: ChebConv(WIDTH, 5, K=3)),
    "EdgeConv": Case(lambda: EdgeConv(mlp(2 * WIDTH, 8, 5))),
    "NNConv": Case(lambda: NNConv(WIDTH, 5, mlp(EDGE_WIDTH, 8, WIDTH * 5)), with_attr),
}

BASIC = {
    "GCN": Case(lambda: GCN(WIDTH, 8, 2, 4, dropout=0.4)),
    "GCN_batch_norm": Case(lambda: GCN(WIDTH, 8, 3, 4, norm="batch_norm", dropout=0.4)),
    "GCN_jk_cat": Case(lambda: GCN(WIDTH, 8, 2, 4, jk="cat"), with_weight),
    "GraphSAGE": Case(lambda: GraphSAGE(WIDTH, 8, 2, 4, dropout=0.4)),
    "GraphSAGE_layer_norm": Case(lambda: GraphSAGE(WIDTH, 8, 2, 4, norm="layer_norm", jk="max")),
    "GIN": Case(lambda: GIN(WIDTH, 8, 2, 4, dropout=0.4)),
    "GIN_graph_norm": Case(lambda: GIN(WIDTH, 8, 3, 4, norm="graph_norm", jk="last")),
    "GIN_jk_lstm": Case(lambda: GIN(WIDTH, 8, 2, 4, norm="batch_norm", jk="lstm")),
    "GAT": Case(lambda: GAT(WIDTH, 8, 2, 4, heads=2, dropout=0.4)),
    "GAT_attr": Case(lambda: GAT(WIDTH, 8, 2, 4, edge_dim=EDGE_WIDTH, v2=True, jk="cat"), with_attr),
    "PNA": Case(lambda: PNA(WIDTH, 8, 2, 4, deg=degrees(), norm="batch_norm", **PNA_OPTIONS)),
    "EdgeCNN": Case(lambda: EdgeCNN(WIDTH, 8, 2, 4, norm="layer_norm", dropout=0.4)),
}

MODELS = {
    "WeightedGCN": Case(WeightedGCN, with_weight),
    "WeightedGCN_absent": Case(WeightedGCN),
    "GraphClassifier": Case(GraphClassifier, with_batch),
    "DataClassifier": Case(DataClassifier, as_batch),
    "DataNodes": Case(DataNodes, as_data),
    "EdgeFeatures": Case(EdgeFeatures, with_attr),
    "EdgeFeatures_batch": Case(EdgeFeatures, lambda size: (*with_attr(size), batch(size))),
    "NoisyInTraining": Case(NoisyInTraining),
    "Tied": Case(Tied),
    "Siamese": Case(Siamese),
}

CASES = {**LAYERS, **BASIC, **MODELS}


# -- running models ----------------------------------------------------------------------------------------------


def run(model, inputs, seed=1, **kwargs):
    """The model's output in its present mode, with random numbers from ``seed``."""
    torch.manual_seed(seed)
    return model(*inputs, **kwargs)


def evaluate(model, inputs, **kwargs):
    """The model's output in evaluation mode; its modes are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        out = model(*inputs, **kwargs)
    for module, mode in modes.items():
        module.training = mode
    return out


def train_step(model, inputs, seed=1, **kwargs):
    """Output and gradients (by parameter name) of one training step with a fixed loss."""
    model.train()
    model.zero_grad(set_to_none=True)
    out = run(model, inputs, seed, **kwargs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def assert_step_close(left, right, exact=True):
    """Outputs equal bit for bit; gradients but for the order in which floats are added up.

    Not ``exact``: outputs likewise. Fused linear layers add up in an order of their own; a step of a grid is far more.
    """
    if exact:
        assert_same(left[0], right[0])
    torch.testing.assert_close(left[0], right[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    if not exact:
        torch.testing.assert_close(left[1], right[1], rtol=1e-3, atol=1e-4, equal_nan=True)
        return
    torch.testing.assert_close(left[1], right[1], rtol=1e-5, atol=1e-6, equal_nan=True)


def assert_same(left, right):
    """Equal bit for bit, not-a-number included; tensors, or dicts of them."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)

"""Which PyG layers and models convert: one row each, and what happened to it.

    python examples/coverage_table.py                    # everything, as a table
    python examples/coverage_table.py GATConv "TopK*"    # some rows
    python examples/coverage_table.py --json
    python examples/coverage_table.py --markdown > examples/COVERAGE.md

A row passes if the model

- traces, that is: ``prepare`` takes it in one call,
- computes in its graph what the float model computes, bit for bit, in training (outputs, gradients, buffers) and in
  evaluation, on inputs of other sizes than those it was traced on,
- trains a step under ``int8-dq`` and ``int4-dq``, with a finite gradient for every parameter that has one in float,
- evaluates to finite values afterwards,
- has its weights, messages and aggregates quantized, and
- converts to an integer module whose outputs are those of the prepared one but for roundings that fall on a tie.

Of the integer module it shows how many of the multiply-adds are of integers, and how many operations stay in float.

To add a model, add a line to one of the tables: how to build it, and which inputs it takes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex, seed_everything
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing, Sequential, aggr, conv, models, norm, pool, to_hetero
from torch_geometric.utils import degree, scatter, softmax, to_dense_batch, trim_to_layer
from torch_geometric.utils import to_torch_coo_tensor as to_coo
from torch_geometric.utils import to_torch_csc_tensor as to_csc
from torch_geometric.utils import to_torch_csr_tensor as to_csr

import dqconvert
from dqconvert import QConfig
from dqconvert.bench.environment import environment
from dqconvert.bench.multiply_adds import multiply_adds

# -- inputs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """The sizes of a run's graphs. All numbers differ, within a size and between the two.

    Attributes:
        nodes: Nodes; in the heterogeneous graph, papers.
        edges: Edges; in the heterogeneous graph, citations.
        graphs: Graphs in the batch, one after the other.
        authors: Nodes of the other type.
        writes: Edges between the two types, one way,
        rev: and the other way.
        negative: Edges of a second edge_index over the same nodes.
        hyperedges: Hyperedges.
        pairs: Pairs of nodes to score.
        hops: Nodes and edges per hop of a sampled neighbourhood.
    """

    nodes: int
    edges: int
    graphs: int
    authors: int
    writes: int
    rev: int
    negative: int
    hyperedges: int
    pairs: int
    hops: tuple[tuple[int, ...], tuple[int, ...]]


SMALL = Size(14, 40, 2, 9, 33, 21, 31, 6, 11, ((4, 5, 5), (15, 25)))
LARGE = Size(23, 71, 3, 17, 52, 37, 47, 10, 13, ((5, 8, 10), (27, 44)))
WIDTH, EDGE_WIDTH, RELATIONS, CLASSES = 8, 5, 3, 4
USERS = 30
"""Nodes of a model that has one embedding per node: the same at both sizes."""

METADATA = (
    ["paper", "author"],
    [("paper", "cites", "paper"), ("author", "writes", "paper"), ("paper", "rev", "author")],
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def choice(number: int, upper: int, seed: int = 2) -> Tensor:
    return torch.randint(upper, (number,), generator=seeded(seed))


def batch(size: Size) -> Tensor:
    return torch.arange(size.nodes) * size.graphs // size.nodes


def edges(nodes: int, number: int, seed: int = 3, graphs: int = 1) -> Tensor:
    """Draws edges within each graph, sorted by target; the first node is a hub, the last has no edge."""
    of_node = torch.arange(nodes) * graphs // nodes
    parts = []
    for graph in range(graphs):
        start, end = int((of_node < graph).sum()), int((of_node <= graph).sum()) - (graph == graphs - 1)
        share = number * (graph + 1) // graphs - number * graph // graphs
        part = torch.randint(start, end, (2, share), generator=seeded(seed + graph))
        part[1, : share // 4] = start
        parts.append(part)
    edge_index = torch.cat(parts, dim=1)
    return edge_index[:, edge_index[1].argsort(stable=True)]


def across(sources: int, targets: int, number: int, seed: int = 4) -> Tensor:
    """Draws edges from nodes of one kind to nodes of another, sorted by target."""
    return torch.stack([choice(number, sources, seed), choice(number, targets, seed + 1).sort().values])


def edge_index(size: Size) -> Tensor:
    return edges(size.nodes, size.edges, graphs=size.graphs)


def sampled(size: Size) -> Tensor:
    """Returns the edges of a sampled neighbourhood: those of a hop end at the nodes that the hop before found."""
    nodes, number = size.hops
    found, parts = [0], []
    for hop, count in enumerate(number):
        found.append(found[-1] + nodes[hop])
        part = across(found[-1] + nodes[hop + 1], nodes[hop], count, seed=hop)
        part[1] += found[-2]
        parts.append(part)
    return torch.cat(parts, dim=1)


def x_dict(size: Size) -> dict[str, Tensor]:
    return {"paper": normal(size.nodes, WIDTH), "author": normal(size.authors, WIDTH, seed=5)}


def edge_index_dict(size: Size) -> dict[tuple[str, str, str], Tensor]:
    return {
        ("paper", "cites", "paper"): edges(size.nodes, size.edges),
        ("author", "writes", "paper"): across(size.authors, size.nodes, size.writes),
        ("paper", "rev", "author"): across(size.nodes, size.authors, size.rev),
    }


def adjacency(size: Size, to_sparse: Callable[..., Tensor]) -> Tensor:
    """Returns the adjacency matrix, transposed as PyG wants it."""
    return to_sparse(edge_index(size).unique(dim=1).flip(0), size=(size.nodes, size.nodes))


def data(size: Size) -> Data:
    found = Data(x=normal(size.nodes, WIDTH), edge_index=edge_index(size), batch=batch(size))
    found.edge_attr, found.pos = normal(size.edges, EDGE_WIDTH), normal(size.nodes, 3, seed=6)
    return found


def hetero_data(size: Size) -> HeteroData:
    found = HeteroData()
    for node_type, features in x_dict(size).items():
        found[node_type].x = features
    for edge_type, index in edge_index_dict(size).items():
        found[edge_type].edge_index = index
    return found


INPUTS: dict[str, Callable[[Size], Any]] = {
    "x": lambda s: normal(s.nodes, WIDTH),
    "x_0": lambda s: normal(s.nodes, WIDTH, seed=7),
    "positive": lambda s: normal(s.nodes, WIDTH).abs() + 0.1,
    "both": lambda s: (normal(s.nodes, WIDTH), normal(s.authors, WIDTH, seed=5)),
    "pair": lambda s: (normal(s.nodes, WIDTH), normal(s.authors, WIDTH - 2, seed=5)),
    "history": lambda s: normal(s.nodes, 3, WIDTH),
    "series": lambda s: normal(3, s.nodes, WIDTH),
    "users": lambda s: normal(USERS, WIDTH),
    "pos": lambda s: normal(s.nodes, 3, seed=6),
    "normal": lambda s: F.normalize(normal(s.nodes, 3, seed=8)),
    "z": lambda s: choice(s.nodes, 9),
    "y": lambda s: choice(s.nodes, CLASSES),
    "mask": lambda s: torch.arange(s.nodes) % 2 == 0,
    "u": lambda s: normal(s.graphs, WIDTH, seed=9),
    "batch": batch,
    "node_type": lambda s: choice(s.nodes, 3),
    "edge_index": edge_index,
    "across": lambda s: across(s.nodes, s.authors, s.writes),
    "among_users": lambda s: edges(USERS, s.edges),
    "sampled": sampled,
    "neg_edge_index": lambda s: edges(s.nodes, s.negative, seed=10),
    "edge_label_index": lambda s: across(s.nodes, s.nodes, s.pairs),
    "user_pairs": lambda s: across(USERS, USERS, s.pairs),
    "mesh": lambda s: torch.stack([choice(4 * s.nodes, s.nodes), torch.arange(s.nodes).repeat_interleave(4)]),
    "hyperedge_index": lambda s: across(s.nodes, s.hyperedges, s.edges),
    "hyperedge_attr": lambda s: normal(s.hyperedges, WIDTH),
    "edge_weight": lambda s: torch.rand(s.edges, generator=seeded(11)) + 0.5,
    "edge_attr": lambda s: normal(s.edges, EDGE_WIDTH),
    "wide_edge_attr": lambda s: normal(s.edges, WIDTH),
    "pseudo": lambda s: torch.rand(s.edges, 3, generator=seeded(12)),
    "edge_type": lambda s: choice(s.edges, RELATIONS),
    "num_sampled_nodes_per_hop": lambda s: list(s.hops[0]),
    "num_sampled_edges_per_hop": lambda s: list(s.hops[1]),
    "csr": lambda s: adjacency(s, to_csr),
    "csc": lambda s: adjacency(s, to_csc),
    "coo": lambda s: adjacency(s, to_coo),
    "EdgeIndex": lambda s: EdgeIndex(edge_index(s), sparse_size=(s.nodes, s.nodes), sort_order="col"),
    "x_dict": x_dict,
    "edge_index_dict": edge_index_dict,
    "data": data,
    "hetero_data": hetero_data,
    "true": lambda s: True,
}


# -- models that only the tables need ----------------------------------------------------------------------------


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Pooled(nn.Module):
    """Graph classification with a pooling layer between two convolutions."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv.GCNConv(WIDTH, WIDTH), conv.GCNConv(WIDTH, WIDTH)
        self.pooling, self.lin = pooling, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.conv1(x, edge_index).relu()
        pooled = self.pooling(x, edge_index, batch=batch)
        x, edge_index = pooled[:2]
        batch = pooled[2] if len(pooled) == 4 else pooled[3]  # edge pooling has no edge_attr
        x = self.conv2(x, edge_index).relu()
        return self.lin(pool.global_mean_pool(x, batch))


class Readout(nn.Module):
    """Graph classification with one vector per graph from an aggregation, a function or a layer."""

    def __init__(self, readout: Callable[..., Any], width: int = WIDTH) -> None:
        super().__init__()
        self.conv, self.readout, self.lin = conv.GCNConv(WIDTH, WIDTH), readout, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.conv(x, edge_index).relu()
        out = self.readout(x, batch)
        return self.lin(out[0].mean(1) if isinstance(out, tuple) else out)


class Clustered(nn.Module):
    """Max or average pooling of pairs of neighbouring nodes, as vision models do."""

    def __init__(self, pooling: Callable[..., Any]) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv.GCNConv(WIDTH, WIDTH), conv.GCNConv(WIDTH, WIDTH)
        self.pooling, self.lin = pooling, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, pos: Tensor) -> Tensor:
        x = F.relu(self.conv1(x, edge_index))
        cluster = torch.arange(x.size(0), device=x.device) // 2
        coarse = self.pooling(cluster, Data(x=x, edge_index=edge_index, batch=batch, pos=pos), transform=None)
        x = F.relu(self.conv2(coarse.x, coarse.edge_index))
        return self.lin(pool.global_mean_pool(x, coarse.batch))


class ClusteredRows(nn.Module):
    """DMoN pooling without a coarser graph: one vector per cluster."""

    def __init__(self, pooling: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.pooling, self.lin = conv.GCNConv(WIDTH, WIDTH), pooling, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.conv(x, edge_index).relu()
        x, _ = self.pooling(torch.arange(x.size(0), device=x.device) // 2, x, batch)
        return self.lin(x)


class Stack(nn.Module):
    """Layers of one kind in a list, with residual connections and a graph-level head."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers, self.lin = nn.ModuleList([layer(), layer()]), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, edge_index, batch)
        return self.lin(pool.global_add_pool(x, batch))


def deep_layer(block: str, width: int = WIDTH) -> nn.Module:
    layer = conv.GENConv(width, width, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer")
    return models.DeepGCNLayer(layer, nn.LayerNorm(width), nn.ReLU(inplace=True), block=block, dropout=0.1)


class DeepGCN(nn.Module):
    """DeepGCN as in PyG's example for ogbn-proteins."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.lin = nn.Linear(WIDTH, 16), nn.Linear(16, CLASSES)
        self.layers = nn.ModuleList([deep_layer("res+", 16), deep_layer("res+", 16)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.layers[0].conv(self.encoder(x), edge_index)
        for layer in self.layers[1:]:
            x = layer(x, edge_index)
        return self.lin(self.layers[0].act(self.layers[0].norm(x)))


class Jumping(nn.Module):
    """JumpingKnowledge over a stack of layers."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv.SAGEConv(WIDTH, WIDTH) for _ in range(3)])
        self.jump = models.JumpingKnowledge(mode, WIDTH, num_layers=3)
        self.lin = nn.Linear(3 * WIDTH if mode == "cat" else WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        found = []
        for layer in self.convs:
            x = layer(x, edge_index).relu()
            found.append(x)
        return self.lin(self.jump(found))


class HeteroJumping(nn.Module):
    """HeteroJumpingKnowledge over HeteroConv layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([hetero_conv(), hetero_conv()])
        self.jump = models.HeteroJumpingKnowledge(METADATA[0], "cat", WIDTH, 2)
        self.lin = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Tensor]) -> Tensor:
        found: dict[str, list[Tensor]] = {key: [] for key in x_dict}
        for layer in self.convs:
            x_dict = layer(x_dict, edge_index_dict)
            for key, x in x_dict.items():
                found[key].append(x)
        return self.lin(self.jump(found)["paper"])


class Meta(nn.Module):
    """MetaLayer with edge, node and global updates, as in its docstring."""

    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = mlp(4 * WIDTH, 16, WIDTH)

        def forward(self, src: Tensor, dst: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
            return self.mlp(torch.cat([src, dst, edge_attr, u[batch]], 1))

    class Nodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp1, self.mlp2 = mlp(2 * WIDTH, 16), mlp(16 + 2 * WIDTH, 16, WIDTH)

        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
            row, col = edge_index
            out = self.mlp1(torch.cat([x[row], edge_attr], dim=1))
            out = scatter(out, col, dim=0, dim_size=x.size(0), reduce="mean")
            return self.mlp2(torch.cat([x, out, u[batch]], dim=1))

    class Globals(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = mlp(2 * WIDTH, 16, WIDTH)

        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
            return self.mlp(torch.cat([u, scatter(x, batch, dim=0, reduce="mean")], dim=1))

    def __init__(self) -> None:
        super().__init__()
        self.op = models.MetaLayer(self.Edges(), self.Nodes(), self.Globals())

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Any:
        return self.op(x, edge_index, edge_attr, u, batch)


class LinkPredictor(nn.Module):
    """Encoder and decoder as in PyG's link prediction example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv.GCNConv(WIDTH, 16), conv.GCNConv(16, WIDTH)

    def encode(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)

    def decode(self, z: Tensor, edge_label_index: Tensor) -> Tensor:
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=-1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_label_index: Tensor) -> Tensor:
        return self.decode(self.encode(x, edge_index), edge_label_index)


class Variational(nn.Module):
    """The encoder of a variational autoencoder: mean and standard deviation of every node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv.GCNConv(WIDTH, 16)
        self.conv_mu, self.conv_logstd = conv.GCNConv(16, CLASSES), conv.GCNConv(16, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv1(x, edge_index).relu()
        return self.conv_mu(x, edge_index), self.conv_logstd(x, edge_index)


def infomax() -> nn.Module:
    def corrupt(x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        return x.flip(0), edge_index

    def summarize(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return z.mean(dim=0).sigmoid()

    return models.DeepGraphInfomax(16, models.GCN(WIDTH, 16, 2), summary=summarize, corruption=corrupt)


def near(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the pairs of atoms of a molecule and their distances: an interaction graph in plain torch."""
    same = (batch[:, None] == batch) & ~torch.eye(pos.size(0), dtype=torch.bool, device=pos.device)
    row, col = same.nonzero().t()
    return torch.stack([row, col]), (pos[row] - pos[col]).norm(dim=-1)


class Tied(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = conv.GCNConv(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.conv(x, edge_index).relu()
        return self.lin(x + self.conv(x, edge_index))


class InDict(nn.Module):
    """Layers in a ModuleDict, their outputs concatenated."""

    def __init__(self) -> None:
        super().__init__()
        convs = {"gcn": conv.GCNConv(WIDTH, WIDTH), "sage": conv.SAGEConv(WIDTH, WIDTH)}
        self.convs, self.lin = nn.ModuleDict(convs), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(torch.cat([layer(x, edge_index).tanh() for layer in self.convs.values()], dim=-1))


class Nested(nn.Module):
    """Modules in modules in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": Tied(), "b": nn.ModuleList([InDict(), Tied()])})

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.inner["a"](x, edge_index) + sum(block(x, edge_index) for block in self.inner["b"])


def smooth(x: Tensor, edge_index: Tensor, steps: int) -> Tensor:
    """Averages over neighbours: a function outside of the model."""
    for _ in range(steps):
        x = 0.5 * x + 0.5 * scatter(x[edge_index[0]], edge_index[1], 0, x.size(0), reduce="mean")
    return x


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = conv.SAGEConv(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(smooth(self.conv(x, edge_index), edge_index, 2))


class EdgeHead(nn.Module):
    """One output per edge, from both ends and the edge's own features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = conv.SAGEConv(WIDTH, WIDTH), mlp(2 * WIDTH + EDGE_WIDTH, 16, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x = self.conv(x, edge_index).relu()
        return self.lin(torch.cat([x[edge_index[0]], x[edge_index[1]], edge_attr], dim=-1))


class Numbers(nn.Module):
    """Numbers that follow from sizes, from degrees and from what the index tensors hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = conv.SAGEConv(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        num_graphs = int(batch.max()) + 1
        touched = int(edge_index.max()) + 1
        per_node = edge_index.size(1) / x.size(0)
        x = self.conv(x, edge_index) / math.sqrt(per_node)
        x = torch.cat([x[:touched], x[touched:] * 0.5])
        counts = degree(batch, num_graphs)
        out = scatter(x, batch, dim=0, dim_size=num_graphs, reduce="sum") / counts.clamp(min=1).view(-1, 1)
        dense, mask = to_dense_batch(x, batch)
        return self.lin(out + dense.sum(1) / mask.sum(1, keepdim=True)) + len(x) / 100


class SquareRoot(torch.autograd.Function):
    """An autograd function: its inside cannot be traced."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().sqrt()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.sign() / (2 * x.abs().sqrt() + 1e-3)


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SquareRoot.apply(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x + 1


class Around(nn.Module):
    """A model around a part that stays in float."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.part = conv.GCNConv(WIDTH, WIDTH), conv.GCNConv(WIDTH, CLASSES), part

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.part(self.conv1(x, edge_index)), edge_index)


class Reversible(nn.Module):
    """GroupAddRev, whose backward recomputes its forward, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.rev = models.GroupAddRev(conv.SAGEConv(WIDTH // 2, WIDTH // 2), num_groups=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin2(self.rev(self.lin1(x), edge_index))


class Own(MessagePassing):
    """A user's own layer: overrides `message`, `aggregate` and `update`."""

    def __init__(self, node_dim: int = -2, flow: str = "source_to_target") -> None:
        super().__init__(aggr="add", node_dim=node_dim, flow=flow)
        self.lin, self.gate = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x))

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return torch.sigmoid(x_i * self.gate) * x_j

    def aggregate(
        self, inputs: Tensor, index: Tensor, ptr: Tensor | None = None, dim_size: int | None = None
    ) -> Tensor:
        return scatter(inputs, index, dim=self.node_dim, dim_size=dim_size, reduce="max")

    def update(self, aggr_out: Tensor, x: Tensor) -> Tensor:
        return F.relu(aggr_out) + x


class OwnEdges(MessagePassing):
    """A user's own layer: attention in `edge_update`."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin, self.att = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin(x)
        alpha = self.edge_updater(edge_index, x=x)
        return self.propagate(edge_index, x=x, alpha=alpha)

    def edge_update(self, x_i: Tensor, x_j: Tensor, index: Tensor, size_i: int | None = None) -> Tensor:
        return softmax(self.att(torch.cat([x_i, x_j], dim=-1)).tanh(), index, num_nodes=size_i)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return alpha * x_j


class OwnFused(MessagePassing):
    """A user's own layer: `message_and_aggregate` for sparse adjacencies."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x))

    def message_and_aggregate(self, edge_index: Tensor, x: Tensor) -> Tensor:
        return edge_index @ x


class Trimmed(nn.Module):
    """A hand-written model that drops the nodes and edges that a layer no longer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv.SAGEConv(WIDTH, WIDTH), conv.SAGEConv(WIDTH, CLASSES)])

    def forward(self, x: Tensor, edge_index: Tensor, nodes_per_hop: list[int], edges_per_hop: list[int]) -> Tensor:
        for i, layer in enumerate(self.convs):
            x, edge_index, _ = trim_to_layer(i, nodes_per_hop, edges_per_hop, x, edge_index)
            x = layer(x, edge_index)
        return x


def hetero_conv() -> conv.HeteroConv:
    return conv.HeteroConv({edge_type: conv.SAGEConv((WIDTH, WIDTH), WIDTH) for edge_type in METADATA[1]})


class Hetero(nn.Module):
    """Two HeteroConv layers on dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.lin = hetero_conv(), hetero_conv(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Tensor]) -> Tensor:
        x_dict = {key: x.relu() for key, x in self.conv1(x_dict, edge_index_dict).items()}
        return self.lin(self.conv2(x_dict, edge_index_dict)["paper"])


class OnHeteroData(Hetero):
    def forward(self, data: HeteroData) -> Tensor:
        return super().forward(data.x_dict, data.edge_index_dict)


class OnData(nn.Module):
    """A forward that takes a whole Data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = conv.GINEConv(mlp(WIDTH, 16), edge_dim=EDGE_WIDTH), nn.Linear(16, CLASSES)

    def forward(self, data: Data) -> Tensor:
        x = self.conv(data.x, data.edge_index, data.edge_attr).relu()
        return self.lin(pool.global_max_pool(x, data.batch))


def sage_to_hetero() -> nn.Module:
    """Returns a GraphSAGE made heterogeneous; a first call settles its lazy layers."""
    model = to_hetero(models.GraphSAGE((-1, -1), 16, 2, CLASSES), METADATA, aggr="sum")
    with torch.no_grad():
        model(x_dict(SMALL), edge_index_dict(SMALL))
    return model


# -- the tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        build: Makes the float model.
        inputs: Names of the method's arguments, each from the table ``INPUTS``: ``"x edge_index"``, or, under another
            name there, ``"x=pair edge_index=across"``. With ``*`` in front they are passed by position.
        lacks: Which of weight, message and aggregate the model does not have, or has only where ``stays_float``.
        method: The method to prepare.
        stays_float: What the report must name as left in float, as substrings of its entries.
        float_inputs: What the float model is given instead, where it cannot compute messages over ``inputs``.
    """

    build: Callable[[], nn.Module]
    inputs: str = "x edge_index"
    lacks: str = ""
    method: str = "forward"
    stays_float: tuple[str, ...] = ()
    float_inputs: str = ""

    def model(self) -> nn.Module:
        """Returns a new float model, the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def arguments(self, size: Size) -> dict[str, Any] | tuple[Any, ...]:
        """Returns the method's arguments on graphs of a size."""
        return _arguments(self.inputs, size)

    def float_arguments(self, size: Size) -> dict[str, Any] | tuple[Any, ...]:
        """Returns the arguments of the float model."""
        return _arguments(self.float_inputs or self.inputs, size)


def _arguments(names: str, size: Size) -> dict[str, Any] | tuple[Any, ...]:
    pairs = [token.partition("=") for token in names.lstrip("*").split()]
    found = {name: INPUTS[source or name](size) for name, _, source in pairs}
    return tuple(found.values()) if names.startswith("*") else found


ATTR, WEIGHT, TYPED = "x edge_index edge_attr", "x edge_index edge_weight", "x edge_index edge_type"
BATCHED, CLOUD, PAIR = "x edge_index batch", "x pos edge_index", "x=pair edge_index=across"
SIGNED, HETERO = "x pos_edge_index=edge_index neg_edge_index", "x_dict edge_index_dict"
HYPER = "x hyperedge_index"
DEGREES = torch.tensor([1, 5, 4, 2, 1])
PNA_ARGS: dict[str, Any] = {
    "aggregators": ["mean", "max", "std"],
    "scalers": ["identity", "amplification"],
    "deg": DEGREES,
}
EVERY_AGGR, EVERY_SCALER = (
    ["mean", "max", "std", "var", "min", "sum"],
    ["identity", "amplification", "attenuation", "linear", "inverse_linear"],
)


def sage(**options: Any) -> conv.SAGEConv:
    return conv.SAGEConv(WIDTH, CLASSES, **options)


LAYERS: dict[str, Case] = {
    "SimpleConv": Case(lambda: conv.SimpleConv("mean"), lacks="weight"),
    "GCNConv": Case(lambda: conv.GCNConv(8, 4)),
    "GCNConv, edge weights": Case(lambda: conv.GCNConv(8, 4, improved=True), WEIGHT),
    "GCNConv, cached": Case(lambda: conv.GCNConv(8, 4, cached=True)),
    "GCNConv, target_to_source": Case(lambda: conv.GCNConv(8, 4, flow="target_to_source")),
    "GCNConv, node_dim=1": Case(lambda: conv.GCNConv(8, 4, node_dim=1), "x=series edge_index"),
    "ChebConv": Case(lambda: conv.ChebConv(8, 4, K=3)),
    "SAGEConv": Case(sage),
    "SAGEConv, project, normalize": Case(lambda: sage(project=True, normalize=True)),
    "SAGEConv, target_to_source": Case(lambda: sage(flow="target_to_source")),
    "SAGEConv, bipartite": Case(lambda: conv.SAGEConv((8, 6), 4), PAIR),
    "GraphConv": Case(lambda: conv.GraphConv(8, 4), WEIGHT),
    "GraphConv, bipartite": Case(lambda: conv.GraphConv((8, 6), 4, aggr="max"), PAIR),
    "GatedGraphConv": Case(lambda: conv.GatedGraphConv(8, 3)),
    "ResGatedGraphConv": Case(lambda: conv.ResGatedGraphConv(8, 4, edge_dim=5), ATTR),
    "GATConv": Case(lambda: conv.GATConv(8, 4, heads=2, dropout=0.2)),
    "GATConv, edge features": Case(lambda: conv.GATConv(8, 4, heads=2, concat=False, edge_dim=5), ATTR),
    "GATConv, bipartite": Case(lambda: conv.GATConv((8, 6), 4, heads=2, add_self_loops=False), PAIR),
    "GATConv, attention returned": Case(lambda: conv.GATConv(8, 4), "x edge_index return_attention_weights=true"),
    "GATv2Conv": Case(lambda: conv.GATv2Conv(8, 4, heads=2, edge_dim=5, residual=True), ATTR),
    "GATv2Conv, bipartite": Case(lambda: conv.GATv2Conv((8, 6), 4, add_self_loops=False), PAIR),
    "TransformerConv": Case(lambda: conv.TransformerConv(8, 4, heads=2, beta=True, edge_dim=5), ATTR),
    "TransformerConv, bipartite": Case(lambda: conv.TransformerConv((8, 6), 4, heads=2, dropout=0.1), PAIR),
    "AGNNConv": Case(lambda: conv.AGNNConv(), lacks="weight"),
    "TAGConv": Case(lambda: conv.TAGConv(8, 4)),
    "GINConv": Case(lambda: conv.GINConv(mlp(8, 16, 4), train_eps=True)),
    "GINConv, bipartite": Case(lambda: conv.GINConv(mlp(8, 16, 4)), "x=both edge_index=across"),
    "GINEConv": Case(lambda: conv.GINEConv(mlp(8, 16, 4), edge_dim=5), ATTR),
    "ARMAConv": Case(lambda: conv.ARMAConv(8, 4, num_stacks=2, num_layers=2, dropout=0.1)),
    "ARMAConv, shared weights": Case(lambda: conv.ARMAConv(8, 4, num_layers=3, shared_weights=True)),
    "SGConv": Case(lambda: conv.SGConv(8, 4, K=2)),
    "SGConv, cached": Case(lambda: conv.SGConv(8, 4, K=2, cached=True)),
    "SSGConv": Case(lambda: conv.SSGConv(8, 4, alpha=0.1, K=3)),
    "APPNP": Case(lambda: conv.APPNP(3, 0.1, dropout=0.2), lacks="weight"),
    "MFConv": Case(lambda: conv.MFConv(8, 4, max_degree=5)),
    "RGCNConv": Case(lambda: conv.RGCNConv(8, 4, RELATIONS), TYPED),
    "RGCNConv, bases": Case(lambda: conv.RGCNConv(8, 4, RELATIONS, num_bases=2), TYPED),
    "RGCNConv, blocks": Case(lambda: conv.RGCNConv(8, 4, RELATIONS, num_blocks=2), TYPED),
    "FastRGCNConv": Case(lambda: conv.FastRGCNConv(8, 4, RELATIONS, num_bases=2), TYPED),
    "RGATConv": Case(lambda: conv.RGATConv(8, 4, RELATIONS, heads=2, dim=1), TYPED),
    "SignedConv": Case(lambda: conv.SignedConv(8, 4, first_aggr=True), SIGNED),
    "SignedConv, deeper": Case(lambda: conv.SignedConv(4, 4, first_aggr=False), SIGNED),
    "DNAConv": Case(lambda: conv.DNAConv(8, heads=2, groups=2, dropout=0.1), "x=history edge_index"),
    "PointNetConv": Case(lambda: conv.PointNetConv(mlp(11, 16), mlp(16, 4)), CLOUD),
    "GMMConv": Case(lambda: conv.GMMConv(8, 4, dim=3, kernel_size=2), "x edge_index edge_attr=pseudo"),
    "GMMConv, separate": Case(
        lambda: conv.GMMConv(8, 4, 3, 2, separate_gaussians=True), "x edge_index edge_attr=pseudo"
    ),
    "NNConv": Case(lambda: conv.NNConv(8, 4, mlp(5, 16, 32)), ATTR),
    "CGConv": Case(lambda: conv.CGConv(8, dim=5, batch_norm=True), ATTR),
    "EdgeConv": Case(lambda: conv.EdgeConv(mlp(16, 16, 4))),
    "PPFConv": Case(lambda: conv.PPFConv(mlp(12, 16), mlp(16, 4)), "x pos normal edge_index"),
    "FeaStConv": Case(lambda: conv.FeaStConv(8, 4, heads=2)),
    "PointTransformerConv": Case(lambda: conv.PointTransformerConv(8, 4), CLOUD),
    "HypergraphConv": Case(lambda: conv.HypergraphConv(8, 4), HYPER),
    "HypergraphConv, attention": Case(
        lambda: conv.HypergraphConv(8, 4, use_attention=True, heads=2), f"{HYPER} hyperedge_attr"
    ),
    "LEConv": Case(lambda: conv.LEConv(8, 4), WEIGHT),
    "PNAConv": Case(lambda: conv.PNAConv(8, 4, EVERY_AGGR, EVERY_SCALER, DEGREES)),
    "PNAConv, edge features, towers": Case(lambda: conv.PNAConv(8, 4, **PNA_ARGS, edge_dim=5, towers=2), ATTR),
    "ClusterGCNConv": Case(lambda: conv.ClusterGCNConv(8, 4, diag_lambda=1.0)),
    "GENConv": Case(lambda: conv.GENConv(8, 4, edge_dim=5, learn_t=True, msg_norm=True, learn_msg_scale=True), ATTR),
    "GENConv, power mean": Case(lambda: conv.GENConv(8, 4, aggr="powermean", learn_p=True)),
    "GCN2Conv": Case(lambda: conv.GCN2Conv(8, 0.1, theta=0.5, layer=1, shared_weights=False), "x x_0 edge_index"),
    "WLConvContinuous": Case(lambda: conv.WLConvContinuous(), WEIGHT, lacks="weight"),
    "FiLMConv": Case(lambda: conv.FiLMConv(8, 4, RELATIONS), TYPED),
    "SuperGATConv": Case(lambda: conv.SuperGATConv(8, 4, heads=2, attention_type="MX", edge_sample_ratio=0.8)),
    "SuperGATConv, scaled dot": Case(lambda: conv.SuperGATConv(8, 4, heads=2, attention_type="SD", dropout=0.1)),
    "FAConv": Case(lambda: conv.FAConv(8, eps=0.1, dropout=0.1), "x x_0 edge_index"),
    "EGConv": Case(lambda: conv.EGConv(8, 8, aggregators=["sum", "mean", "std", "max"], num_heads=4)),
    "PDNConv": Case(lambda: conv.PDNConv(8, 4, edge_dim=5, hidden_channels=16), ATTR),
    "GeneralConv": Case(lambda: conv.GeneralConv(8, 4, in_edge_channels=5, attention=True, heads=2), ATTR),
    "HGTConv": Case(lambda: conv.HGTConv({"paper": 8, "author": 8}, 4, METADATA, heads=2), HETERO),
    "HEATConv": Case(
        lambda: conv.HEATConv(8, 4, 3, RELATIONS, 4, 5, 4, heads=2), "x edge_index node_type edge_type edge_attr"
    ),
    "HeteroConv": Case(
        lambda: conv.HeteroConv(
            {
                METADATA[1][0]: conv.GCNConv(8, 4),
                METADATA[1][1]: conv.SAGEConv((8, 8), 4),
                METADATA[1][2]: conv.GATConv((8, 8), 4, add_self_loops=False),
            }
        ),
        f"*{HETERO}",
    ),
    "HANConv": Case(lambda: conv.HANConv(8, 4, METADATA, heads=2, dropout=0.1), HETERO),
    "LGConv": Case(lambda: conv.LGConv(), lacks="weight"),
    "PointGNNConv": Case(lambda: conv.PointGNNConv(mlp(8, 16, 3), mlp(11, 16), mlp(16, 8)), CLOUD),
    "GPSConv": Case(lambda: conv.GPSConv(8, conv.GINConv(mlp(8, 8)), heads=2, dropout=0.1), BATCHED),
    "GPSConv, performer": Case(
        lambda: conv.GPSConv(8, conv.GINConv(mlp(8, 8)), heads=2, attn_type="performer"), BATCHED
    ),
    "AntiSymmetricConv": Case(lambda: conv.AntiSymmetricConv(8, num_iters=2)),
    "DirGNNConv": Case(lambda: conv.DirGNNConv(conv.SAGEConv(8, 4))),
    "DirGNNConv, attention": Case(lambda: conv.DirGNNConv(conv.GATConv(8, 4, add_self_loops=False))),
    "MixHopConv": Case(lambda: conv.MixHopConv(8, 4, powers=[0, 1, 2])),
    "MeshCNNConv": Case(lambda: conv.MeshCNNConv(8, 4), "x edge_index=mesh"),
}

AGGREGATIONS: dict[str, Case] = {
    **{
        f"SAGEConv, {name}": Case(lambda name=name: sage(aggr=name))
        for name in ("sum", "mean", "min", "max", "mul", "var", "std", "median", "lstm", "softmax")
    },
    "SAGEConv, learned softmax": Case(lambda: sage(aggr=aggr.SoftmaxAggregation(learn=True))),
    "SAGEConv, power mean": Case(lambda: sage(aggr=aggr.PowerMeanAggregation(learn=True)), "x=positive edge_index"),
    "SAGEConv, quantiles": Case(lambda: conv.SimpleConv(aggr.QuantileAggregation([0.25, 0.75])), lacks="weight"),
    "SAGEConv, several": Case(lambda: sage(aggr=["mean", "max", "std"])),
    "SAGEConv, several, attention": Case(
        lambda: sage(
            aggr=aggr.MultiAggregation(
                ["mean", "max"], mode="attn", mode_kwargs={"in_channels": 8, "out_channels": 8, "num_heads": 2}
            )
        )
    ),
    "SAGEConv, degree scaler": Case(
        lambda: conv.SimpleConv(aggr.DegreeScalerAggregation(["mean", "max"], EVERY_SCALER, DEGREES)), lacks="weight"
    ),
    "SAGEConv, Set2Set": Case(lambda: conv.SimpleConv(aggr.Set2Set(8, 2))),
    "SAGEConv, GRU": Case(lambda: sage(aggr=aggr.GRUAggregation(8, 8))),
    "SAGEConv, variance preserving": Case(lambda: sage(aggr=aggr.VariancePreservingAggregation())),
}


def readout(build: Callable[[], Any], width: int = WIDTH, stays_float: str = "") -> Case:
    """Returns a row for what turns nodes into one vector per graph."""
    return Case(lambda: Readout(build(), width), BATCHED, stays_float=(stays_float,) if stays_float else ())


def pooled(build: Callable[[], nn.Module], stays_float: str = "") -> Case:
    """Returns a row for a layer that turns a graph into a smaller one."""
    return Case(lambda: Pooled(build()), BATCHED, stays_float=(stays_float,) if stays_float else ())


POOLING: dict[str, Case] = {
    "global_add_pool": readout(lambda: pool.global_add_pool),
    "global_mean_pool": readout(lambda: pool.global_mean_pool),
    "global_max_pool": readout(lambda: pool.global_max_pool),
    "SumAggregation": readout(aggr.SumAggregation),
    "MeanAggregation": readout(aggr.MeanAggregation),
    "MaxAggregation": readout(aggr.MaxAggregation),
    "MinAggregation": readout(aggr.MinAggregation),
    "MulAggregation": readout(aggr.MulAggregation),
    "VarAggregation": readout(aggr.VarAggregation),
    "StdAggregation": readout(aggr.StdAggregation),
    "SoftmaxAggregation": readout(lambda: aggr.SoftmaxAggregation(learn=True)),
    "PowerMeanAggregation": readout(lambda: aggr.PowerMeanAggregation(learn=True)),
    "MedianAggregation": readout(aggr.MedianAggregation),
    "QuantileAggregation": readout(lambda: aggr.QuantileAggregation([0.25, 0.75]), 2 * WIDTH),
    "LSTMAggregation": readout(lambda: aggr.LSTMAggregation(8, 8)),
    "GRUAggregation": readout(lambda: aggr.GRUAggregation(8, 8)),
    "Set2Set": readout(lambda: aggr.Set2Set(8, 3), 2 * WIDTH),
    "DegreeScalerAggregation": readout(
        lambda: aggr.DegreeScalerAggregation(["mean", "max"], EVERY_SCALER, DEGREES), 10 * WIDTH
    ),
    "MultiAggregation": readout(lambda: aggr.MultiAggregation(["mean", "max", "std"]), 3 * WIDTH),
    "SortAggregation": readout(lambda: aggr.SortAggregation(3), 3 * WIDTH),
    "GraphMultisetTransformer": readout(lambda: aggr.GraphMultisetTransformer(8, k=2, heads=2)),
    "AttentionalAggregation": readout(lambda: aggr.AttentionalAggregation(mlp(8, 8, 1), mlp(8, 8))),
    "EquilibriumAggregation": readout(lambda: aggr.EquilibriumAggregation(8, 8, [4], grad_iter=2)),
    "MLPAggregation": readout(lambda: aggr.MLPAggregation(8, 8, max_num_elements=12, num_layers=1)),
    "DeepSetsAggregation": readout(lambda: aggr.DeepSetsAggregation(mlp(8, 8), mlp(8, 8))),
    "SetTransformerAggregation": readout(lambda: aggr.SetTransformerAggregation(8, heads=2)),
    "LCMAggregation": readout(lambda: aggr.LCMAggregation(8, 8), stays_float="of a size"),
    "VariancePreservingAggregation": readout(aggr.VariancePreservingAggregation),
    "PatchTransformerAggregation": readout(lambda: aggr.PatchTransformerAggregation(8, 8, 4, 8, 1, 2)),
    "TopKPooling": pooled(lambda: pool.TopKPooling(8, 0.5)),
    "TopKPooling, minimum score": pooled(lambda: pool.TopKPooling(8, min_score=0.1)),
    "SAGPooling": pooled(lambda: pool.SAGPooling(8, 0.5)),
    "SAGPooling, minimum score": pooled(lambda: pool.SAGPooling(8, min_score=0.05)),
    "ASAPooling": pooled(lambda: pool.ASAPooling(8, 0.5)),
    "EdgePooling": pooled(lambda: pool.EdgePooling(8), stays_float="tolist()"),
    "ClusterPooling": pooled(lambda: pool.ClusterPooling(8), stays_float="to_scipy_sparse_matrix"),
    "MemPooling": readout(lambda: pool.MemPooling(8, 8, heads=2, num_clusters=2)),
    "max_pool": Case(lambda: Clustered(pool.max_pool), f"{BATCHED} pos"),
    "avg_pool": Case(lambda: Clustered(pool.avg_pool), f"{BATCHED} pos"),
    "max_pool_x": Case(lambda: ClusteredRows(pool.max_pool_x), BATCHED),
    "avg_pool_x": Case(lambda: ClusteredRows(pool.avg_pool_x), BATCHED),
}

FAMILY = (models.GCN, models.GraphSAGE, models.GIN, models.GAT, models.EdgeCNN)
BY_NAME = ("BatchNorm", "LayerNorm", "GraphNorm", "PairNorm", "InstanceNorm")
NO_GRAPH = "message aggregate"

MODELS: dict[str, Case] = {
    **{
        f"{family.__name__}, jk={jk}": Case(lambda family=family, jk=jk: family(8, 16, 2, 4, jk=jk, dropout=0.1))
        for family in FAMILY
        for jk in (None, "last", "cat", "max", "lstm")
    },
    "GAT, v2, heads, edge features": Case(lambda: models.GAT(8, 16, 2, 4, v2=True, heads=2, edge_dim=5), ATTR),
    "PNA": Case(lambda: models.PNA(8, 16, 2, 4, **PNA_ARGS)),
    "PNA, jk=cat": Case(lambda: models.PNA(8, 16, 2, 4, jk="cat", **PNA_ARGS)),
    **{f"GCN, {name}": Case(lambda name=name: models.GCN(8, 16, 2, 4, norm=name), BATCHED) for name in BY_NAME},
    "GCN, GraphSizeNorm": Case(lambda: models.GCN(8, 16, 2, 4, norm=norm.GraphSizeNorm()), BATCHED),
    "GCN, MeanSubtractionNorm": Case(lambda: models.GCN(8, 16, 2, 4, norm=norm.MeanSubtractionNorm()), BATCHED),
    "GCN, DiffGroupNorm": Case(lambda: models.GCN(8, 16, 2, 4, norm="DiffGroupNorm", norm_kwargs={"groups": 3})),
    **{
        f"GCN, act={act}": Case(lambda act=act: models.GCN(8, 16, 2, 4, act=act, act_first=True, norm="BatchNorm"))
        for act in ("PReLU", "elu", "tanh", "leaky_relu")
    },
    "DeepGCN": Case(DeepGCN),
    **{
        f"DeepGCNLayer, {block}": Case(lambda block=block: deep_layer(block), "*x edge_index")
        for block in ("res+", "res", "dense", "plain")
    },
    "GraphUNet": Case(lambda: models.GraphUNet(8, 16, 4, depth=2, pool_ratios=0.6), BATCHED),
    **{f"JumpingKnowledge, {mode}": Case(lambda mode=mode: Jumping(mode)) for mode in ("cat", "max", "lstm")},
    "HeteroJumpingKnowledge": Case(HeteroJumping, HETERO),
    "AttentiveFP": Case(
        lambda: models.AttentiveFP(8, 16, 4, edge_dim=5, num_layers=2, num_timesteps=2, dropout=0.1), f"{ATTR} batch"
    ),
    "SchNet, own interaction graph": Case(lambda: models.SchNet(16, 16, 2, 10, interaction_graph=near), "z pos batch"),
    "GPSConv stack": Case(lambda: Stack(lambda: conv.GPSConv(8, conv.GINConv(mlp(8, 8)), heads=2)), BATCHED),
    "SGFormer": Case(lambda: models.SGFormer(8, 16, 4), BATCHED),
    "Polynormer": Case(lambda: models.Polynormer(8, 16, 4), BATCHED),
    "LightGCN": Case(lambda: models.LightGCN(USERS, 8, 2), "edge_index=among_users edge_label_index=user_pairs"),
    "LINKX": Case(lambda: models.LINKX(USERS, 8, 16, 4, 2), "x=users edge_index=among_users"),
    "PMLP": Case(lambda: models.PMLP(8, 16, 4, 3), lacks=NO_GRAPH, stays_float=("message", "aggregate")),
    "MLP": Case(lambda: models.MLP([8, 16, 4], dropout=0.2), "x", lacks=NO_GRAPH),
    "MLP, GraphNorm": Case(lambda: models.MLP([8, 16, 4], norm="graph_norm"), "x batch", lacks=NO_GRAPH),
    "MetaLayer": Case(Meta, "x edge_index edge_attr=wide_edge_attr u batch", lacks=NO_GRAPH),
    "RECT_L": Case(lambda: models.RECT_L(8, 16)),
    "NeuralFingerprint": Case(lambda: models.NeuralFingerprint(8, 16, 4, 2, max_degree=5), BATCHED),
    "SignedGCN": Case(lambda: models.SignedGCN(8, 16, 2), SIGNED),
    "MaskLabel": Case(lambda: models.MaskLabel(CLASSES, 8), "x y mask", lacks=NO_GRAPH),
    "LabelPropagation": Case(lambda: models.LabelPropagation(2, 0.9), "y edge_index", lacks="weight"),
    "GroupAddRev": Case(Reversible, lacks=NO_GRAPH, stays_float=("InvertibleFunction",)),
    "GAE, encode": Case(lambda: models.GAE(models.GCN(8, 16, 2)), "*x edge_index", method="encode"),
    "VGAE, encode": Case(lambda: models.VGAE(Variational()), "*x edge_index", method="encode"),
    "ARGA, encode": Case(lambda: models.ARGA(models.GCN(8, 16, 2), mlp(16, 8, 1)), "*x edge_index", method="encode"),
    "ARGVA, encode": Case(lambda: models.ARGVA(Variational(), mlp(4, 8, 1)), "*x edge_index", method="encode"),
    "DeepGraphInfomax": Case(infomax, "*x edge_index"),
    "ARLinkPredictor": Case(lambda: models.ARLinkPredictor(8, 16, 3), "x edge_index", lacks=NO_GRAPH),
    "ARLinkPredictor, encode": Case(lambda: models.ARLinkPredictor(8, 16, 3), "x", NO_GRAPH, "encode"),
}

STRUCTURE: dict[str, Case] = {
    "Sequential": Case(
        lambda: Sequential(
            "x, edge_index",
            [
                (conv.GCNConv(8, 16), "x, edge_index -> x1"),
                nn.ReLU(inplace=True),
                (conv.GATConv(16, 16), "x1, edge_index -> x2"),
                (lambda a, b: torch.cat([a, b], dim=-1), "x1, x2 -> x"),
                nn.Linear(32, 4),
            ],
        ),
        "*x edge_index",
    ),
    "ModuleList, residuals": Case(lambda: Stack(lambda: Batchless(conv.SAGEConv(8, 8))), BATCHED),
    "ModuleDict, concatenation": Case(InDict),
    "nested modules": Case(Nested),
    "weight-tied layer": Case(Tied),
    "function outside the model": Case(WithFunction),
    "own message, aggregate, update": Case(Own),
    "own layer, node_dim=0": Case(lambda: Own(node_dim=0)),
    "own layer, node_dim=1": Case(lambda: Own(node_dim=1), "x=series edge_index"),
    "own layer, target_to_source": Case(lambda: Own(flow="target_to_source")),
    "own edge_update": Case(OwnEdges),
    "own message_and_aggregate": Case(OwnFused, "x edge_index=csr"),
    "a chosen method": Case(LinkPredictor, method="encode"),
    "node-level head": Case(lambda: models.GCN(8, 16, 2, 4)),
    "edge-level head": Case(EdgeHead, ATTR),
    "link-level head": Case(LinkPredictor, "x edge_index edge_label_index"),
    "graph-level head": Case(lambda: Readout(pool.global_mean_pool), BATCHED),
    "numbers from sizes and indices": Case(Numbers, BATCHED),
    "autograd function inside": Case(lambda: Around(Opaque()), stays_float=("SquareRoot",)),
    "branch on values inside": Case(lambda: Around(Branching()), stays_float=("value of a tensor",)),
}


class Batchless(nn.Module):
    """A layer that is handed a batch and has no use for it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.layer(x, edge_index)


def adjacent(name: str, build: Callable[[], nn.Module], forms: str = "csr csc coo EdgeIndex") -> dict[str, Case]:
    """Returns a row per form of the connectivity. PyG multiplies by a CSC matrix or refuses it, and has no messages."""
    csr = {"csc": "x edge_index=csr"}
    return {
        f"{name}, {form}": Case(build, f"x edge_index={form}", float_inputs=csr.get(form, "")) for form in forms.split()
    }


GRAPHS: dict[str, Case] = {
    **adjacent("GCNConv", lambda: conv.GCNConv(8, 4), "csr coo EdgeIndex"),
    **adjacent("SAGEConv", sage),
    **adjacent("GATConv", lambda: conv.GATConv(8, 4, add_self_loops=False), "csr coo EdgeIndex"),
    **adjacent("GINConv", lambda: conv.GINConv(mlp(8, 16, 4))),
    **adjacent("GraphConv", lambda: conv.GraphConv(8, 4)),
    **adjacent("GCN", lambda: models.GCN(8, 16, 2, 4), "csr EdgeIndex"),
    "GraphSAGE, trimmed": Case(
        lambda: models.GraphSAGE(8, 16, 2, 4),
        "x edge_index=sampled num_sampled_nodes_per_hop num_sampled_edges_per_hop",
    ),
    "trim_to_layer": Case(
        Trimmed, "*x edge_index=sampled nodes=num_sampled_nodes_per_hop edges=num_sampled_edges_per_hop"
    ),
    "Data": Case(OnData, "data"),
    "HeteroData": Case(OnHeteroData, "data=hetero_data"),
    "HeteroConv stack": Case(Hetero, HETERO),
    "to_hetero": Case(sage_to_hetero, "x=x_dict edge_index=edge_index_dict"),
}

TABLES: dict[str, dict[str, Case]] = {
    "layers": LAYERS,
    "aggregations": AGGREGATIONS,
    "pooling": POOLING,
    "models": MODELS,
    "structure": STRUCTURE,
    "graphs": GRAPHS,
}

OUT_OF_REACH: dict[str, str] = {
    "MessagePassing": "the base class: computes nothing of its own",
    "CuGraphSAGEConv": "needs pylibcugraphops, a third-party CUDA extension",
    "CuGraphGATConv": "needs pylibcugraphops, a third-party CUDA extension",
    "CuGraphRGCNConv": "needs pylibcugraphops, a third-party CUDA extension",
    "FusedGATConv": "needs dgNN, a third-party CUDA extension",
    "GravNetConv": "needs pyg-lib or torch-cluster for k nearest neighbours",
    "DynamicEdgeConv": "needs pyg-lib or torch-cluster for k nearest neighbours",
    "XConv": "needs pyg-lib or torch-cluster for k nearest neighbours",
    "SplineConv": "needs pyg-lib or torch-spline-conv",
    "PANConv": "needs torch-sparse",
    "WLConv": "hashes integer labels: no parameter, no gradient, nothing to quantize",
}
"""The exports of `torch_geometric.nn.conv` that have no row, and why."""

OTHERS_OUT_OF_REACH: dict[str, str] = {
    "SchNet, cutoff radius": "needs pyg-lib or torch-cluster for its radius graph (it has a row with its own graph)",
    "DimeNet, DimeNetPlusPlus": "need torch-sparse, and pyg-lib or torch-cluster for their radius graph",
    "GNNFF, ViSNet": "need pyg-lib or torch-cluster for their radius graph",
    "PANPooling": "needs torch-sparse",
    "graclus, voxel_grid, fps, knn, radius, nearest": "need pyg-lib or torch-cluster",
}


# -- the study ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """The findings on one model. `None`: not tried, as something before it failed.

    Attributes:
        name: The row's name in its table.
        table: The table.
        traced: True if ``prepare`` took it.
        identical: True if its graph computes what the float model computes, on another size, in both modes.
        trains: By preset, true if a training step gives all gradients, finite.
        evaluates: True if everything that it returns in evaluation is finite, under every preset.
        off: By preset, how far the integer module's outputs are from the prepared module's: the norm of the difference
            over theirs.
        integer_share: Of the multiply-adds of the integer module, those of integers; ``None`` where there are none.
        islands: How many operations of the integer module compute in float.
        quantizers: Number of quantizers per kind.
        missing: Kinds that should have quantizers and have none.
        stays_float: What the report says was left in float, and why.
        remarks: The report's remarks.
        error: What went wrong first.
    """

    name: str
    table: str = ""
    traced: bool = False
    identical: bool | None = None
    trains: dict[str, bool] = field(default_factory=dict)
    evaluates: bool | None = None
    off: dict[str, float] = field(default_factory=dict)
    integer_share: float | None = None
    islands: int | None = None
    quantizers: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    stays_float: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and not self.missing and bool(self.identical and self.evaluates)

    @property
    def lowers(self) -> bool | None:
        """True if the integer modules compute what the prepared ones do."""
        return all(self.off[preset] < TIES[preset] for preset in self.off) if self.off else None


PRESETS = ("int8-dq", "int4-dq")
TIES = {"int8-dq": 0.05, "int4-dq": 0.25}
"""How far off single roundings to the next step, in early layers, may bring outputs: a step is 1/255 or 1/15."""


def examine(name: str, case: Case, table: str = "") -> Row:
    """Runs one row of the study: never raises, the row says what failed."""
    row = Row(name, table)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            _examine(case, row)
    except Exception as error:  # whatever fails in whatever model is this study's finding
        row.error = row.error or f"{type(error).__name__}: {error}"
    return row


def _examine(case: Case, row: Row) -> None:
    prepared, report = dqconvert.prepare(case.model(), "int8-dq", case.arguments(SMALL), method=case.method)
    row.traced = True
    row.quantizers = report.totals["kind"]
    row.missing = [
        kind for kind in ("weight", "message", "aggregate") if kind not in {*row.quantizers, *case.lacks.split()}
    ]
    row.stays_float = [f"{left.what}: {left.reason} ({left.source})" for left in report.left_float]
    row.remarks = list(report.remarks)
    unexplained = [what for what in case.stays_float if not any(what in left for left in row.stays_float)]
    if unexplained:
        row.missing += [f"{what} in the report" for what in unexplained]

    wanted = _run(_unfused(case.model()), case.method, case.float_arguments)
    # The graph is the same under every config: a prepared module is prepared again without tracing.
    unquantized = dqconvert.prepare(prepared, QConfig()).module
    row.error = _difference(_run(unquantized, "forward", case.arguments), wanted)
    row.identical = not row.error
    row.evaluates = True
    for preset in PRESETS:
        module = prepared if preset == "int8-dq" else dqconvert.prepare(prepared, preset).module
        found = _run(module, "forward", case.arguments)
        bad = [name for name in wanted.gradients if not _finite(found.gradients.get(name))]
        row.trains[preset] = not bad
        row.error = row.error or (f"{preset}: no finite gradient for {', '.join(bad)}" if bad else "")
        if not all(_finite(out) for out in found.evaluated):
            row.evaluates = False
            row.error = row.error or f"{preset}: not finite in evaluation"
        _lower(module, found.evaluated, case, row, preset)


def _lower(module: nn.Module, wanted: list[Tensor], case: Case, row: Row, preset: str) -> None:
    """Converts a module that was trained a step, and compares."""
    integer = dqconvert.convert(module)
    found: list[Tensor] = []
    counted = multiply_adds(lambda: found.extend(_call(integer, "forward", case.arguments(LARGE))))
    differences = [
        float((one - other).norm() / other.norm().clamp(min=1e-9)) if one.shape == other.shape else math.inf
        for one, other in zip(found, wanted, strict=True)
    ]
    row.off[preset] = max(differences, default=0.0)
    if preset == PRESETS[0]:
        row.integer_share = None if math.isnan(counted.share) else counted.share
        row.islands = len(integer.report.floats)
    if not row.off[preset] < TIES[preset]:
        row.error = row.error or f"{preset}: the integer module is {row.off[preset]:.2f} off"


@dataclass(frozen=True)
class Outcome:
    """The results of a model on a graph that it was not traced on: floating point tensors only.

    Attributes:
        outputs: Its outputs in a training step.
        gradients: The gradients of that step, by parameter.
        buffers: Its buffers after that step (the running statistics of its norms), by name.
        evaluated: Its outputs in evaluation, after that step.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    evaluated: list[Tensor]


def _run(model: nn.Module, method: str, inputs: Callable[[Size], Any]) -> Outcome:
    """Trains one step and evaluates, always with the same random numbers."""
    model.train()
    outputs = _call(model, method, inputs(LARGE))
    losses = [(out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs if out.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if gradients:
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    with torch.no_grad():
        evaluated = _call(model, method, inputs(LARGE))  # new ones: a forward may change what it is given
    return Outcome([out.detach() for out in outputs], gradients, buffers, evaluated)


def _call(model: nn.Module, method: str, arguments: Any) -> list[Tensor]:
    seed_everything(1)
    function = model if method == "forward" else getattr(model, method)
    result = function(**arguments) if isinstance(arguments, dict) else function(*arguments)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _difference(found: Outcome, wanted: Outcome) -> str:
    """Returns in what two outcomes differ; ``""`` if they are equal bit for bit."""
    for attribute in vars(wanted):
        try:
            left, right = getattr(found, attribute), getattr(wanted, attribute)
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
        except AssertionError as error:
            return f"{attribute} differ from float: {' '.join(str(error).split())}"
    return ""


def _finite(value: Tensor | None) -> bool:
    return value is not None and bool(value.isfinite().all())


def _unfused(model: nn.Module) -> nn.Module:
    """Turns PyG's fused products off, which have no messages and sum in another order: the last bits differ."""
    for module in model.modules():
        if isinstance(module, MessagePassing):
            module.fuse = False
    return model


def rows(patterns: list[str] | None = None) -> Iterator[tuple[str, str, Case]]:
    """Yields table, name and case of every row whose name matches a pattern."""
    for table, cases in TABLES.items():
        for name, case in cases.items():
            if not patterns or any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(name, f"{p},*") for p in patterns):
                yield table, name, case


# -- output ------------------------------------------------------------------------------------------------------

HEADINGS = (
    "model",
    "traced",
    "float-identical",
    *PRESETS,
    "eval finite",
    "weights",
    "messages",
    "aggregates",
    "in float",
    "integers agree",
    "integer share",
    "float islands",
)


def cells(row: Row) -> list[str]:
    """Returns a row as the cells of its table."""

    def mark(value: bool | None) -> str:
        return "" if value is None else "yes" if value else "NO"

    counts = [str(row.quantizers.get(kind, "–")) for kind in ("weight", "message", "aggregate")]
    notes = "; ".join(
        row.stays_float + [f"MISSING: {what}" for what in row.missing] + ([row.error] if row.error else [])
    )
    trains = [mark(row.trains.get(preset)) for preset in PRESETS]
    share = "–" if row.integer_share is None else f"{row.integer_share:.0%}"
    lowered = [mark(row.lowers), share, "" if row.islands is None else str(row.islands)]
    return [row.name, mark(row.traced), mark(row.identical), *trains, mark(row.evaluates), *counts, notes, *lowered]


PAGE = """\
# Coverage: layers, models and structures that convert

Written by `python examples/coverage_table.py --markdown > examples/COVERAGE.md`, and compared with what each row
gives by `tests/test_coverage.py`. {environment}.

A row passes if the traced graph computes what the float model computes, bit for bit, in training (outputs, gradients,
buffers) and in evaluation, on graphs of another size; if it trains a step under `int8-dq` and `int4-dq` with a finite
gradient for every parameter that has one in float; and if it evaluates to finite values. Then: the number of quantizers
on weights, messages and aggregates (– where the model has none), and what stays in float. *Integers agree* where the
integer module returns what the prepared module returns, but for values that fall on a rounding tie (5 % in 8 bits, 25 %
in 4, of the norm). *Integer share* is the share of all multiply-adds that integers compute, in 8 bits; *float islands*
counts the operations that compute in float.

{tables}
"""


def as_markdown(found: list[Row]) -> str:
    """Returns the page ``examples/COVERAGE.md``."""
    tables = []
    for table in dict.fromkeys(row.table for row in found):
        head = [f"## {table.capitalize()}", "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
        tables.append("\n".join([*head, *(markdown_line(row) for row in found if row.table == table)]))
    absent = (f"| {name} | {why} |" for name, why in (OUT_OF_REACH | OTHERS_OUT_OF_REACH).items())
    tables.append("\n".join(["## Out of reach", "", "| export | why |", "|---|---|", *absent]))
    return PAGE.format(environment=environment(torch.get_num_threads()), tables="\n\n".join(tables))


def markdown_line(row: Row) -> str:
    """Returns a row as a line of the page's table."""
    return f"| {' | '.join(cells(row))} |".replace("|  |", "| |")


def show(found: list[Row], console: Console) -> None:
    for table in dict.fromkeys(row.table for row in found):
        shown = Table(title=table, title_justify="left")
        shown.add_column(HEADINGS[0], overflow="fold", min_width=12)
        for heading in HEADINGS[1:]:
            shown.add_column(heading, overflow="fold")
        for row in found:
            if row.table == table:
                shown.add_row(*cells(row), style=None if row.passed else "red")
        console.print(shown)
    absent = Table("export", "why", title="out of reach", title_justify="left")
    for name, why in (OUT_OF_REACH | OTHERS_OUT_OF_REACH).items():
        absent.add_row(name, why)
    console.print(absent)
    console.print(f"{sum(row.passed for row in found)} of {len(found)} pass")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to run, with wildcards (default: all)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all that was found as JSON")
    form.add_argument("--markdown", action="store_true", help="print the page examples/COVERAGE.md")
    args = parser.parse_args(argv)
    progress = Console(stderr=True)
    wanted = list(rows(args.names))
    if not wanted:
        parser.error(f"no row is named {' or '.join(args.names)}")
    tracked = track(wanted, "converting", console=progress, disable=not progress.is_terminal)
    found = [examine(name, case, table) for table, name, case in tracked]
    if args.json:
        print(json.dumps([{**asdict(row), "passed": row.passed} for row in found], indent=2))
    elif args.markdown:
        print(as_markdown(found), end="")
    else:
        show(found, Console())
    return 0 if all(row.passed for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())

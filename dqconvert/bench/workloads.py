"""The workloads of the benchmark, two tables: :data:`WORKLOADS` of training, :data:`INFERENCE` of inference.

A new one is an entry there: a model and a size, and what makes a graph of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.datasets import Planetoid, TUDataset
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from torch_geometric.transforms import NormalizeFeatures

from dqconvert.bench.graphs import graph_sizes, zipf_batch, zipf_edges
from dqconvert.bench.models import GraphClassifier, NodeClassifier
from dqconvert.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a workload.

    Attributes:
        nodes: In all graphs together.
        edges: Likewise, each direction counted.
        features: Of a node.
        hidden: Width of the hidden layers.
        classes: Of a node, or of a graph.
        graphs: In the batch.
    """

    nodes: int
    edges: int
    features: int
    hidden: int
    classes: int
    graphs: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Inputs and targets of a workload.

    Attributes:
        inputs: The arguments of the model's forward by name.
        target: The class of each row of its output.
        origin: ``"generated"``, or the name of a dataset.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    origin: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One entry of the table.

    Attributes:
        name: What the command line calls it.
        title: What it is, in a few words.
        size: Its full size.
        model: Builds the float model for a size.
        generate: Makes a sample of a size.
        read: Reads the real data from a folder of PyG's datasets; ``None``: there is none.
        grows: True if edges and features may be chosen, for a study of growth.
    """

    name: str
    title: str
    size: Size
    model: Callable[[Size], nn.Module]
    generate: Callable[[Size], Sample]
    read: Callable[[Path], Sample] | None = None
    grows: bool = False

    def resized(self, scale: float = 1.0, edges: int | None = None, features: int | None = None) -> Size:
        """Returns the size with the graph scaled; ``features`` is the hidden layer's width, too.

        Raises:
            CommandError: If edges or features are chosen for a workload that does not grow.

        Example:
            >>> WORKLOADS["W2"].resized(0.5, features=64)
            Size(nodes=50000, edges=500000, features=64, hidden=64, classes=40, graphs=1)
        """
        if not self.grows and (edges is not None or features is not None):
            growing = ", ".join(name for name, workload in WORKLOADS.items() if workload.grows)
            raise UsageError(f"--edges and --features do not apply to {self.name}: choose one of {growing}.")
        size = self.size
        graphs = size.graphs if size.graphs == 1 else max(1, round(size.graphs * scale))
        nodes, pairs = max(1, round(size.nodes * scale)), max(1, round(size.edges * scale / 2))
        size = replace(size, nodes=nodes, edges=edges or 2 * pairs, graphs=graphs)
        return replace(size, features=features, hidden=features) if features else size


def find(name: str) -> Workload:
    """Returns the workload of that name, in upper or lower case.

    Raises:
        CommandError: If there is none.

    Example:
        >>> find("w5").title
        'GCN 2x16 on Cora'
    """
    known = {**WORKLOADS, **INFERENCE}
    if name.upper() not in known:
        raise UsageError(f"there is no workload {name!r}: choose one of {', '.join(known)}.")
    return known[name.upper()]


def _classes(size: Size, rows: int) -> Tensor:
    return torch.randint(size.classes, (rows,), generator=torch.Generator().manual_seed(1))


def _batch(size: Size) -> Sample:
    """Generates a batch of many graphs without node features, as REDDIT-BINARY's."""
    sizes = graph_sizes(size.graphs, size.nodes)
    batch = torch.arange(size.graphs).repeat_interleave(sizes)
    x = torch.ones(size.nodes, size.features)
    inputs = {"x": x, "edge_index": zipf_batch(sizes, size.edges), "batch": batch}
    return Sample(inputs=inputs, target=_classes(size, size.graphs), origin="generated")


def _power_law(size: Size) -> Sample:
    x = torch.randn(size.nodes, size.features, generator=torch.Generator().manual_seed(2))
    inputs = {"x": x, "edge_index": zipf_edges(size.nodes, size.edges)}
    return Sample(inputs=inputs, target=_classes(size, size.nodes), origin="generated")


def _citations(size: Size, words: int = 18) -> Sample:
    """Generates a citation graph: features are frequencies of a few of many words, rows summing to 1."""
    rng = torch.Generator().manual_seed(2)
    word = torch.randint(size.features, (size.nodes, words), generator=rng)
    counts = torch.zeros(size.nodes, size.features).scatter_add_(1, word, torch.ones(word.shape))
    edge_index = zipf_batch(torch.tensor([size.nodes]), size.edges, exponent=0.8)
    inputs = {"x": counts / words, "edge_index": edge_index}
    return Sample(inputs=inputs, target=_classes(size, size.nodes), origin="generated")


def _read_reddit(root: Path) -> Sample:
    """Reads the first 128 graphs of REDDIT-BINARY, which has no node features: constant ones."""
    batch = Batch.from_data_list(list(TUDataset(str(root / "TUDataset"), "REDDIT-BINARY")[:128]))
    inputs = {"x": torch.ones(batch.num_nodes, 1), "edge_index": batch.edge_index, "batch": batch.batch}
    return Sample(inputs=inputs, target=batch.y, origin="REDDIT-BINARY")


def _read_cora(root: Path) -> Sample:
    data = Planetoid(str(root / "Planetoid"), "Cora", transform=NormalizeFeatures())[0]
    return Sample(inputs={"x": data.x, "edge_index": data.edge_index}, target=data.y, origin="Cora")


def _gcn(size: Size) -> nn.Module:
    return NodeClassifier(GCNConv(size.features, size.hidden), GCNConv(size.hidden, size.classes))


def _sage(size: Size) -> nn.Module:
    return NodeClassifier(SAGEConv(size.features, size.hidden), SAGEConv(size.hidden, size.classes))


def _gat(size: Size, heads: int = 4) -> nn.Module:
    first = GATConv(size.features, max(1, size.hidden // heads), heads=heads)
    return NodeClassifier(first, GATConv(first.out_channels * heads, size.classes, heads=heads, concat=False))


def _gin_nodes(size: Size) -> nn.Module:
    def layer(before: int, after: int) -> GINConv:
        return GINConv(nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after)))

    return NodeClassifier(layer(size.features, size.hidden), layer(size.hidden, size.classes))


def _gin(size: Size) -> nn.Module:
    return GraphClassifier(size.features, size.hidden, size.classes)


_MILLION = Size(nodes=100_000, edges=1_000_000, features=128, hidden=128, classes=40)
_FIVE_MILLION = replace(_MILLION, edges=5_000_000)
_REDDIT = Size(nodes=68_000, edges=157_000, features=1, hidden=64, classes=2, graphs=128)
_CORA = Size(nodes=2_708, edges=10_556, features=1_433, hidden=16, classes=7)

WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            Workload(
                name="W1", title="GIN 5x64, a batch of 128 graphs", size=_REDDIT, model=_gin, generate=_batch,
                read=_read_reddit,
            ),
            Workload(
                name="W2", title="GCN on a power-law graph", size=_MILLION, model=_gcn, generate=_power_law, grows=True
            ),
            Workload(
                name="W3", title="GraphSAGE on the same graph", size=_MILLION, model=_sage, generate=_power_law,
                grows=True,
            ),
            Workload(
                name="W4", title="GAT, 4 heads, on the same graph", size=_MILLION, model=_gat, generate=_power_law,
                grows=True,
            ),
            Workload(
                name="W5", title="GCN 2x16 on Cora", size=_CORA, model=_gcn, generate=_citations, read=_read_cora
            ),
        )
    }
)  # fmt: skip

INFERENCE: Mapping[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            Workload(name="V1", title="GCN 128-128-40", size=_FIVE_MILLION, model=_gcn, generate=_power_law),
            Workload(name="V2", title="GIN 128-128-40", size=_FIVE_MILLION, model=_gin_nodes, generate=_power_law),
            Workload(name="V3", title="GraphSAGE 128-128-40", size=_FIVE_MILLION, model=_sage, generate=_power_law),
            Workload(name="V4", title="GAT 4x32", size=_MILLION, model=_gat, generate=_power_law),
            replace(WORKLOADS["W1"], name="V5"),
            replace(WORKLOADS["W5"], name="V6"),
        )
    }
)

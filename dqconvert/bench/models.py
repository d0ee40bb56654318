"""The models of the benchmark's workloads: ordinary PyG, as in its examples."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GINConv, global_add_pool


class GraphClassifier(nn.Module):
    """A graph isomorphism network: GIN layers of two linear maps, summed over each graph, then two more."""

    def __init__(self, features: int, hidden: int, classes: int, num_layers: int = 5) -> None:
        super().__init__()
        widths = [features] + [hidden] * num_layers
        self.convs = nn.ModuleList(
            GINConv(
                nn.Sequential(
                    nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after), nn.ReLU(), nn.BatchNorm1d(after)
                ),
                train_eps=True,
            )
            for before, after in pairwise(widths)
        )
        self.lin1 = nn.Linear(hidden, hidden)
        self.lin2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index)
        x = F.relu(self.lin1(global_add_pool(x, batch)))
        return self.lin2(F.dropout(x, p=0.5, training=self.training))


class NodeClassifier(nn.Module):
    """Two message-passing layers, ReLU and dropout between them."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.relu(self.conv1(x, edge_index))
        return self.conv2(F.dropout(x, p=0.5, training=self.training), edge_index)

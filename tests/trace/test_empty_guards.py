"""Guards on whether there are edges: gone where nothing hangs on them, and as they were where something does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GCNConv

import dqconvert
from dqconvert import GuardError, QConfig
from dqconvert.trace.guards import guard

X, EDGES = torch.randn(30, 4), torch.randint(30, (2, 80))
NONE = EDGES[:, :0]


class Shortcut(nn.Module):
    """Answers at once where there are no edges."""

    def __init__(self, layer, answer):
        super().__init__()
        self.layer, self.answer = layer, answer

    def forward(self, x, edge_index):
        if edge_index.numel() == 0:
            return self.answer(self.layer, x)
        return self.layer(x, edge_index) * (1.0 if edge_index.size(1) > 0 else 2.0)


def guards(module):
    return [node for node in module.graph.nodes if node.target is guard]


def test_one_that_changes_nothing_is_dropped():
    """PyG's softmax, and this one: each asks, and computes the same."""
    model = GATConv(4, 3)
    module, _ = dqconvert.prepare(model, QConfig(), (X, EDGES))
    assert [node for node in guards(module) if node.args[2] == 0] == []
    assert torch.equal(module(X, NONE), model(X, NONE))


def test_one_that_changes_something_is_put_back():
    model = Shortcut(GCNConv(4, 3), lambda layer, x: layer.bias + 7 * x[:, :3])
    module, _ = dqconvert.prepare(model, QConfig(), (X, EDGES))
    assert len(guards(module)) >= 2
    assert torch.equal(module(X, EDGES), model(X, EDGES))
    with pytest.raises(GuardError, match=r"the model was traced where `0 == 0` was False, and now it is True"):
        module(X, NONE)


def test_nodes_that_are_put_back_stand_where_they_stood():
    module, _ = dqconvert.prepare(Shortcut(GCNConv(4, 3), lambda layer, x: 7 * x), QConfig(), (X, EDGES))
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        assert all(order[source] < order[node] for source in node.all_input_nodes)
    module.graph.lint()

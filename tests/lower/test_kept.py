"""What stays as it is in an integer module: gradients inside a forward, modules that do as they like."""

from __future__ import annotations

import torch
from torch import nn
from torch_geometric.nn import GCNConv
from torch_geometric.nn.aggr import EquilibriumAggregation

import dqconvert

RNG = torch.Generator().manual_seed(0)
X, EDGE_INDEX = torch.randn(30, 8, generator=RNG), torch.randint(0, 30, (2, 120), generator=RNG)
BATCH = torch.arange(30) // 10


class Settled(nn.Module):
    """Its readout minimizes an energy, by gradients that it takes itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.readout = GCNConv(8, 8), EquilibriumAggregation(8, 4, [6], grad_iter=2)

    def forward(self, x, edge_index, batch):
        return self.readout(self.conv(x, edge_index).relu(), batch)


class Careless(nn.Module):
    """Changes what it is given, and lets go of its memory."""

    class Part(nn.Module):
        def forward(self, x):
            if x.sum() > 1e9:  # a graph cannot hold it
                return x
            y = x.clone()
            if not x.requires_grad:
                x.zero_()
                x.untyped_storage().resize_(0)
            return y

    def __init__(self):
        super().__init__()
        self.first, self.part, self.second = nn.Linear(8, 8), self.Part(), nn.Linear(8, 4)

    def forward(self, x, edge_index):
        h = self.first(x).relu()
        return self.second(self.part(h)[edge_index[0]])


def converted(model, *args):
    module = dqconvert.prepare(model, "int8-dq", args).module.train()
    module(*args)
    return module.eval(), dqconvert.convert(module)


def test_a_gradient_inside_the_forward_is_taken_in_float():
    module, integer = converted(Settled(), X, EDGE_INDEX, BATCH)
    found, expected = integer(X, EDGE_INDEX, BATCH), module(X, EDGE_INDEX, BATCH).detach()
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert any(left.reason == "its gradient is taken in the forward" for left in integer.report.floats)
    assert not found.requires_grad
    assert torch.is_grad_enabled()


def test_modules_that_stay_may_do_anything_with_what_they_are_given():
    module, integer = converted(Careless(), X, EDGE_INDEX)
    with torch.no_grad():
        expected = module(X, EDGE_INDEX)
    for _ in range(2):
        assert (integer(X, EDGE_INDEX) - expected).abs().max() < 0.05

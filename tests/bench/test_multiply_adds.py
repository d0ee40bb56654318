"""`multiply_adds` against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, SAGEConv
from torch_geometric.utils import scatter

import dqconvert
from dqconvert.bench.multiply_adds import multiply_adds

NODES, EDGES = 30, 120
X, EDGE_INDEX = torch.randn(NODES, 8), torch.randint(0, NODES, (2, EDGES))


def converted(model, config):
    module = dqconvert.prepare(model, config, (X, EDGE_INDEX)).module.train()
    module(X, EDGE_INDEX)
    return dqconvert.convert(module)


@pytest.mark.parametrize("config", ["int8-dq", "int4-dq"])
def test_of_integer_modules(config):
    """Rows by depth by columns, and edges by columns: of a GCN, loops included, and where codes are packed, too."""
    integer = converted(GCN(8, 16, 2, 4), config)
    loops = int((EDGE_INDEX[0] == EDGE_INDEX[1]).sum())
    edges = EDGES - loops + NODES
    found = multiply_adds(lambda: integer(X, EDGE_INDEX))
    assert found.integer == NODES * (8 * 16 + 16 * 4) + edges * (16 + 4)
    assert found.floating == 0
    assert found.share == 1


def test_of_what_stays_in_float():
    integer = converted(SAGEConv(8, 4, aggr="softmax"), "int8-dq")
    found = multiply_adds(lambda: integer(X, EDGE_INDEX))
    assert found.integer == NODES * 2 * 8 * 4
    assert found.floating > EDGES * 8
    assert 0 < found.share < 1


def test_of_torch():
    index = torch.arange(EDGES) % 7
    cases = {
        NODES * 8 * 5: lambda: nn.Linear(8, 5)(X),
        NODES * NODES * 8: lambda: X @ X.t(),
        EDGES * 3: lambda: scatter(torch.ones(EDGES, 3), index, 0, 7, reduce="sum"),
        EDGES * 2: lambda: scatter(torch.ones(EDGES, 2), index, 0, 7, reduce="max"),
    }
    for expected, call in cases.items():
        found = multiply_adds(call)
        assert (found.integer, found.floating) == (0, expected)
    with torch.no_grad():
        assert multiply_adds(lambda: nn.LSTM(8, 5)(X[:, None])).floating == NODES * 4 * 5 * (8 + 5)


def test_of_nothing():
    assert math.isnan(multiply_adds(lambda: X.relu()).share)

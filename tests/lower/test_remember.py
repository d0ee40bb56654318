"""What integer modules remember of a graph is never that of another one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert
from dqconvert.lower.remember import Remember


def converted(layer, x, edge_index):
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(layer(8, 16, 2, 4), "int8-ptq", (x, edge_index))
    dqconvert.calibrate(module, (x, edge_index))
    return dqconvert.convert(module), dqconvert.convert(module)


@pytest.mark.parametrize("layer", [GCN, GraphSAGE, GIN, GAT])
def test_numpy_may_write_into_the_graph(layer):
    """Torch does not notice: neither in the tensor that was given, nor in another one of the same memory."""
    buffer = np.random.default_rng(0).integers(0, 100, (2, 400))
    x, edge_index = torch.randn(100, 8), torch.from_numpy(buffer)
    integer, fresh = converted(layer, x, edge_index.clone())
    integer(x, edge_index)
    for again in (edge_index, torch.from_numpy(buffer)):
        buffer[0, :50] = (buffer[0, :50] + 17) % 100
        assert torch.equal(integer(x, again), fresh(x, again.clone()))
    buffer[1, -1] = 100
    with pytest.raises(IndexError, match="names node 100, and there are 100 nodes"):
        integer(x, edge_index)


class Counting(nn.Module):
    """Its argument, seen otherwise, and how often it was asked."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, index):
        self.count += 1
        return (index[0],)


def test_what_is_remembered_has_memory_of_its_own():
    inner = Counting()
    remember, first = Remember(inner), torch.tensor([[1, 2], [3, 4]])
    twin = first.clone()
    remember(first)
    first.numpy()[:] = 0
    assert remember(twin)[0].tolist() == [1, 2]
    assert inner.count == 1
    assert remember(first)[0].tolist() == [0, 0]
    assert inner.count == 2

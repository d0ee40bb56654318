"""What integer modules remember of a graph is never that of another one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GATConv, GCNConv, GraphSAGE
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops, degree

import dqconvert
from dqconvert.lower.remember import Remember


def converted(layer, x, edge_index):
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(layer(8, 16, 2, 4), "int8-ptq", (x, edge_index))
    dqconvert.calibrate(module, (x, edge_index))
    return dqconvert.convert(module), dqconvert.convert(module)


@pytest.mark.sample(2)
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


class Returns(nn.Module):
    """A layer, and something of its graph beside its result, in one form or another."""

    def __init__(self, form):
        super().__init__()
        self.conv, self.form = GCNConv(8, 4), form
        self.scales = nn.Parameter(torch.rand(4))

    def forward(self, x, edge_index):
        edges, norm = gcn_norm(edge_index, None, x.size(0))
        looped, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        h = self.conv(x, edge_index)
        match self.form:
            case "tuple":
                return h, edges
            case "view":
                return h, edges[1], norm.view(-1, 1)
            case "dict":
                return {"h": h, "graph": {"edges": edges, "norm": norm}}
            case "list":
                return [h, [looped.t(), looped[0]]]
            case "constant":
                return h, self.scales, degree(edges[1], x.size(0)).unsqueeze(-1)


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.sample(5)
@pytest.mark.parametrize("form", ["tuple", "view", "dict", "list", "constant", "attention"])
@pytest.mark.parametrize("kind", ["training", "evaluation", "integer", "loaded"])
def test_what_leaves_a_module_may_be_written_over(form, kind, tmp_path):
    """Through numpy, which torch does not notice: what is remembered is not what was handed out."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(20, 8), torch.randint(20, (2, 50))
    model, given = Returns(form), (x, edge_index)
    if form == "attention":
        model, given = GATConv(8, 4, heads=2), {"x": x, "edge_index": edge_index, "return_attention_weights": True}
    call = (lambda module: module(**given)) if isinstance(given, dict) else (lambda module: module(*given))
    module, _ = dqconvert.prepare(model, "int8-qat", given)
    call(module)
    if kind != "training":
        module.eval()
    if kind in ("integer", "loaded"):
        module = dqconvert.convert(module)
    if kind == "loaded":
        dqconvert.save(module, tmp_path / "m.int")
        module = dqconvert.load(tmp_path / "m.int")
    torch.manual_seed(1)
    first = call(module)
    want = [leaf.detach().clone() for leaf in leaves(first)]
    for leaf in leaves(first):
        if not isinstance(leaf, nn.Parameter):  # the user's own, which the float model hands out, too
            leaf.detach().numpy()[...] = 0
    if kind != "training":  # where ranges grow
        assert all(map(torch.equal, leaves(call(module)), want))
    assert all(map(torch.equal, leaves(call(module))[1:], want[1:]))


@pytest.mark.parametrize("layer", [GCN, GraphSAGE, GIN])
def test_results_that_cannot_be_what_is_remembered_are_not_looked_at(layer):
    integer, _ = converted(layer, torch.randn(100, 8), torch.randint(100, (2, 400)))
    assert "apart" not in integer.code


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

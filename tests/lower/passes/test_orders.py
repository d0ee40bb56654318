"""What integer modules compute of a new graph: the same as PyG's functions, once for all layers, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, ChebConv, GCNConv, GraphSAGE, SGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import dqconvert
from dqconvert.errors import InputTypeError
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.lower import PASSES, lower
from dqconvert.lower.passes.orders import drop_checks, order_norms, pin_norms
from dqconvert.lower.remember import Remember
from dqconvert.lower.runtime import check_edges

WIDTH = 8


def a_graph(nodes=30, edges=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, WIDTH, generator=generator), torch.randint(0, nodes, (2, edges), generator=generator)


def trained(model, *args, **kwargs):
    module = dqconvert.prepare(model, "int8-dq", {"x": args[0], "edge_index": args[1], **kwargs}).module.train()
    module(*args, **kwargs)
    return module


def calls(module, function):
    """The calls of a function in an integer module, what it remembers included."""
    graphs = [module.graph, *(child.inner.graph for child in module.children() if isinstance(child, Remember))]
    return [node for graph in graphs for node in graph.nodes if node.target is function]


class OwnNorm(nn.Module):
    """Takes the norm by hand, and shows it."""

    def __init__(self, flow="source_to_target"):
        super().__init__()
        self.conv, self.flow = GCNConv(WIDTH, 4, normalize=False), flow

    def forward(self, x, edge_index):
        edges, weight = gcn_norm(edge_index, None, x.size(0), False, True, self.flow, x.dtype)
        return self.conv(x, edges, weight), weight


MODELS = {
    "GCN": lambda: GCN(WIDTH, 8, 3, 4),
    "improved": lambda: GCNConv(WIDTH, 4, improved=True),
    "no loops": lambda: GCNConv(WIDTH, 4, add_self_loops=False),
    "SGConv": lambda: SGConv(WIDTH, 4, K=2),
    "against the flow": lambda: GCNConv(WIDTH, 4, flow="target_to_source"),
    "not normalized": lambda: GCNConv(WIDTH, 4, normalize=False),
    "GraphSAGE": lambda: GraphSAGE(WIDTH, 8, 2, 4),
    "GAT": lambda: GAT(WIDTH, 8, 2, 4, heads=2),
    "own norm": OwnNorm,
    "own norm, against the flow": lambda: OwnNorm("target_to_source"),
    "ChebConv": lambda: ChebConv(WIDTH, 4, K=2),
}
SORTED = ("GCN", "improved", "no loops", "own norm")


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MODELS)
def test_the_fast_way_changes_nothing(name):
    module = trained(MODELS[name](), *a_graph())
    fast = dqconvert.convert(module)
    slow = lower(module, passes=[run for run in PASSES if run not in (pin_norms, order_norms, drop_checks)])
    assert bool(calls(fast, gcn_order)) == (name in SORTED)
    assert not calls(slow, gcn_order)
    for graph in (a_graph(), a_graph(50, 400, 1), a_graph(5, 0, 2), a_graph(3, 60, 3)):
        found, expected = fast(*graph), slow(*graph)
        for one, other in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, expected)), strict=True):
            assert torch.equal(one, other)


def test_all_layers_share_one_sort():
    integer = dqconvert.convert(trained(GCN(WIDTH, 8, 3, 4), *a_graph()))
    assert len(calls(integer, gcn_order)) == 1
    assert len(calls(integer, gcn_codes)) == 3
    assert not calls(integer, gcn_norm)
    assert not calls(integer, receiver_order)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_of_another_type_than_the_model_s_are_refused(dtype):
    """As they are by the float model, whose weights are of that type."""
    integer = dqconvert.convert(trained(GCN(WIDTH, 8, 2, 4), *a_graph()))
    x, edge_index = a_graph()
    with pytest.raises(InputTypeError, match=rf"x is {dtype}, and the model computes in torch.float32"):
        integer(x.to(dtype), edge_index)


def test_positions_are_sorted_where_weights_are_given():
    x, edge_index = a_graph()
    weighted = dqconvert.convert(trained(GCN(WIDTH, 8, 2, 4), x, edge_index, edge_weight=torch.rand(120)))
    plain = dqconvert.convert(trained(GraphSAGE(WIDTH, 8, 2, 4), x, edge_index))
    assert [node.kwargs.get("positions", True) for node in calls(weighted, receiver_order)] == [True]
    assert [node.kwargs.get("positions", True) for node in calls(plain, receiver_order)] == [False]


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GAT", "no loops"])
@pytest.mark.parametrize("wrong", [30, -1])
def test_nodes_that_are_not_there_are_still_found(name, wrong):
    integer = dqconvert.convert(trained(MODELS[name](), *a_graph()))
    for row in (0, 1):
        x, edge_index = a_graph()
        edge_index[row, 7] = wrong
        with pytest.raises(IndexError, match=f"names node {wrong}, and there are 30 nodes"):
            integer(x, edge_index)
    with pytest.raises(TypeError, match="integers"):
        integer(x, edge_index.float())


def test_ends_are_looked_at_by_the_sort_alone():
    for name, looked in (("GCN", False), ("GraphSAGE", False), ("ChebConv", True)):
        integer = dqconvert.convert(trained(MODELS[name](), *a_graph()))
        assert [node.kwargs.get("ends", True) for node in calls(integer, check_edges)] == [looked], name

"""Codes below 16 are held two to a byte: the same results, from half the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert
from dqconvert.lower import PASSES, lower
from dqconvert.lower.passes.packing import pack_codes

WIDTH = 13

MODELS = {
    "GCN": (lambda: GCN(WIDTH, 15, 3, 7), 5),
    "GIN": (lambda: GIN(WIDTH, 16, 2, 7), 4),
    "GraphSAGE": (lambda: GraphSAGE(WIDTH, 16, 2, 7), 5),
    "GraphSAGE, max": (lambda: GraphSAGE(WIDTH, 9, 2, 7, aggr="max"), 5),
    "GAT": (lambda: GAT(WIDTH, 16, 2, 7, heads=4), 0),
}


def prepared(name, config):
    torch.manual_seed(1)
    graph = torch.randn(40, WIDTH), torch.randint(40, (2, 200))
    module = dqconvert.prepare(MODELS[name][0](), config, graph).module
    module.train()(*graph)
    return module.eval()


def packed(module: nn.Module) -> int:
    """How many operations read packed codes."""
    return sum(node.kwargs.get("packed_input", False) for node in module.graph.nodes)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", MODELS)
def test_packed_codes_give_the_same(name):
    module = prepared(name, "int4-dq")
    integer = dqconvert.convert(module)
    apart = lower(module, passes=[run for run in PASSES if run is not pack_codes])
    assert packed(integer) >= MODELS[name][1]
    assert packed(apart) == 0
    for nodes, edges in ((40, 200), (33, 0), (90, 700), (1, 3)):
        graph = torch.randn(nodes, WIDTH), torch.randint(nodes, (2, edges))
        assert torch.equal(integer(*graph), apart(*graph))


def test_codes_of_eight_bits_are_not_packed():
    integer = dqconvert.convert(prepared("GCN", "int8-dq"))
    assert packed(integer) == 0

"""Training through torch.compile with inductor, one graph for all sizes, against eager training."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch._inductor.config as inductor
from torch.nn import functional
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Compiled code draws them as eager code does."""
    torch._dynamo.reset()
    with inductor.patch(fallback_random=True):
        yield
    torch._dynamo.reset()


def graph(nodes, edges):
    edge_index = torch.randint(nodes, (2, edges))
    edge_index[:, :3] = torch.arange(3)  # self-loops, which layers treat apart
    return torch.randn(nodes, 16), edge_index


@pytest.mark.study
@pytest.mark.filterwarnings("error:Dynamo")
@pytest.mark.parametrize("layer", [GIN, GraphSAGE, GCN, GAT])
def test_steps_equal_those_of_eager_training(layer):
    torch.manual_seed(0)
    eager, _ = dqconvert.prepare(layer(16, 32, 2, 4, dropout=0.2), "int8-dq", graph(40, 150))
    twin = copy.deepcopy(eager)
    runs = {"eager": (eager, eager), "compiled": (twin, torch.compile(twin, fullgraph=True, dynamic=True))}
    for step, (nodes, edges) in enumerate([(60, 200), (60, 200), (90, 333)]):
        x, edge_index = graph(nodes, edges)
        y = torch.randint(4, (nodes,))
        found = {}
        for name, (module, call) in runs.items():
            torch.manual_seed(step)
            module.zero_grad()
            out = call(x, edge_index)
            functional.cross_entropy(out, y).backward()
            gradients = {path: parameter.grad for path, parameter in module.named_parameters()}
            found[name] = out.detach(), gradients, module.state_dict()
        for one, two in zip(found["eager"], found["compiled"], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)

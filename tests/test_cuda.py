"""On a GPU: the same numbers as on the CPU, and nothing that waits for it."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda"
LAYERS = [GCN, GIN, GraphSAGE, GAT]
NEVER = {"preset": "int8-dq", "protect": {"p_min": 0.0, "p_max": 0.0}}


@pytest.fixture(params=LAYERS, ids=lambda layer: layer.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param(16, 32, num_layers=2, out_channels=4)


@pytest.fixture
def graph():
    torch.manual_seed(1)
    edge_index = torch.randint(90, (2, 500))
    edge_index[1, :100] = 0
    return torch.randn(90, 16), edge_index


def on_the_gpu(module, graph):
    return copy.deepcopy(module).to(DEVICE), tuple(tensor.to(DEVICE) for tensor in graph)


def train(module, graph, steps=3):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    target = torch.arange(len(graph[0]), device=graph[0].device) % 4
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(module.train()(*graph), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


@contextmanager
def waiting_is_an_error():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_are_those_of_the_cpu(model, graph):
    """Nothing is drawn: no node is protected. Sums differ in their last bits, and so may a code beside a tie."""
    module = dqconvert.prepare(model, NEVER).module
    twin, there = on_the_gpu(module, graph)
    torch.testing.assert_close(train(twin, there), train(module, graph), rtol=1e-2, atol=1e-2)
    for name, value in module.state_dict().items():
        if name.endswith(("min_val", "max_val")):
            torch.testing.assert_close(twin.state_dict()[name].cpu(), value, rtol=2e-2, atol=2e-2, msg=name)


def test_fused_or_not_it_is_the_same(model, graph):
    fused = dqconvert.prepare(model, "int8-dq").module
    plain = dqconvert.prepare(model, "int8-dq", fuse=False).module
    losses = []
    for module in (fused, plain):
        module, there = on_the_gpu(module, graph)
        torch.manual_seed(2)
        losses.append(train(module, there))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_evaluation_is_that_of_the_cpu(model, graph):
    module = dqconvert.prepare(model, "int8-dq").module
    train(module, graph)
    twin, there = on_the_gpu(module, graph)
    with torch.no_grad():
        found, expected = twin.eval()(*there).cpu(), module.eval()(*graph)
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("layer", [GIN, GraphSAGE])  # adding self-loops, as the other two do, waits in float as well
def test_a_step_waits_for_nothing(layer, graph):
    module, there = on_the_gpu(dqconvert.prepare(layer(16, 32, 2, 4), "int8-dq").module, graph)
    train(module, there)
    weight = torch.rand(90, 4, device=DEVICE)
    with waiting_is_an_error():
        (module.train()(*there) * weight).sum().backward()


def test_mixed_precision(model, graph):
    module, there = on_the_gpu(dqconvert.prepare(model, "int8-dq").module, graph)
    scaler, optimizer = torch.amp.GradScaler(DEVICE), torch.optim.Adam(module.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.float16):
            loss = module.train()(*there).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.isfinite(loss)
    assert all(value.dtype == torch.float32 for name, value in module.state_dict().items() if "_val" in name)


def test_draws_follow_the_seed(model, graph):
    module, there = on_the_gpu(dqconvert.prepare(model, "int8-dq").module, graph)
    before, found = copy.deepcopy(module.state_dict()), []
    for _ in range(2):
        module.load_state_dict(before)
        torch.manual_seed(5)
        found.append(module.train()(*there).detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)  # atomic additions come in any order


def test_integer_modules_move(model, graph):
    module = dqconvert.prepare(model, "int8-dq").module
    train(module, graph)
    integer = dqconvert.convert(module)
    twin, there = on_the_gpu(integer, graph)
    found, expected = twin(*there).cpu(), integer(*graph)
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_a_model_that_is_there_already_is_prepared_there(model, graph):
    there = tuple(tensor.to(DEVICE) for tensor in graph)
    module = dqconvert.prepare(model.to(DEVICE), "int8-dq", there).module
    assert {tensor.device.type for tensor in module.state_dict().values()} == {DEVICE}
    assert train(module, there).isfinite().all()
    assert module.eval()(*there).isfinite().all()

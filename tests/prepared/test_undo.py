"""A call that fails leaves no trace, whatever its door: ranges, running averages, random numbers are as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GCNConv, InstanceNorm

import dqconvert

X = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
EDGES = torch.stack([torch.arange(160), 3 * torch.arange(160) + 1]) % 40


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = GCNConv(16, 8), nn.BatchNorm1d(8), GCNConv(8, 3)
        self.instance = InstanceNorm(8, track_running_stats=True)

    def forward(self, x, edge_index):
        x = self.norm(self.first(x, edge_index)).relu()
        return self.second(nn.functional.dropout(x, training=self.training), edge_index)

    def picky(self, x, edge_index, width):
        x = self.norm(self.first(x, edge_index)).relu()
        x = nn.functional.dropout(x, 0.3, training=True)
        if float(x.detach().sum()) > 1e30:  # no graph can hold this
            return x
        return self.second(x[:, :width], edge_index)

    def instances(self, x, edge_index, batch):
        return self.second(self.instance(self.first(x, edge_index), batch)[:, :5], edge_index)


@pytest.fixture(scope="module")
def trained():
    module, _ = dqconvert.prepare(Encoder(), "int8-dq", (X, EDGES))
    module.train()(X, EDGES).sum().backward()
    return module


@pytest.fixture
def module(trained):
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def gcn():
    module, _ = dqconvert.prepare(GCN(16, 8, 2, 3), "int8-dq", (X, EDGES))
    module.train()(X, EDGES).sum().backward()
    return module


def leaves_no_trace(module, call, error=Exception):
    before, state = {key: value.clone() for key, value in module.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(error):
        call()
    after = module.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert torch.equal(torch.get_rng_state(), state)
    new = [quantizer for path, quantizer in module.quantizers() if f"{path}.min_val" not in before]
    assert all(quantizer.min_val.isinf().all() for quantizer in new)


@pytest.mark.parametrize("edges", [None, EDGES.to_sparse(), EDGES.tolist()])
def test_connectivity_of_a_form_that_the_float_model_refuses(gcn, edges):
    # The user's own code runs, and its first layers compute: their ranges follow what they see.
    leaves_no_trace(gcn, lambda: gcn(X * 3, edges))


def test_code_of_the_user_s_that_fails_behind_a_layer(module):
    leaves_no_trace(module, lambda: module.picky(X * 5, EDGES, 5), RuntimeError)
    leaves_no_trace(module, lambda: module.picky(X * 5, EDGES, 5), RuntimeError)
    assert module.picky(X * 5, EDGES, 8).shape == (40, 3)
    leaves_no_trace(module, lambda: module.picky(X * 50, EDGES, 5), RuntimeError)


def test_parts(module):
    leaves_no_trace(module, lambda: module.first(X * 5, EDGES + 1))
    module.eval().first.train()
    leaves_no_trace(module, lambda: module.first(X * 5, EDGES + 1))
    leaves_no_trace(module, lambda: module.first(X * 5, None))


def test_averages_that_a_norm_puts_others_in_the_place_of(module):
    batch = torch.arange(40) // 10
    leaves_no_trace(module, lambda: module.instances(X * 5, EDGES, batch), RuntimeError)
    assert not module.instance.running_mean.requires_grad


def test_calibrating_in_evaluation(module):
    module.eval()
    for _, quantizer in module.quantizers():
        quantizer.calibrating = True
    leaves_no_trace(module, lambda: module.picky(X * 5, EDGES, 5), RuntimeError)


def test_an_interrupt(module):
    def stop(*_):
        raise KeyboardInterrupt

    module.second.quant.register_forward_hook(stop)
    next(module.second.quant.children()).register_forward_hook(stop)
    leaves_no_trace(module, lambda: module.picky(X * 5, EDGES, 8), KeyboardInterrupt)


def test_a_quantizer_that_saw_nothing_has_seen_nothing(module):
    fresh, _ = dqconvert.prepare(Encoder(), "int8-dq", (X, EDGES))
    leaves_no_trace(fresh, lambda: fresh(X, EDGES + 1))
    with pytest.raises(dqconvert.ObserverError):
        fresh.eval()(X, EDGES)


def test_arguments_that_nobody_takes_say_nothing_of_the_next_ones(gcn):
    """After them the model runs its graph as ever, and is not in the hands of its float code."""
    module = copy.deepcopy(gcn).eval()
    expected = module(X, EDGES)
    for wrong in (
        (X.numpy(), EDGES),
        (X, EDGES.numpy()),
        (X, "edges"),
        (object(), EDGES),
        (X, None),
        (X.to_sparse(), 3),
    ):
        with pytest.raises((TypeError, ValueError, dqconvert.errors.DQConvertError)):
            module(*wrong)
    assert module.own_code == {}
    assert torch.equal(module(X, EDGES), expected)


class Numbers(nn.Module):
    """Takes features that are numpy's, too, which no graph does."""

    def __init__(self):
        super().__init__()
        self.conv, self.lin = GCNConv(16, 8), nn.Linear(8, 3)

    def forward(self, x, edge_index):
        x = x if isinstance(x, torch.Tensor) else torch.from_numpy(x["rows"])
        return self.lin(self.conv(x, edge_index).relu())


def test_arguments_that_only_the_user_s_code_takes_leave_the_graph_to_the_others():
    module, _ = dqconvert.prepare(Numbers(), "int8-dq", (X, EDGES))
    module.train()(X, EDGES).sum().backward()
    expected = module.eval()(X, EDGES)
    for _ in range(2):
        assert (module({"rows": X.numpy()}, EDGES) - expected).abs().max() < 0.1 * expected.abs().max()
        assert torch.equal(module(X, EDGES), expected)
    assert module.own_code == {}


def test_gradients_are_on_again_where_a_method_without_them_fails():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.first(x)

        @torch.no_grad()
        def predict(self, x):
            return self.second(self.first(x))

    x = torch.randn(5, 4)
    module, _ = dqconvert.prepare(Model(), "int8-dq", (x,))
    module.train()(x)
    with pytest.raises(dqconvert.ObserverError):
        module.eval().predict(x)
    assert torch.is_grad_enabled()

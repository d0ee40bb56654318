"""Quantization noise and stochastic rounding: in training, by torch's generator; in evaluation neither."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch_geometric.nn import GAT, GCN, GIN

import dqconvert
from dqconvert import Protect, QConfig, QSpec
from dqconvert.quant import FakeQuantize


def quantizer(noise=None, **spec):
    return FakeQuantize(QSpec(**{"bits": 4, **spec}), name="q", signed=True, channels=4, channel_dim=1, noise=noise)


STOCHASTIC = {"rounding": "stochastic"}


@pytest.mark.sample(3)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("how", ["minmax", "learned"])
def test_stochastic_rounding_is_right_on_average(how, granularity):
    """Gupta et al., section 3.1: floor or ceiling, and the value itself on average."""
    torch.manual_seed(0)
    module = quantizer(range=how, granularity=granularity, **STOCHASTIC)
    x = torch.rand(6, 4) * 2 - 0.5
    module(x)
    module.observer_enabled = False
    lo, hi = module.range
    inside = (x > lo) & (x < hi)
    with torch.no_grad():
        many = torch.stack([module(x) for _ in range(4000)])
    assert ((many - x).abs() < module.scale * 1.001)[:, inside].all()
    assert ((many.mean(0) - x)[inside].abs() < 0.05 * module.scale.max()).all()
    assert len(many[:, 2, 2].unique()) == 2


def test_values_on_the_grid_and_protected_rows_stay():
    module = quantizer(**STOCHASTIC)
    x = torch.tensor([[-8.0, 0.0, 3.0, 7.0]] * 3)
    assert torch.equal(module(x), x)
    between = x + torch.rand(3, 4)
    y = module(between, torch.tensor([True, False, True]))
    assert torch.equal(y[::2], between[::2])
    assert (y[1] != between[1]).any()


def test_half_precision_keeps_what_is_added():
    module = quantizer(bits=6, **STOCHASTIC)
    x = torch.linspace(-1, 1, 64).bfloat16().view(16, 4)
    module(x)
    with torch.no_grad():
        many = torch.stack([module(x).float() for _ in range(2000)])
    assert module(x).dtype == torch.bfloat16
    assert ((many.mean(0) - x.float())[2:-2].abs() < 0.15 * module.scale).all()


@pytest.mark.parametrize("kind", [{"noise": 0.4}, STOCHASTIC, {"noise": 0.4, "range": "learned", **STOCHASTIC}])
def test_draws_follow_the_seed_and_evaluation_draws_nothing(kind):
    module, plain = quantizer(**kind), quantizer(range=kind.get("range", "minmax"))
    x = torch.randn(40, 4)
    plain(x)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(module(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    state = torch.get_rng_state()
    assert torch.equal(module.eval()(x), plain.eval()(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_leaves_the_other_values_as_they_are():
    module = quantizer(noise=0.25)
    x = torch.randn(500, 8, requires_grad=True)
    y = module(x)
    rounded = y != x
    assert abs(rounded.float().mean().item() - 0.25) < 0.03
    assert torch.equal(y[rounded], module.eval()(x)[rounded])
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_what_passes_in_float_is_not_clipped():
    module = quantizer(noise=0.5, range="percentile", percentile=0.2, grad="clip")
    x = torch.randn(500, 8, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert (x.grad[y == x] == 1).all()
    assert (x.grad == 0).any()


# -- whole models ------------------------------------------------------------------------------------------------

RANDOM = {
    "noise": dqconvert.presets["int4-nqat"],
    "stochastic": QConfig(
        weight=QSpec(bits=4, **STOCHASTIC),
        activation=QSpec(bits=4, range="percentile", grad="clip", **STOCHASTIC),
        message=QSpec(bits=4, **STOCHASTIC),
        protect=Protect(p_max=0.3),
    ),
    "learned": QConfig(
        weight=QSpec(bits=4, range="learned", symmetric=True, **STOCHASTIC),
        message=QSpec(bits=4, range="learned"),
        noise=0.7,
    ),
}


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return torch.randn(60, 16), torch.randint(60, (2, 200))


@pytest.mark.sample(4)
@pytest.mark.parametrize("config", RANDOM)
@pytest.mark.parametrize("model_class", [GCN, GIN, GAT])
def test_fused_and_step_by_step_draw_alike(model_class, config, graph):
    torch.manual_seed(0)
    model, found = model_class(16, 8, num_layers=2, out_channels=4), []
    for fuse in (True, False):
        module = dqconvert.prepare(model, RANDOM[config], graph, fuse=fuse).module.train()
        torch.manual_seed(3)
        outs = [module(*graph) for _ in range(2)]
        outs[-1].square().sum().backward()
        found.append([*outs, *(p.grad for p in module.parameters() if p.grad is not None), module.eval()(*graph)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("config", RANDOM)
def test_it_becomes_integers_and_is_saved_loaded_copied_and_pickled(config, graph, tmp_path):
    torch.manual_seed(0)
    model = GCN(16, 8, num_layers=2, out_channels=4)
    module = dqconvert.prepare(model, RANDOM[config], graph).module
    module.train()(*graph)
    module.eval()
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(*graph), module(*graph), rtol=1e-5, atol=1e-5)
    dqconvert.save(module, tmp_path / "module.dq")
    for twin in (
        dqconvert.load(tmp_path / "module.dq", model),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
    ):
        drawn = []
        for one in (copy.deepcopy(module), twin):
            torch.manual_seed(5)
            drawn.append(one.train()(*graph))
        assert torch.equal(*drawn)
    assert dqconvert.QConfig.from_dict(module.qconfig.to_dict()) == module.qconfig


def test_the_report_says_so(graph):
    report = str(dqconvert.prepare(GCN(16, 8, 2), RANDOM["learned"], graph).report)
    assert "noise 0.7" in report
    assert "rounded stochastically" in report

"""Quantizers whose step is learned: what they begin with, what trains them, and what they survive."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert
from dqconvert import QConfig, QSpec
from dqconvert.quant import FakeQuantize
from dqconvert.quant.learned import learned_ends

LEARNED = QSpec(bits=4, range="learned")
EVERYWHERE = QConfig(
    weight=QSpec(bits=4, range="learned", symmetric=True),
    activation=LEARNED,
    message=LEARNED,
    aggregate=LEARNED,
    protect=dqconvert.Protect(p_max=0.3),
)


def quantizer(channels=None, **spec):
    spec = QSpec(**{"bits": 4, "range": "learned", **spec})
    return FakeQuantize(spec, name="conv.quant.message", signed=True, channels=channels, channel_dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_it_begins_with_the_range_that_is_searched(granularity, symmetric):
    torch.manual_seed(0)
    x = torch.randn(50, 3) + 0.2
    learned, searched = (
        quantizer(3, range=how, granularity=granularity, symmetric=symmetric) for how in ("learned", "mse")
    )
    assert torch.equal(learned(x), searched(x))
    torch.testing.assert_close(learned.scale, searched.scale, rtol=1e-6, atol=0)
    assert torch.equal(learned.zero_point, searched.zero_point)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"] if symmetric else ["log_scale", "offset"]
    assert learned.log_scale.shape == learned.min_val.shape


@pytest.mark.parametrize("channels", [None, 3])
def test_the_step_is_that_one_times_the_exponential(channels):
    module = quantizer(channels, granularity="tensor" if channels is None else "channel")
    module(torch.randn(50, 3))
    before = module.scale.clone()
    with torch.no_grad():
        module.log_scale.fill_(math.log(1.5))
    torch.testing.assert_close(module.scale, 1.5 * before, rtol=1e-6, atol=0)


def test_the_gradient_is_scaled_as_in_lsq():
    """The formula once more: g = 1 / sqrt(N Qp), and d step / d log_scale = step."""
    torch.manual_seed(0)
    module = quantizer(symmetric=True)
    x, grad = torch.randn(30, 4), torch.randn(30, 4)
    with torch.no_grad():
        module(x)
    module(x).backward(grad)
    step = module.scale
    v = x / step
    by_step = torch.where(v <= -8, torch.tensor(-8.0), torch.where(v >= 7, torch.tensor(7.0), v.round() - v))
    want = (grad * by_step).sum() * step / math.sqrt(x.numel() * 7)
    torch.testing.assert_close(module.log_scale.grad, want, rtol=1e-4, atol=1e-6)


def test_an_offset_moves_the_zero_point_and_stays_on_the_grid():
    module = quantizer()
    module(torch.tensor([[0.0], [1.5]]))
    zero_point = module.zero_point.item()
    with torch.no_grad():
        module.offset.fill_(3.4)
    assert module.zero_point.item() == zero_point + 3
    assert module(torch.zeros(1, 1)).item() == 0.0
    with torch.no_grad():
        module.offset.fill_(-99.0)
    assert module.zero_point.item() == -8
    for wanted in (1.0, -1.0):  # beyond the end, a step back is taken and none on
        module.offset.grad = None
        module(torch.tensor([[9.0]])).backward(torch.tensor([[wanted]]))
        assert (module.offset.grad.item() < 0) == (wanted > 0)


def test_training_moves_the_step_to_where_the_error_is_small():
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    module = quantizer(symmetric=True)
    module(x)
    best = module.scale.item()
    with torch.no_grad():
        module.log_scale.fill_(1.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (module(x) - x).square().mean().backward()
        optimizer.step()
    assert abs(module.scale.item() / best - 1) < 0.15


def test_calibration_begins_again():
    module = quantizer()
    module(torch.randn(20, 2))
    with torch.no_grad():
        module.log_scale.fill_(1.0)
    module.eval()
    module.calibrating = True
    module(torch.randn(20, 2))
    assert module.log_scale.item() == 0.0


def test_what_was_learned_is_float32_whatever_the_model_is_cast_to():
    module = quantizer()
    module(torch.randn(20, 2))
    with torch.no_grad():
        module.log_scale.fill_(0.1234567)
    for cast in (module.bfloat16(), module.half(), module.double()):
        assert cast.log_scale.dtype == cast.offset.dtype == torch.float32
        assert cast.log_scale.item() == pytest.approx(0.1234567)
    assert module(torch.randn(20, 2).bfloat16()).dtype == torch.bfloat16


def test_quantizers_pickled_before_there_was_anything_to_learn():
    module = FakeQuantize(QSpec(), name="q", signed=True)
    module(torch.randn(4, 2))
    scale = module.scale
    del module._parameters["log_scale"], module._parameters["offset"]
    again = pickle.loads(pickle.dumps(module))
    assert again.log_scale is None
    assert torch.equal(again.scale, scale)


def test_ends_have_the_gradients_of_what_they_are_made_of():
    start = torch.tensor([-1.0, -0.5]), torch.tensor([0.9, 2.0])

    def total(log_scale):
        lo, hi = learned_ends(start, log_scale, None, quant_min=-8, quant_max=7, symmetric=False, number=1)
        return lo + 3 * hi

    log_scale = torch.tensor([0.1, -0.2], requires_grad=True)
    total(log_scale).sum().backward()
    by_difference = (total(log_scale + 0.01) - total(log_scale - 0.01)) / 0.02
    torch.testing.assert_close(log_scale.grad * math.sqrt(7), by_difference.detach(), rtol=1e-3, atol=0)


# -- whole models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return torch.randn(60, 16), torch.randint(60, (2, 200))


def trained(model, graph, fuse=True, steps=3, qconfig=EVERYWHERE):
    torch.manual_seed(1)
    module, _ = dqconvert.prepare(model, qconfig, graph, fuse=fuse)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        out = module.train()(*graph)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        optimizer.step()
    return module


BY_DEGREE = replace(EVERYWHERE, activation=replace(LEARNED, granularity="degree"), aggregate=None)
DROPPED = replace(EVERYWHERE, placement="before_dropout")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (GCN, EVERYWHERE),
        (GIN, EVERYWHERE),
        (GAT, EVERYWHERE),
        (GraphSAGE, EVERYWHERE),
        (GIN, BY_DEGREE),
        (GAT, DROPPED),
    ],
)
def test_fused_and_step_by_step_train_alike(model_class, config, graph):
    torch.manual_seed(0)
    dropout = 0.5 if config is DROPPED else 0.0
    model = model_class(16, 8, num_layers=2, out_channels=4, dropout=dropout)
    fused, plain = (trained(model, graph, fuse, qconfig=config) for fuse in (True, False))
    twins = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, twins[name].grad, rtol=1e-3, atol=1e-4, msg=name)
    assert any(name.endswith("log_scale") and p.abs().max() > 0.005 for name, p in twins.items())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GCN(16, 8, num_layers=2, out_channels=4)


@pytest.fixture(scope="module")
def module(model, graph):
    return trained(model, graph).eval()


def test_integers_lie_on_the_grid_that_was_learned(module, graph):
    integer = dqconvert.convert(module)
    with torch.no_grad():
        torch.testing.assert_close(integer(*graph), module(*graph), rtol=1e-5, atol=1e-5)


def test_it_is_saved_loaded_copied_and_pickled(module, model, graph, tmp_path):
    dqconvert.save(module, tmp_path / "module.dq")
    for twin in (
        dqconvert.load(tmp_path / "module.dq", model),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
    ):
        assert torch.equal(twin(*graph), module(*graph))
        assert twin.state_dict().keys() == module.state_dict().keys()


def test_names_of_the_models_parameters_stay(module, model, graph):
    names = set(model.state_dict())
    assert names <= set(module.state_dict())
    own = {name for name, _ in module.named_parameters()} - names
    assert {name.rpartition(".")[2] for name in own} == {"log_scale", "offset"}
    fresh = dqconvert.prepare(model, EVERYWHERE, graph).module
    assert not fresh.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    model_again = copy.deepcopy(model)
    assert not model_again.load_state_dict(module.state_dict(), strict=False).missing_keys


@pytest.mark.parametrize("then", ["int8-dq", EVERYWHERE], ids=str)
def test_prepared_again_ranges_stay(module, graph, then):
    again = dqconvert.prepare(module, then, graph).module
    known = dict(module.quantizers())
    for path, one in again.quantizers():
        torch.testing.assert_close(torch.stack(one.range), torch.stack(known[path].range))


def test_the_report_and_the_page_show_the_range_in_force(module):
    one = next(q for path, q in module.quantizers() if path.endswith("message"))
    lo, hi = one.range
    assert f"range=[{lo.item():.6g}, {hi.item():.6g}]" in repr(one)
    assert "learned" in str(module.report)


def test_half_precision_and_autocast(model, graph):
    x, edge_index = graph
    with torch.autocast("cpu", torch.bfloat16):
        trained(model, graph)
    module = trained(model, graph).bfloat16()
    module.train()(x.bfloat16(), edge_index).float().sum().backward()
    assert all(q.log_scale.dtype == torch.float32 for _, q in module.quantizers())
    assert torch.isfinite(module.eval()(x.bfloat16(), edge_index)).all()

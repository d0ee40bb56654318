"""What optimizers are given: parameters in groups, and the penalty of KURE beside the loss."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GCN

import dqconvert
from dqconvert import ConfigError, QSpec


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GCN(8, 16, num_layers=2, out_channels=4)


@pytest.fixture(scope="module")
def learned(model):
    return dqconvert.prepare(model, "int4-lsq").module


def test_learned_steps_have_no_weight_decay(learned, model):
    weights, steps = dqconvert.parameter_groups(learned, weight_decay=0.1, lr=0.01, step_lr=0.02)
    assert [len(group["params"]) for group in (weights, steps)] == [len(list(model.parameters())), 26]
    assert (weights["weight_decay"], weights["lr"], steps["weight_decay"], steps["lr"]) == (0.1, 0.01, 0.0, 0.02)
    together = [id(parameter) for group in (weights, steps) for parameter in group["params"]]
    assert sorted(together) == sorted(map(id, learned.parameters()))


def test_where_nothing_is_learned_there_is_one_group(model):
    module = dqconvert.prepare(model, "int8-dq").module
    (group,) = dqconvert.parameter_groups(module)
    assert list(map(id, group["params"])) == list(map(id, module.parameters()))
    assert group.keys() == {"params", "weight_decay"}


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"weight_decay": "much"}, {"step_lr": float("nan")}, {"lr": True}])
def test_numbers_that_are_none_are_refused(learned, wrong):
    with pytest.raises(ConfigError, match=f"takes as {next(iter(wrong))} a number from 0 on"):
        dqconvert.parameter_groups(learned, **wrong)


@pytest.mark.parametrize("door", [dqconvert.parameter_groups, dqconvert.kurtosis_penalty])
def test_a_float_model_is_refused(model, door):
    with pytest.raises(ConfigError, match="prepared"):
        door(model)


def test_the_users_own_loop_trains_the_steps(learned, model):
    x, edge_index = torch.randn(20, 8), torch.randint(20, (2, 60))
    module = dqconvert.prepare(model, "int4-lsq", (x, edge_index)).module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module(x, edge_index).square().sum().backward()
        optimizer.step()
    assert all(q.log_scale != 0 for _, q in module.quantizers())


def test_the_penalty_is_kures_formula(model):
    """Equations 4 to 6 once more, by torch's own moments."""
    module = dqconvert.prepare(model, "int4-dq").module
    want = []
    for weight in (module.convs[0].lin.weight, module.convs[1].lin.weight):  # biases are not quantized
        z = (weight - weight.mean()) / weight.std(correction=0)
        want.append((z.pow(4).mean() - 1.8) ** 2)
    penalty = dqconvert.kurtosis_penalty(module)
    torch.testing.assert_close(penalty, torch.stack(want).mean())
    penalty.backward()
    assert module.convs[0].lin.weight.grad.abs().sum() > 0


def test_the_penalty_pulls_weights_toward_the_uniform_distribution(model):
    module = dqconvert.prepare(model, "int4-dq").module
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_() if name.endswith("weight") else parameter.fill_(1.0)
    before = dqconvert.kurtosis_penalty(module).item()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        dqconvert.kurtosis_penalty(module).backward()
        optimizer.step()
    assert dqconvert.kurtosis_penalty(module).item() < 0.1 * before
    assert torch.isfinite(dqconvert.kurtosis_penalty(module))


def test_only_weights_that_are_quantized_count(model):
    config = dqconvert.QConfig(activation=QSpec())
    with pytest.raises(ConfigError, match="no weight of the module is quantized"):
        dqconvert.kurtosis_penalty(dqconvert.prepare(model, config).module)
    with pytest.raises(ConfigError, match=r"takes as target a number from 1 on, got 0\.5"):
        dqconvert.kurtosis_penalty(dqconvert.prepare(model).module, target=0.5)


def test_a_constant_weight_is_no_reason_for_nan(model):
    module = dqconvert.prepare(model).module
    with torch.no_grad():
        module.convs[0].lin.weight.fill_(0.5)
    penalty = dqconvert.kurtosis_penalty(module)
    penalty.backward()
    assert torch.isfinite(penalty)
    assert torch.isfinite(module.convs[0].lin.weight.grad).all()

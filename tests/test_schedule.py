"""Schedules: what each epoch sets, that it is a function of the epoch alone, and which roles are protected."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GIN

import dqconvert
from dqconvert import Protect, QConfig, schedule
from dqconvert.quant import Protection

torch.manual_seed(0)
X, EDGES = torch.randn(40, 8), torch.randint(40, (2, 160))
PAPER = dqconvert.presets["int8-dq"]


def prepared(config, model=None):
    return dqconvert.prepare(model or GIN(8, 8, 2, 3, norm="batch_norm"), config, (X, EDGES))


def protections(module):
    return [child for child in module.modules() if isinstance(child, Protection)]


@pytest.mark.parametrize(("how", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_probabilities_fall_to_zero(how, half):
    module, _ = prepared(replace(PAPER, protect=Protect(p_min=0.4, p_max=0.8)))
    module.train()
    found = [schedule(module, epoch, 10, protect=how)[:2] for epoch in (0, 5, 10, 12)]
    last = 1.0 if how == "constant" else 0.0
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor([[0.4, 0.8]]) * torch.tensor([[1.0], [half], [last], [last]])
    )
    (protection,) = protections(module)
    targets = [EDGES[1]]
    for epoch, expected in ((0, 1.0), (5, half), (10, last)):
        schedule(module, epoch, 10, protect=how)
        drawn = torch.stack([protection(targets, 40) for _ in range(2000)]).float().mean(0)
        torch.manual_seed(1)
        plain = Protection(Protect(p_min=0.4, p_max=0.8))._probability(targets, 40, None, None)
        assert (drawn - expected * plain).abs().max() < 0.06
        given = torch.ones(40)
        assert abs(float(protection(targets, 40, given=given).float().mean()) - expected) < 0.35


def test_draws_stay_what_they_were_while_nothing_is_annealed():
    module, _ = prepared(PAPER)
    other = copy.deepcopy(module)
    schedule(module.train(), 3, 10)
    for one in (module, other):
        torch.manual_seed(2)
        one.train()(X, EDGES)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert not list(module.state_dict().keys() ^ other.state_dict().keys())


def test_it_is_a_function_of_the_epoch_alone(tmp_path):
    """A training that goes on from a file ends as the one that was not interrupted, bit for bit."""
    model = GIN(8, 8, 2, 3)

    def train(module, epochs):
        for epoch in epochs:
            schedule(module.train(), epoch, 6, protect="cosine", freeze_ranges=4)
            torch.manual_seed(epoch)
            module.zero_grad()
            module(X, EDGES).square().mean().backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.01 * parameter.grad
        return module

    config = replace(PAPER, protect=Protect(p_max=0.9))
    whole = train(prepared(config, model)[0], range(6))
    half = train(prepared(config, model)[0], range(3))
    dqconvert.save(half, tmp_path / "half.dq")
    again = train(dqconvert.load(tmp_path / "half.dq", model=model), range(3, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_ranges_and_batch_norms_freeze_and_thaw():
    module, _ = prepared(replace(PAPER, protect=None))
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm1d)]

    def state(epoch):
        now = schedule(module.train(), epoch, 10, freeze_ranges=2, freeze_batch_norm=3)
        module((1 + epoch) * X, EDGES)
        return now, [float(q.min_val) for _, q in module.quantizers()], [norm.running_mean.clone() for norm in norms]

    found = [state(epoch) for epoch in range(5)]
    assert [now.ranges_frozen for now, *_ in found] == [False, False, True, True, True]
    assert [now.batch_norm_frozen for now, *_ in found] == [False, False, False, True, True]
    assert found[0][1] != found[1][1] == found[2][1] == found[4][1]
    assert not torch.equal(found[1][2][0], found[2][2][0])
    assert torch.equal(found[2][2][0], found[4][2][0])
    assert schedule(module.train(), 1, 10, freeze_ranges=2, freeze_batch_norm=3)[2:] == (False, False)
    assert all(norm.training for norm in norms)
    assert all(q.observer_enabled for _, q in module.quantizers())
    schedule(module.eval(), 1, 10, freeze_batch_norm=3)
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epoch": -1}, "epoch=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"protect": "sudden"}, "protect='sudden'"),
        ({"freeze_ranges": -2}, "freeze_ranges=-2"),
        ({"freeze_batch_norm": "3"}, "freeze_batch_norm='3'"),
    ],
)
def test_numbers_out_of_bounds_are_errors(options, said):
    module, _ = prepared(PAPER)
    with pytest.raises(dqconvert.ConfigError, match=said):
        schedule(module, **{"epoch": 0, "epochs": 1, **options})


def test_what_is_not_there_is_not_annealed():
    module, _ = prepared(replace(PAPER, protect=None))
    assert schedule(module, 0, 1) == (0.0, 0.0, False, False)
    with pytest.raises(dqconvert.ConfigError, match="no protection to anneal"):
        schedule(module, 0, 1, protect="linear")
    with pytest.raises(dqconvert.ConfigError, match="prepared module"):
        schedule(GCN(8, 8, 1), 0, 1)


def test_copies_go_on_by_themselves():
    module, _ = prepared(replace(PAPER, protect=Protect(p_min=1.0, p_max=1.0)))
    schedule(module.train(), 10, 10, protect="linear")
    other = copy.deepcopy(module)
    schedule(other, 0, 10, protect="linear")
    assert not protections(module)[0]([EDGES[1]], 40).any()
    assert protections(other)[0]([EDGES[1]], 40).all()


# -- Protect(roles=…) ----------------------------------------------------------------------------------------------

OFFICIAL = Protect(p_min=1.0, p_max=1.0, roles=("message", "aggregate", "update"))


@pytest.mark.parametrize("fuse", [True, False])
def test_roles_that_are_not_covered_are_quantized_always(fuse):
    module, report = dqconvert.prepare(GIN(8, 8, 1), replace(PAPER, protect=OFFICIAL), (X, EDGES), fuse=fuse)
    covered = {entry.role for entry in report.entries if entry.protected}
    assert covered == {"message", "aggregate", "update"}
    module.train()(X, EDGES)
    seen = {path: bool(torch.isfinite(q.min_val).all()) for path, q in module.quantizers()}
    # Every node is protected: what is covered saw nothing.
    for entry in report.entries:
        assert seen[entry.path] is not entry.protected, entry.path


def test_roles_in_files_and_on_the_command_line(tmp_path):
    from dqconvert.commands.overrides import qconfig_from

    config = replace(PAPER, protect=Protect(p_max=0.2, roles=["update", "message"]))
    assert config.protect.roles == ("message", "update")
    for path, text in ((tmp_path / "c.toml", config.to_toml()), (tmp_path / "c.json", config.to_json())):
        path.write_text(text)
        assert dqconvert.qconfig.as_qconfig(path) == config
    assert 'roles = "all"' in PAPER.to_toml()
    assert QConfig.from_dict({"protect": {"roles": "all"}}) == PAPER
    assert qconfig_from("int8-dq", ['protect.roles=["message"]']).protect.roles == ("message",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hash(config)
    for wrong in (["weight"], ["mesage"], "message"):
        with pytest.raises(dqconvert.ConfigError, match="roles="):
            Protect(roles=wrong)

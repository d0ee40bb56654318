"""The batch norm of a fused graph: the module's result and running averages, with our operator and without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dqconvert import prepare
from dqconvert.kernels import quantize_batch_norm
from dqconvert.quant import fused
from dqconvert.quant.fused import FusedChain


@pytest.fixture
def calls(monkeypatch):
    """How often the operator ran."""
    seen = []
    monkeypatch.setattr(fused, "quantize_batch_norm", lambda *a, **k: seen.append(1) or quantize_batch_norm(*a, **k))
    return seen


KINDS = {
    "usual": {},
    "cumulative average": {"momentum": None},
    "without averages": {"track_running_stats": False},
    "without weights": {"affine": False},
    "other settings": {"momentum": 0.3, "eps": 0.1},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_running_averages_move_as_the_modules_own(options, calls):
    norm = nn.BatchNorm1d(16, **options)
    twin = copy.deepcopy(norm)
    for step in range(3):
        x = torch.randn(4000, 16) * (1 + step) + step
        torch.testing.assert_close(fused.batch_norm(x, norm, FusedChain()), twin(x), rtol=1e-4, atol=1e-4)
    assert len(calls) == 3
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    x = torch.randn(4000, 16)
    torch.testing.assert_close(fused.batch_norm(x, norm.eval(), FusedChain()), twin.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["evaluation", "small", "other type", "three dimensions"])
def test_what_the_operator_does_not_do_the_module_does(case, calls):
    norm, x = nn.BatchNorm1d(16), torch.randn(4000, 16)
    if case == "evaluation":
        norm.eval()
    x = {"small": x[:10], "other type": x.bfloat16(), "three dimensions": torch.randn(500, 16, 8)}.get(case, x)
    assert torch.equal(fused.batch_norm(x, norm, FusedChain()), copy.deepcopy(norm)(x))
    assert not calls


def test_one_row_is_an_error_in_training():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused.batch_norm(torch.randn(1, 4), nn.BatchNorm1d(4), FusedChain())


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Linear(24, 4)

    def forward(self, x):
        return self.two(self.norm(self.one(x)))


def test_a_model_trains_as_it_does_unfused(calls):
    torch.manual_seed(0)
    model, x, y = Normed(), torch.randn(4000, 8), torch.randint(4, (4000,))
    runs = []
    for fuse in (True, False):
        module, _ = prepare(copy.deepcopy(model), "int8-qat", (x,), fuse=fuse)
        optimizer, losses = torch.optim.SGD(module.parameters(), lr=0.1), []
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append((losses, module.norm.state_dict()))
    assert len(calls) == 5
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-3)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], rtol=1e-2, atol=1e-2)


def test_hooks_on_the_module_see_it_called():
    model, x = Normed(), torch.randn(4000, 8)
    module, _ = prepare(model, "int8-qat", (x,))
    seen = []
    module.norm.register_forward_hook(lambda *args: seen.append(args[2].shape))
    module.recompile()
    module(x)
    assert seen == [(4000, 24)]


def test_where_nothing_is_rounded_it_is_the_module_to_the_last_bit(calls):
    norm, x = nn.BatchNorm1d(16), torch.randn(4000, 16)
    assert torch.equal(fused.batch_norm(x, norm), copy.deepcopy(norm)(x))
    assert not calls

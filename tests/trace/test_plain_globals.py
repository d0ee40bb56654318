"""Constants in global names: what a forward reads of them is in the graph, so a later change is an error."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

import dqconvert
from dqconvert.errors import GuardError

ALPHA, RESIDUAL, KIND, SLOPES, STEP, WIDTH, UNREAD = 0.5, True, "relu", (0.1, 0.2), 0, 8, 1.0
settings = ModuleType("settings_of_test")
settings.__dict__.update(beta=2.0, unread=3.0)
sys.modules[settings.__name__] = settings

X, EDGES = torch.randn(12, 8), torch.randint(12, (2, 40))


def scaled(x: Tensor) -> Tensor:
    return x * ALPHA * settings.beta  # type: ignore[no-any-return]


class Above(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return scaled(x) if KIND == "relu" else x


class Net(Above):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(WIDTH, WIDTH)

    @property
    def slope(self) -> float:
        return SLOPES[0]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        global STEP
        STEP += 1
        out = self.conv(super().forward(x, edge_index), edge_index)
        return out + x if RESIDUAL else out * self.slope


@pytest.fixture(scope="module")
def prepared() -> Any:
    return dqconvert.prepare(Net(), None, (X, EDGES)).module


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        pytest.param(sys.modules[__name__], "ALPHA", 0.7, id="a factor, in a function that a base class calls"),
        pytest.param(sys.modules[__name__], "RESIDUAL", False, id="a flag"),
        pytest.param(sys.modules[__name__], "KIND", "elu", id="a word, in the forward of a base class"),
        pytest.param(settings, "beta", 3.0, id="of a module that is imported"),
    ],
)
def test_a_change_is_an_error_that_names_it(prepared, monkeypatch, place, name, value):
    module = copy.deepcopy(prepared)
    module(X, EDGES)
    monkeypatch.setattr(place, name, value)
    with pytest.raises(GuardError, match=f"the global '{name}' of {place.__name__} was .* and is {value!r} now"):
        module(X, EDGES)
    with pytest.raises(GuardError, match=name):
        pickle.loads(pickle.dumps(module))(X, EDGES)
    monkeypatch.undo()
    module(X, EDGES)


@pytest.mark.parametrize("name", ["WIDTH", "UNREAD", "STEP", "X"])
def test_what_the_forward_does_not_read_or_sets_itself_may_change(prepared, monkeypatch, name):
    """``WIDTH`` is read by the constructor alone; ``STEP`` by the forward, which sets it."""
    module = copy.deepcopy(prepared)
    monkeypatch.setattr(sys.modules[__name__], name, 17)
    module(torch.ones(12, 8), EDGES)


def test_a_name_that_is_gone(prepared, monkeypatch):
    monkeypatch.delattr(settings, "beta")
    with pytest.raises(GuardError, match=r"'beta' of settings_of_test was 2.0 .*, and is gone now"):
        copy.deepcopy(prepared)(X, EDGES)


def test_a_property_reads_them_too(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "RESIDUAL", False)
    module = dqconvert.prepare(Net(), None, (X, EDGES)).module
    module(X, EDGES)
    monkeypatch.setattr(sys.modules[__name__], "SLOPES", (0.3, 0.2))
    with pytest.raises(GuardError, match=r"'SLOPES' .* was \(0.1, 0.2\)"):
        module(X, EDGES)


def test_a_module_that_was_saved_keeps_what_it_had(prepared, monkeypatch, tmp_path):
    """The constant is in its graph, and a file says nothing of a program's global names."""
    dqconvert.save(prepared, tmp_path / "net.dq")
    monkeypatch.setattr(sys.modules[__name__], "ALPHA", 0.7)
    loaded = dqconvert.load(tmp_path / "net.dq", model=Net())
    monkeypatch.undo()
    torch.manual_seed(0)
    expected = prepared.train()(X, EDGES)
    torch.manual_seed(0)
    assert torch.equal(loaded.train()(X, EDGES), expected)

"""Constants in global names: what a forward reads of them is in the graph, so a later change is an error."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from argparse import Namespace
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

CFG: Any = {"alpha": 0.5, "unread": 1, "inner": {"beta": 2.0}, "x": torch.ones(8)}
SIZES, KINDS = [1.0, 2.0], {"relu"}
args = Namespace(gamma=3.0, unread=1, table={"delta": 0.25})
settings.__dict__.update(TABLE={"beta": 2.0})
STATS: Any = {"calls": 0}
LOG: list[int] = []


class Settings:
    epsilon = 0.1


chosen = Settings()
chosen.zeta = 0.2  # type: ignore[attr-defined]

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


# -- in collections and objects --------------------------------------------------------------------------------------


class Reads(nn.Module):
    """A forward that reads settings from where scripts have them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = GCNConv(8, 8), how

    def item(self) -> Any:
        return CFG["alpha"] * CFG["inner"]["beta"]

    def any_item(self, key: str = "alpha") -> Any:
        return CFG[key]

    def get(self) -> Any:
        return CFG.get("alpha", 1.0)

    def loop(self) -> Any:
        return sum(size for size in SIZES)

    def attribute(self) -> Any:
        return args.gamma * args.table["delta"]

    def any_attribute(self) -> Any:
        return getattr(args, "gamma")  # noqa: B009

    def of_class(self) -> Any:
        return Settings.epsilon * chosen.zeta  # type: ignore[attr-defined]

    def of_module(self) -> Any:
        return settings.TABLE["beta"]

    def of_set(self) -> Any:
        return 1.0 if "relu" in KINDS else 2.0

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index) * getattr(self, self.how)()  # type: ignore[no-any-return]


def one(how: str, name: str, place: Any, key: Any, value: Any) -> Any:
    return pytest.param(how, name, place, key, value, id=f"{how}: {name}")


HERE = sys.modules[__name__].__dict__
CHANGES = [
    one("item", "CFG['alpha']", CFG, "alpha", 0.7),
    one("item", "CFG['inner']['beta']", CFG["inner"], "beta", 0.7),
    one("item", "CFG['inner']['beta']", HERE, "CFG", {"alpha": 0.5, "inner": {"beta": 1}}),
    one("any_item", "CFG", CFG, "alpha", 0.7),
    one("get", "CFG", CFG, "alpha", 0.7),
    one("loop", "SIZES", HERE, "SIZES", [1.0, 2.0, 3.0]),
    one("attribute", "args.gamma", vars(args), "gamma", 2.0),
    one("attribute", "args.table['delta']", args.table, "delta", 2.0),
    one("any_attribute", "args", vars(args), "gamma", 2.0),
    one("of_class", "chosen.zeta", vars(chosen), "zeta", 2.0),
    one("of_class", "Settings.epsilon", HERE, "Settings", Namespace(epsilon=0.2)),
    one("of_module", "TABLE['beta']", settings.TABLE, "beta", 1.0),
    one("of_set", "KINDS", HERE, "KINDS", {"elu"}),
]


@pytest.fixture(scope="module")
def reading() -> Any:
    kept: dict[str, nn.Module] = {}

    def prepared_once(how: str) -> nn.Module:
        if how not in kept:
            kept[how] = dqconvert.prepare(Reads(how), "int8-dq", (X, EDGES)).module
        return copy.deepcopy(kept[how])

    return prepared_once


@pytest.mark.parametrize(("how", "name", "place", "key", "value"), CHANGES)
def test_a_change_in_a_collection_is_an_error_that_names_it(reading, monkeypatch, how, name, place, key, value):
    module = reading(how)
    module(X, EDGES)
    monkeypatch.setitem(place, key, value)
    with pytest.raises(GuardError, match=re.escape(f"the global '{name}' of ")):
        module(X, EDGES)
    monkeypatch.undo()
    module(X, EDGES)


@pytest.mark.study
@pytest.mark.parametrize("how", ["item", "get", "attribute", "loop"])
def test_compiled_code_sees_it(reading, monkeypatch, how):
    _, _, place, key, value = next(case.values for case in CHANGES if case.values[0] == how)
    compiled = torch.compile(reading(how), backend="eager")
    compiled(X, EDGES)
    monkeypatch.setitem(place, key, value)
    with pytest.raises(GuardError):
        compiled(X, EDGES)


@pytest.mark.parametrize(
    ("how", "place", "key"),
    [("item", CFG, "unread"), ("item", CFG, "x"), ("any_item", CFG, "x"), ("attribute", vars(args), "unread")],
)
def test_what_it_does_not_read_there_may_change(reading, monkeypatch, how, place, key):
    module = reading(how)
    monkeypatch.setitem(place, key, torch.zeros(8) if key == "x" else 17)
    module(X, EDGES)


class Counts(Reads):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        STATS["calls"] += 1
        LOG.append(1)
        return super().forward(x, edge_index)


def test_what_the_forward_changes_itself_is_said_and_no_error():
    module, report = dqconvert.prepare(Counts("item"), "int8-dq", (X, EDGES))
    assert any("the global 'STATS' of" in remark and "as it was" in remark for remark in report.remarks)
    STATS["calls"] = 17
    LOG.append(2)
    module(X, EDGES)

"""Models, and modules beside them, that answer otherwise than one expects: prepare must take them as torch does."""

from __future__ import annotations

import enum
import functools
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GCNConv
from torch_geometric.nn.models import TGNMemory
from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator

import dqconvert

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
EDGES = torch.randint(40, (2, 160), generator=torch.Generator().manual_seed(0))
FLOAT = {"weight": None, "activation": None, "message": None, "aggregate": None, "protect": None}


def trained(model, **options):
    module, _ = dqconvert.prepare(model, "int8-dq", (X, EDGES), **options)
    module.train()
    module(X, EDGES).sum().backward()
    module.eval()
    return module


class Net(nn.Module):
    """A layer and what a test puts in front of its output."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(8, 8)
        self.lin = nn.Linear(8, 4)

    def forward(self, x, edge_index):
        return self.lin(self.conv(x, edge_index).relu())


# -- functions, classes and modules without a name -----------------------------------------------------------------


class Hidden(type):
    def __getattribute__(cls, name):
        if name == "__module__":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Proxy:
    """What stands for an object of a request, outside of one."""

    @property
    def __class__(self):
        raise RuntimeError("outside of a request")


class LazyModule(types.ModuleType):
    def __getattribute__(self, name):
        if name in ("__dict__", "__file__", "__name__", "__spec__"):
            return super().__getattribute__(name)
        raise ImportError(name)


class Nameless(nn.Linear):
    pass


Nameless.__module__ = None


def test_prepare_after_a_model_ran_under_torch_compile():
    torch.compile(GCN(8, 8, 1, 4), backend="eager")(X, EDGES)
    assert dqconvert.prepare(GCN(8, 8, 1, 4), "int8-dq").report.entries
    torch._dynamo.reset()


def test_functions_classes_and_modules_that_name_no_module(monkeypatch):
    nameless = eval("lambda x: x", {})
    nameless.__module__ = None
    odd = {"hidden": Hidden("OfNoModule", (), {}), "nameless": nameless, "proxy": Proxy()}
    for name, value in {**odd, "partial": functools.partial(print)}.items():
        monkeypatch.setitem(globals(), name, value)
    monkeypatch.setitem(sys.modules, "torch_geometric.none", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.lazy", LazyModule("torch_geometric.lazy"))
    monkeypatch.setitem(sys.modules, "torch_geometric.object", object())
    model = Net()
    model.lin = Nameless(8, 4)
    model.helper = nameless
    module = trained(model)
    assert "lin.quant.weight" in {entry.path for entry in module.report.entries}
    assert dqconvert.convert(module)(X, EDGES).shape == (40, 4)


# -- methods of nn.Module that a model has for itself ----------------------------------------------------------------


class Silent(Net):
    """``train`` and ``eval`` return nothing, and a norm stays frozen."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x, edge_index):
        return self.lin(self.norm(self.conv(x, edge_index)).relu())

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()

    def eval(self):
        self.train(False)


class WithoutMode(Net):
    def train(self):
        super().train(True)

    def eval(self):
        super().train(False)


class Falsy(Net):
    """Has no length, no truth, and parameters in groups."""

    def parameters(self, recurse=True):
        return [{"params": list(super().parameters(recurse))}]

    def __len__(self):
        return 0

    def __bool__(self):
        return False

    def __iter__(self):
        return iter(())


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = TGNMemory(40, 4, 8, 8, IdentityMessage(4, 8, 8), LastAggregator())
        self.conv = GCNConv(8, 4)

    def forward(self, x, edge_index):
        return self.conv(x + self.memory.memory, edge_index)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", [Silent, WithoutMode, Falsy, Memory])
def test_models_with_methods_of_their_own(kind, tmp_path):
    module = trained(kind())
    out = module(X, EDGES)
    dqconvert.save(module, tmp_path / "model.dq")
    again = dqconvert.load(tmp_path / "model.dq", model=kind())
    again.eval()
    assert torch.equal(again(X, EDGES), out)
    assert dqconvert.convert(module)(X, EDGES).shape == (40, 4)


def test_what_a_model_does_in_train_is_done_in_training():
    module = trained(Silent())
    module.train()
    before = module.norm.running_mean.clone()
    module(X, EDGES)
    assert torch.equal(module.norm.running_mean, before)


# -- numbers that are not Python's own ---------------------------------------------------------------------------------


class Count(enum.IntEnum):
    FOUR = 4


class Celsius(float):
    pass


class Numbers(Net):
    def __init__(self):
        super().__init__()
        self.root = np.sqrt(16)
        self.small = np.float32(0.1)
        self.last = np.int64(1)
        self.on = np.bool_(True)
        self.column = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)

    def forward(self, x, edge_index, scale=np.float64(2)):  # noqa: B008
        h = self.conv(x, edge_index) / np.sqrt(16) * self.root * self.small * scale
        h = h.view(-1, np.int64(8))
        if self.on:
            h = h + Celsius(0.5)
        h = h / np.sqrt(x.size(1)) * (np.float64(3) * x.size(0))
        h = self.lin(h) * torch.tensor(self.column)
        h = h.view(-1, Count.FOUR) + torch.tensor(np.float64(2)).float()
        return h / h.abs().sum(self.last, keepdim=True) * np.float32(0.1)


@pytest.mark.parametrize("fuse", [True, False])
def test_numbers_of_numpy_are_numbers(fuse, tmp_path):
    model = Numbers()
    plain, _ = dqconvert.prepare(model, FLOAT, (X, EDGES))
    assert torch.equal(plain.eval()(X[:7], EDGES % 7), model.eval()(X[:7], EDGES % 7))  # other sizes, too
    module = trained(model, fuse=fuse)
    out = module(X, EDGES)
    dqconvert.save(module, tmp_path / "model.dq")
    assert torch.equal(dqconvert.load(tmp_path / "model.dq", model=Numbers())(X, EDGES), out)
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(X, EDGES), out)
    dqconvert.save(integer, tmp_path / "model.int")
    assert torch.equal(dqconvert.load(tmp_path / "model.int")(X, EDGES), integer(X, EDGES))

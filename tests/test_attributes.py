"""What a forward reads off its modules is followed after prepare, or a change of it is an error that names it."""

from __future__ import annotations

import argparse
import copy
import enum
import math
import pickle
import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import APPNP, GATConv, GCNConv

import dqconvert
from dqconvert.errors import CheckpointError, GuardError

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
EDGES = torch.randint(40, (2, 160), generator=torch.Generator().manual_seed(0))
FLOAT = {"weight": None, "activation": None, "message": None, "aggregate": None, "protect": None}


@dataclass
class Config:
    alpha: float = 0.5
    residual: bool = True
    name: str = "gcn"
    epoch: int = 0


@dataclass(frozen=True)
class Frozen:
    alpha: float = 0.5


@dataclass(slots=True)
class Slotted:
    alpha: float = 0.5


Pair = namedtuple("Pair", "key beta")  # a name of ours, too


class AttributeDict(dict):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


class Block(nn.Module):
    """A convolution with settings of every kind."""

    kind = "plain"
    share = 0.25

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(8, 8)
        self.alpha = 0.5
        self.residual = True
        self.p = 0.0
        self.scales = [0.5, 2.0, 7]
        self.cfg = {"alpha": 0.5, "residual": True, "epoch": 0, "inner": {"beta": 0.5}}
        self.config = Config()
        self.frozen = Frozen()
        self.slotted = Slotted()
        self.pair = Pair(0.5, 1)
        self.options = argparse.Namespace(alpha=0.5, name="a")
        self.space = types.SimpleNamespace(alpha=0.5)
        self.width = 8
        self.parts = {1, 2}
        self.ordered = OrderedDict(a=1)
        self.attribute_dict = AttributeDict(alpha=0.5)
        self.extra = None

    @property
    def half(self):
        return self.alpha / 2

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        if self.residual:
            h = h + x
        if self.kind == "plain":
            h = h * self.share
        h = F.dropout(h * self.alpha, self.p, self.training) * (1 - self.half)
        h = h * self.scales[1] + self.scales[-2]
        if self.cfg["residual"]:
            h = h + self.cfg["alpha"] * self.cfg.get("inner")["beta"]
        h = h + self.config.alpha * math.cos(self.frozen.alpha) + self.slotted.alpha
        if self.config.name == "gcn" and "missing" not in self.cfg:
            h = h * self.pair.key
        h = h + self.options.alpha * self.space.alpha
        if 2 in self.parts and self.ordered["a"] == 1:
            h = h + self.attribute_dict["alpha"]
        if self.extra is not None:
            h = h + self.extra
        return h.view(-1, self.width)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = nn.Linear(8, 4)
        self.act = nn.ReLU()
        self.scale = 1.0
        self.tensor = torch.ones(8)

    def forward(self, x, edge_index):
        for block in self.blocks:
            x = self.act(block(x, edge_index)) * self.tensor
        if self.scale > 0:
            x = x * self.scale
        return self.out(x)


def one(**changes):
    model = Net()
    model.load_state_dict(Net_state)
    for change in changes.values():
        change(model)
    return model


torch.manual_seed(0)
Net_state = Net().state_dict()


def settle(module):
    module.train()
    module(X, EDGES).sum().backward()
    return module.eval()


@pytest.fixture(scope="module")
def plain():
    """Everything in float: what it computes is what the float model computes."""
    return dqconvert.prepare(one(), FLOAT, (X, EDGES)).module


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "unfused"])
def quantized(request):
    return settle(dqconvert.prepare(one(), "int8-dq", (X, EDGES), fuse=request.param).module)


def set_item(container, key, value):
    container[key] = value


FOLLOWED = {
    "a float": lambda m: setattr(m.blocks[0], "alpha", 0.3),
    "another number for a float": lambda m: setattr(m.blocks[1], "alpha", 2),
    "of the root": lambda m: setattr(m, "scale", 0.7),
    "of the class": lambda m: setattr(m.blocks[0], "share", 0.75),
    "an item of a list": lambda m: set_item(m.blocks[0].scales, 1, 3.0),
    "a longer list": lambda m: m.blocks[0].scales.append(1.0),
    "a list": lambda m: setattr(m.blocks[0], "scales", [0.5, 3.0, 7]),
    "an item of a dict": lambda m: set_item(m.blocks[1].cfg, "alpha", 0.1),
    "an item of a dict in a dict": lambda m: set_item(m.blocks[1].cfg["inner"], "beta", 0.1),
    "a field of a dataclass": lambda m: setattr(m.blocks[0].config, "alpha", 0.1),
    "a dataclass": lambda m: setattr(m.blocks[0], "config", Config(alpha=0.1)),
    "a frozen dataclass": lambda m: setattr(m.blocks[0], "frozen", Frozen(0.1)),
    "a slot": lambda m: setattr(m.blocks[0].slotted, "alpha", 0.1),
    "a named tuple": lambda m: setattr(m.blocks[0], "pair", Pair(0.1, 1)),
    "an argparse namespace": lambda m: setattr(m.blocks[0].options, "alpha", 0.1),
    "a namespace": lambda m: setattr(m.blocks[0].space, "alpha", 0.1),
    "a tensor": lambda m: setattr(m, "tensor", torch.full((8,), 0.5)),
    "a parameter": lambda m: setattr(m.out, "weight", nn.Parameter(torch.full((4, 8), 0.5))),
    "no bias": lambda m: setattr(m.out, "bias", None),
    "what is not read": lambda m: (setattr(m.blocks[0].config, "epoch", 9), set_item(m.blocks[0].cfg, "epoch", 9)),
    "a new name": lambda m: setattr(m.blocks[0], "note", "x"),
}

GUARDED = {
    "'residual' of module blocks.0 was True": lambda m: setattr(m.blocks[0], "residual", False),
    "'kind' of module blocks.1 was 'plain'": lambda m: setattr(m.blocks[1], "kind", "other"),
    "'cfg['residual']' of module blocks.0": lambda m: set_item(m.blocks[0].cfg, "residual", False),
    "'cfg['missing']' of module blocks.0 was not there": lambda m: set_item(m.blocks[0].cfg, "missing", 1),
    "'cfg['alpha']' of module blocks.0 is gone": lambda m: m.blocks[0].cfg.pop("alpha"),
    "'config.name' of module blocks.1 was 'gcn'": lambda m: setattr(m.blocks[1].config, "name", "gat"),
    "'parts' of module blocks.0": lambda m: m.blocks[0].parts.add(3),
    "'ordered' of module blocks.0": lambda m: set_item(m.blocks[0].ordered, "a", 2),
    "'attribute_dict' of module blocks.0": lambda m: set_item(m.blocks[0].attribute_dict, "alpha", 2.0),
    "'extra' of module blocks.0 was None": lambda m: setattr(m.blocks[0], "extra", torch.ones(8)),
    "'width' of module blocks.0 was 8": lambda m: setattr(m.blocks[0], "width", 4),
    "'frozen.alpha' of module blocks.0 is gone": lambda m: setattr(m.blocks[0], "frozen", None),
    "the forward branches on 'scale' of the model: `-1 > 0`": lambda m: setattr(m, "scale", -1),
    "module act was a ReLU": lambda m: setattr(m, "act", nn.ELU()),
    "'inplace' of module act was False": lambda m: setattr(m.act, "inplace", True),
    "'conv' of module blocks.0": lambda m: setattr(m.blocks[0], "conv", None),
    "'normalize' of module blocks.0.conv was True": lambda m: setattr(m.blocks[0].conv, "normalize", False),
    "'forward' of module blocks.0 was a method": lambda m: setattr(m.blocks[0], "forward", lambda x, edge_index: x),
    "module out had the parts ['quant']": lambda m: setattr(m, "out", nn.Linear(8, 4)),
    "module blocks had the parts ['0', '1']": lambda m: m.blocks.append(Block()),
}


@pytest.mark.parametrize("change", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_a_change_is_followed(plain, change):
    module, model = copy.deepcopy(plain), one()
    for either in (module, model):
        torch.manual_seed(1)
        change(either)
    for training in (True, False):
        module.train(training), model.train(training)
        assert torch.equal(module(X, EDGES), model(X, EDGES))


@pytest.mark.sample(9)
@pytest.mark.parametrize("change", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_quantized_forms_agree_on_a_change(quantized, change, tmp_path):
    module = copy.deepcopy(quantized)
    before = module(X, EDGES)
    torch.manual_seed(1)
    change(module)
    settle(module)
    out = module(X, EDGES)
    assert torch.equal(copy.deepcopy(module)(X, EDGES), out)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(X, EDGES), out)
    del before


@pytest.mark.sample(3)
@pytest.mark.parametrize(("words", "change"), GUARDED.items(), ids=GUARDED.keys())
def test_a_change_that_cannot_be_followed_is_an_error(quantized, words, change):
    module = copy.deepcopy(quantized)
    change(module)
    with pytest.raises(GuardError) as raised:
        module(X, EDGES)
    assert words in str(raised.value)
    if "inplace" not in words:  # a copy writes nowhere again
        with pytest.raises((GuardError, AttributeError)):
            copy.deepcopy(module)(X, EDGES)


# -- files and integer modules -----------------------------------------------------------------------------------------


def test_a_file_keeps_what_the_forward_reads(quantized, tmp_path):
    module = copy.deepcopy(quantized)
    changed = ["a float", "an item of a dict in a dict", "a field of a dataclass", "an item of a list", "of the class"]
    for name in changed:
        FOLLOWED[name](module)
    settle(module)
    dqconvert.save(module, tmp_path / "model.dq")
    again = dqconvert.load(tmp_path / "model.dq", model=Net()).eval()
    assert torch.equal(again(X, EDGES), module(X, EDGES))
    assert again.blocks[0].alpha == 0.3
    other = Net()
    other.blocks[0].residual = False
    again = dqconvert.load(tmp_path / "model.dq", model=other).eval()
    assert torch.equal(again(X, EDGES), module(X, EDGES))
    other.act = nn.ELU()
    with pytest.raises(CheckpointError, match="module act was a ReLU"):
        dqconvert.load(tmp_path / "model.dq", model=other)


def test_what_a_file_cannot_set_must_agree(quantized, tmp_path):
    module = copy.deepcopy(quantized)
    FOLLOWED["a named tuple"](module)
    settle(module)
    dqconvert.save(module, tmp_path / "model.dq")
    with pytest.raises(CheckpointError, match=r"'pair\[0\]' of module blocks.0 is 0.1 in the file"):
        dqconvert.load(tmp_path / "model.dq", model=Net())


def test_integer_modules_hold_what_was_read_and_refuse_to_set_it(quantized, tmp_path):
    module = copy.deepcopy(quantized)
    for change in (FOLLOWED["a float"], FOLLOWED["of the root"]):
        change(module)
    integer = dqconvert.convert(module)
    torch.testing.assert_close(integer(X, EDGES), module(X, EDGES), rtol=0.05, atol=0.05)
    dqconvert.save(integer, tmp_path / "model.int")
    for either in (integer, dqconvert.load(tmp_path / "model.int")):
        with pytest.raises(GuardError, match="'scale' was read by the float model's forward"):
            either.scale = 2.0
        either.note = "fine"


def test_parts_of_integer_modules_refuse_it_too(quantized, tmp_path):
    module = copy.deepcopy(quantized)
    module.blocks[0](X, EDGES)  # so that files have it, too
    integer = dqconvert.convert(module)
    dqconvert.save(integer, tmp_path / "model.int")
    before = integer(X, EDGES)
    copies = copy.deepcopy(integer), pickle.loads(pickle.dumps(integer)), dqconvert.load(tmp_path / "model.int")
    for either in (integer, *copies):
        block = either.blocks[0]
        with pytest.raises(GuardError, match=r"'blocks\.0\.alpha' was read by the float model's forward"):
            block.alpha = 0.9
        block.note = "fine"
        assert torch.equal(either(X, EDGES), before)
    with pytest.raises(GuardError, match=r"'blocks\.0\.alpha' was read"):
        integer.skeleton.blocks[0].alpha = 0.9
    with pytest.raises(GuardError, match="'scale' was read"):
        integer.skeleton.scale = 0.9


# -- layers of PyG and torch -------------------------------------------------------------------------------------------


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.gat = GATConv(8, 4, heads=2, dropout=0.5, negative_slope=0.2)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.leaky = nn.LeakyReLU(0.1)
        self.appnp = APPNP(2, 0.1)

    def forward(self, x, edge_index):
        return self.appnp(self.leaky(self.drop(self.norm(self.gat(x, edge_index)))), edge_index)


LAYERS = {
    "GATConv.negative_slope": lambda m: setattr(m.gat, "negative_slope", 0.7),
    "GATConv.dropout": lambda m: setattr(m.gat, "dropout", 0.1),
    "Dropout.p": lambda m: setattr(m.drop, "p", 0.1),
    "LeakyReLU.negative_slope": lambda m: setattr(m.leaky, "negative_slope", 0.5),
    "BatchNorm.momentum": lambda m: setattr(m.norm, "momentum", 0.9),
    "BatchNorm.eps": lambda m: setattr(m.norm, "eps", 0.1),
    "APPNP.alpha": lambda m: setattr(m.appnp, "alpha", 0.5),
    "one in evaluation": lambda m: m.norm.eval(),
    "one dropout in evaluation": lambda m: m.gat.eval(),
    "a frozen weight": lambda m: m.gat.lin.weight.requires_grad_(False),
}
LAYERS_GUARDED = {
    "'add_self_loops' of module gat was True": lambda m: setattr(m.gat, "add_self_loops", False),
    "'concat' of module gat was True": lambda m: setattr(m.gat, "concat", False),
    "'K' of module appnp was 2": lambda m: setattr(m.appnp, "K", 3),
    "'message' of module gat was a method": lambda m: setattr(m.gat, "message", lambda **_: None),
}


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    model = Layers()
    return model, dqconvert.prepare(model, FLOAT, (X, EDGES)).module


@pytest.mark.parametrize("change", LAYERS.values(), ids=LAYERS.keys())
def test_settings_of_layers_are_followed(layers, change):
    model, module = map(copy.deepcopy, layers)
    found = []
    for either in (model, module):
        either.train()
        change(either)
        for _ in range(2):
            torch.manual_seed(1)
            out = either(X, EDGES)
        out.sum().backward()
        found.append((out, either.norm.running_mean, either.norm.running_var, either.gat.lin.weight.grad))
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(("words", "change"), LAYERS_GUARDED.items(), ids=LAYERS_GUARDED.keys())
def test_settings_of_layers_are_guarded(layers, words, change):
    module = copy.deepcopy(layers[1])
    change(module)
    with pytest.raises(GuardError) as raised:
        module(X, EDGES)
    assert words in str(raised.value)


class Mode(enum.Enum):
    PLAIN = 1
    NEGATED = 2


class Plugin:
    """A class that keeps a register of its subclasses, as plugins do."""

    known: ClassVar[list[type]] = []

    def __init_subclass__(cls, **options):
        Plugin.known.append(cls)


class Scaling(Plugin):
    def __init__(self):
        self.factor = 2.0
        self.mode = Mode.PLAIN


class Plugged(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(8, 8)
        self.scaling = Scaling()

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index) * self.scaling.factor
        return -h if self.scaling.mode is Mode.NEGATED else h


def test_members_of_enums_are_guarded_and_registers_of_subclasses_left_alone():
    module, _ = dqconvert.prepare(Plugged(), "int8-dq", (X, EDGES))
    assert Plugin.known == [Scaling]
    module(X, EDGES)
    before = module.eval()(X, EDGES)
    module.scaling.factor = 4.0
    torch.testing.assert_close(module(X, EDGES), 2 * before)
    module.scaling.mode = Mode.NEGATED
    with pytest.raises(
        GuardError, match=r"'scaling.mode' of the model was <Mode.PLAIN: 1> when .* is <Mode.NEGATED: 2>"
    ):
        module(X, EDGES)

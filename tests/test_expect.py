"""Every public function given the wrong kind of object: one sentence of ours that says what it is and what to do."""

from __future__ import annotations

import copy
import functools
import pathlib

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import dqconvert
from dqconvert import CheckpointError, ConfigError, DQConvertError, LoweringError, TraceError


class Holds(nn.Module):
    """As a LightningModule or a Trainer's model does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, edge_index):
        return self.inner(x, edge_index)


class Encoder(nn.Module):
    """Has no forward."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(6, 4)

    def encode(self, x):
        return self.conv(x)

    def reset_parameters(self):
        self.conv.reset_parameters()


def graph():
    return torch.randn(7, 6), torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A float model, and all that comes of it."""
    folder, model = tmp_path_factory.mktemp("files"), GCN(6, 4, 1, 3)
    prepared = dqconvert.prepare(model)
    prepared.module.train()(*graph())
    integer = dqconvert.convert(prepared.module)
    dqconvert.save(prepared.module, folder / "a.dq")
    return {"folder": folder, "float": model, "prepared": prepared.module, "integer": integer, "both": prepared}


@pytest.fixture(scope="module")
def wrong(made):
    """What is no model of any kind, or one in disguise."""
    model, prepared, integer = made["float"], made["prepared"], made["integer"]
    return {
        "None": None,
        "class": GCN,
        "function": lambda: model,
        "partial": functools.partial(GCN, 6, 4, 1),
        "number": 3,
        "bytes": b"gcn",
        "str": "gcn.pt",
        "path": pathlib.Path("gcn.pt"),
        "state_dict": model.state_dict(),
        "Prepared": made["both"],
        "Report": prepared.report,
        "IntegerReport": integer.report,
        "Comparison": dqconvert.compare(model, integer, graph()),
        "QConfig": dqconvert.presets["int8-dq"],
        "scripted": torch.jit.script(nn.Linear(6, 4)),
        "compiled": torch.compile(model),
        "compiled prepared": torch.compile(prepared),
        "DataParallel": nn.DataParallel(model),
        "DataParallel prepared": nn.DataParallel(prepared),
        "AveragedModel": AveragedModel(prepared),
        "holder": Holds(prepared),
        "holder of integers": Holds(integer),
        "other GraphModule": torch.fx.GraphModule(prepared, copy.deepcopy(prepared.graph)),
        "quantizer": next(prepared.quantizers())[1],
        "list of models": [model, model],
        "dict of models": {"a": model},
        "tuple of a model": (model,),
        "ModuleList": nn.ModuleList([nn.Linear(6, 4)]),
        "no forward": Encoder(),
        "tensor": torch.ones(2),
        "Data": Data(x=torch.ones(2, 1)),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "generator": (item for item in [model]),
    }


FLOAT, PREPARED, INTEGER = "float", "prepared", "integer"

DOORS = {
    "prepare": (lambda made, given: dqconvert.prepare(given), (FLOAT, PREPARED)),
    "calibrate": (lambda made, given: dqconvert.calibrate(given, graph()), (PREPARED,)),
    "convert": (lambda made, given: dqconvert.convert(given), (PREPARED,)),
    "compare": (lambda made, given: dqconvert.compare(given, made["integer"], graph()), (FLOAT, PREPARED)),
    "compare, second": (lambda made, given: dqconvert.compare(made["float"], given, graph()), (PREPARED, INTEGER)),
    "save": (lambda made, given: dqconvert.save(given, made["folder"] / "b.dq"), (PREPARED, INTEGER)),
    "load, model": (lambda made, given: dqconvert.load(made["folder"] / "a.dq", model=given), (FLOAT,)),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_model_gets_one_sentence(door, made, wrong):
    call, _ = DOORS[door]
    for name, given in wrong.items():
        with pytest.raises(DQConvertError) as info:
            call(made, given)
        message = str(info.value)
        assert "\n" not in message, (name, message)
        assert len(message) < 700, (name, message)


@pytest.mark.parametrize("door", DOORS)
def test_modules_of_another_stage_are_told_from_each_other(door, made):
    call, taken = DOORS[door]
    for stage in (FLOAT, PREPARED, INTEGER):
        if stage in taken:
            call(made, made[stage])
            continue
        with pytest.raises(
            DQConvertError, match=r"prepare it first|first and|pass the \w+ (model|module) that it was made of"
        ):
            call(made, made[stage])


def test_a_float_model_where_a_prepared_one_is_due():
    """As reported: ``'GCN' object has no attribute 'graph'``."""
    with pytest.raises(ConfigError, match=r"calibrate takes a prepared module.* got a float model \(GCN\): prepare it"):
        dqconvert.calibrate(GCN(6, 4, 1), graph())
    with pytest.raises(LoweringError, match=r"convert takes a prepared module.* got a float model \(GCN\): prepare it"):
        dqconvert.convert(GCN(6, 4, 1))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scripted", "torch.jit scripted or traced: pass the model that it was made of"),
        ("compiled", "torch.compile wrapped: pass the model in it, model._orig_mod"),
        ("DataParallel", "DataParallel wrapped: pass the model in it, model.module"),
        ("class", r"the class GCN: make an instance of it: GCN\(…\)"),
        ("function", "the function .*: call it, and pass what it returns"),
        ("state_dict", "a dict of tensors: build the model, and call its load_state_dict"),
        ("Prepared", "take them apart: module, report = dqconvert.prepare"),
        ("Report", "a Report: it only says what was done: pass the module"),
        ("holder", "a Holds that holds a prepared module at 'inner'"),
        ("holder of integers", "a Holds that holds an integer module at 'inner'"),
        ("quantizer", "one of dqconvert's quantizers"),
        ("str", "a str, 'gcn.pt': build the model, and load the file's weights into it"),
        ("number", "got an int"),
        ("optimizer", "got an SGD"),
    ],
)
def test_it_says_how_to_get_from_there_to_a_model(name, words, wrong):
    with pytest.raises(ConfigError, match=words):
        dqconvert.prepare(wrong[name])


def test_a_model_without_forward_is_told_to_name_a_method():
    with pytest.raises(TraceError, match=r"Encoder has no forward: .* method='encode'; it has: encode"):
        dqconvert.prepare(Encoder())
    with pytest.raises(TraceError, match="ModuleList has no forward: prepare what calls its parts"):
        dqconvert.prepare(nn.ModuleList([nn.Linear(2, 2)]))
    with pytest.raises(TraceError, match="Encoder has no method 'encoed' to trace; did you mean 'encode'"):
        dqconvert.prepare(Encoder(), method="encoed")
    for method in (None, 3, Encoder.encode):
        with pytest.raises(ConfigError, match=r"method= takes a method's name, several, or a dict of .*, got"):
            dqconvert.prepare(Encoder(), method=method)


@pytest.mark.parametrize("path", [None, 3, b"a.dq", "", nn.Linear(2, 1), {"a": torch.ones(1)}])
def test_what_is_no_path(path, made):
    with pytest.raises(CheckpointError, match="save takes the path of a file"):
        dqconvert.save(made["prepared"], path)
    with pytest.raises(CheckpointError, match="load takes the path of a file"):
        dqconvert.load(path)


def test_arguments_the_wrong_way_round(made):
    with pytest.raises(CheckpointError, match=r"save takes a prepared or an integer module.* got a str"):
        dqconvert.save("a.dq", made["prepared"])
    with pytest.raises(ConfigError, match="the float model first and the integer module second"):
        dqconvert.compare(made["integer"], made["float"], graph())
    with pytest.raises(ConfigError, match="got a tuple: the model comes first, then what it is to be run on"):
        dqconvert.calibrate(graph(), made["prepared"])


@pytest.mark.parametrize("batches", [0, -1, 1.5, "3", True])
def test_batches_that_are_no_number(batches, made):
    with pytest.raises(ConfigError, match="calibrate takes as batches a whole number from 1 on"):
        dqconvert.calibrate(made["prepared"], graph(), batches)


def test_a_config_of_another_kind_is_shown_in_a_few_words(made, wrong):
    for name, given in wrong.items():
        if name in ("None", "QConfig"):
            continue
        with pytest.raises(ConfigError) as info:
            dqconvert.prepare(made["float"], given)
        assert "\n" not in str(info.value)
        assert len(str(info.value)) < 300


def test_a_transform_and_a_chart_of_the_wrong_thing(wrong):
    for name, given in wrong.items():
        if name != "Data":
            with pytest.raises(ConfigError, match="DegreeProtection takes a Data"):
                dqconvert.DegreeProtection()(given)
        if name not in ("str", "path"):
            with pytest.raises(DQConvertError, match="takes the path of a file"):
                wrong["Comparison"].plot(given)


def test_switches_take_a_whole_module_and_nothing_but_modules(made):
    """``disable_observer(module)`` did nothing, without a word; only ``module.apply(disable_observer)`` did."""
    module = copy.deepcopy(made["prepared"])
    dqconvert.disable_observer(module)
    dqconvert.disable_fake_quant(module)
    assert not any(q.observer_enabled or q.fake_quant_enabled for _, q in module.quantizers())
    module.apply(dqconvert.enable_observer)
    module.apply(dqconvert.enable_fake_quant)
    assert all(q.observer_enabled and q.fake_quant_enabled for _, q in module.quantizers())
    for switch in ("enable_observer", "disable_observer", "enable_fake_quant", "disable_fake_quant"):
        with pytest.raises(ConfigError, match=f"{switch} takes a prepared module, got None"):
            getattr(dqconvert, switch)(None)

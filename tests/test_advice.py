"""Advice: what costs accuracy is found, and pasting the rule mends it."""

from __future__ import annotations

import ast
import copy
import gc
import logging
import pickle
import shlex

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN, SAGEConv
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app
from dqconvert.commands.overrides import qconfig_from
from dqconvert.errors import ConfigError

EDGES = torch.randint(200, (2, 800), generator=torch.Generator().manual_seed(1))


def numbers(*, outlier: float = 1.0, columns: int = 16) -> torch.Tensor:
    x = torch.randn(200, columns, generator=torch.Generator().manual_seed(0))
    x[3, 2] = 5 * outlier
    return x


def words() -> torch.Tensor:
    return 0.1 * (torch.rand(200, 60, generator=torch.Generator().manual_seed(0)) < 0.008)


def mostly_zero() -> torch.Tensor:
    """Values of both signs, so rare that a percentile is 0."""
    x = numbers()
    rare = torch.rand(200, 16, generator=torch.Generator().manual_seed(2)) < 0.01
    return torch.where(rare, 0.3 * x, torch.zeros(()))


CASES = {
    "bag of words": ("int4-dq", (), words, "lin_r", "input"),
    "empty range": ("int4-dq", (), mostly_zero, "lin_r", "input"),
    "outlier": ("int8-qat", (), lambda: numbers(outlier=100), "lin_r", "input"),
    "clipped": ("int4-dq", ("activation.percentile=0.1",), numbers, "lin_r", "input"),
    "noise": ("int8-ptq+", ("rules",), numbers, "lin_r", "input"),
}


def prepared(kind: str, config=None):
    preset, sets, make, module, role = CASES[kind]
    x = make()
    if config is None:
        rules = [f"{module}@{role}=bits=2"] if sets == ("rules",) else []
        config = qconfig_from(preset, [] if rules else sets, rules)
    torch.manual_seed(0)
    made = dqconvert.prepare(SAGEConv(x.size(1), 8), config, (x, EDGES))
    dqconvert.calibrate(made.module, (x, EDGES))
    return made


def found(kind: str, report):
    _, _, _, module, role = CASES[kind]
    return next((one for one in report.advice() if one.kind == kind and f"{module}.quant.{role}" in one.paths), None)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("form", ["config", "command line"])
def test_what_costs_accuracy_is_found_and_pasting_the_rule_mends_it(kind, form):
    module, report = prepared(kind)
    finding = found(kind, report)
    assert finding is not None, report.advice()
    _, rule, option = str(finding).splitlines()
    if form == "config":
        config = dqconvert.QConfig.from_dict({**module.qconfig.to_dict(), "rules": [ast.literal_eval(rule.strip())]})
    else:
        preset, sets, *_ = CASES[kind]
        flag, value = shlex.split(option)
        assert flag == "--rule"
        config = qconfig_from(preset, [] if sets == ("rules",) else sets, [value])
    mended, again = prepared(kind, config)
    assert found(kind, again) is None, again.advice()
    if kind == "outlier":
        scales = [dict(one.quantizers())[finding.paths[0]].scale for one in (module, mended)]
        assert scales[1] < scales[0] / 8
        return
    quality = [dqconvert.compare(one, one, (CASES[kind][2](), EDGES)) for one in (module, mended)]
    path = next(path for path in finding.paths if path.endswith(f"{CASES[kind][3]}.quant.{CASES[kind][4]}"))
    ratios = [next(layer.sqnr_db for layer in one.layers if layer.path == path) for one in quality]
    assert ratios[1] > ratios[0] + 3


@pytest.mark.sample(2)
@pytest.mark.parametrize("preset", ["int8-dq", "int8-ptq", "int8-ptq+", "int4-dq+", "int8-qat"])
def test_ordinary_values_get_none(preset):
    module, report = dqconvert.prepare(GCN(16, 32, 2, 4), preset)
    dqconvert.calibrate(module, (numbers(), EDGES))
    assert not report.advice(), report.advice()
    assert report.advice().note == ""
    assert str(report.advice()) == "no quantizer stands out"


def test_ranges_of_groups_and_channels():
    groups = {"granularity": "degree", "groups": 4}
    config = {"preset": "int8-qat", "activation": groups, "weight": {"granularity": "channel"}}
    module, report = dqconvert.prepare(SAGEConv(16, 8), config)
    dqconvert.calibrate(module, (numbers(), EDGES))
    assert not report.advice()
    for _, quantizer in module.quantizers():
        if quantizer.max_val.dim() > 0:
            quantizer.max_val *= 0.3
    assert {path for one in report.advice() for path in one.paths} >= {"lin_r.quant.input", "lin_l.quant.weight"}


def test_quantizers_alike_are_one_finding():
    module, report = dqconvert.prepare(GCN(16, 32, 2, 4), {"preset": "int8-dq", "message": {"percentile": 0.1}})
    dqconvert.calibrate(module, (numbers(), EDGES))
    (finding,) = (one for one in report.advice() if "convs.0.quant.message" in one.paths)
    assert finding.paths == ("convs.0.quant.message", "convs.1.quant.message")
    assert finding.rule == {"role": "message", "spec": {"range": "mse", "percentile": "auto"}}
    assert len(report.advice().rules) == len(report.advice())


def test_what_was_seen_is_of_the_weights_that_were_there():
    module, report = prepared("clipped")
    assert found("clipped", report)
    with torch.no_grad():
        module.lin_r.weight.add_(1)
    assert not report.advice()
    assert "parameters changed" in report.advice().note
    dqconvert.evaluate(module, (numbers(), EDGES), costs=False)
    assert found("clipped", report)


def test_before_any_value_was_seen():
    _, report = dqconvert.prepare(SAGEConv(16, 8))
    assert report.advice() == ()
    assert "no values were looked at" in str(report.advice())
    report = dqconvert.prepare(SAGEConv(16, 8)).report
    gc.collect()
    with pytest.raises(ConfigError, match="module is gone"):
        report.advice()


def test_copies_and_pickles_have_seen_nothing():
    module, report = prepared("outlier")
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.report == module.report
        assert "no values" in other.report.advice().note
    assert pickle.loads(pickle.dumps(report)) == report


def test_calibration_is_as_without():
    """What it looks at draws nothing, and changes nothing."""
    ranges = []
    for _ in range(2):
        module, _ = prepared("clipped")
        ranges.append([quantizer.range for _, quantizer in module.quantizers()])
        before = torch.get_rng_state()
        dqconvert.calibrate(module, (numbers(), EDGES))
        assert torch.equal(torch.get_rng_state(), before)
        assert not [q for _, q in module.quantizers() if "forward" in vars(q)]
    assert ranges[0] == ranges[1]


# -- where it is said ----------------------------------------------------------------------------------------------


def test_training_warns_of_an_empty_range_once(caplog):
    module, _ = dqconvert.prepare(SAGEConv(60, 8), "int4-dq")
    module(words(), EDGES)
    with caplog.at_level(logging.WARNING, "dqconvert"):
        for _ in range(3):
            module.eval()
            module.train()
    said = [record.getMessage() for record in caplog.records if record.name == "dqconvert"]
    assert len([line for line in said if "lin_r.quant.input" in line]) == 1
    assert "--rule" in said[0]


def test_sound_training_says_nothing(caplog):
    module, _ = dqconvert.prepare(SAGEConv(16, 8))
    module(numbers(), EDGES)
    module.eval()
    assert not caplog.records


def test_finetune_warns(caplog):
    data = Data(words(), EDGES)
    dqconvert.finetune(SAGEConv(60, 8), data, "int4-dq", epochs=1, progress=False)
    assert any("bag of words" in record.getMessage() for record in caplog.records)


def test_evaluate_and_convert_print_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, _ = prepared("outlier")
    found = dqconvert.evaluate(module, (numbers(outlier=100), EDGES), costs=False)
    assert "--rule" in str(found)
    assert "lin_r@input" in found._repr_html_()
    assert found.to_dict()["advice"]["prepared"][0]["kind"] == "outlier"
    torch.save(SAGEConv(16, 8).state_dict(), "sage.pt")
    torch.save(Data(numbers(outlier=100), EDGES), "graph.pt")
    model = ["--model", "torch_geometric.nn:SAGEConv", "--kwargs", '{"in_channels": 16, "out_channels": 8}']
    command = ["convert", "sage.pt", *model, "--qconfig", "int8-qat", "--calibrate", "graph.pt", "-o", "sage.dq"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "advice: " in done.stdout

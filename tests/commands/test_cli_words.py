"""What the command line says: exit codes, one line for a mistake, and how good and how large the result is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCN
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app

KWARGS = {"in_channels": 6, "hidden_channels": 8, "num_layers": 2, "out_channels": 3}
MODEL = ["--model", "torch_geometric.nn:GCN", "--kwargs", json.dumps(KWARGS)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint, a graph, a prepared file that was calibrated, one that was not, and an integer file."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model, data = GCN(**KWARGS), Data(x=torch.randn(40, 6), edge_index=torch.randint(40, (2, 120)))
    torch.save(model.state_dict(), folder / "gcn.pt")
    torch.save(data, folder / "graph.pt")
    module = dqconvert.prepare(model, "int8-ptq").module
    dqconvert.save(module, folder / "new.dq")
    dqconvert.calibrate(module, data)
    dqconvert.save(module, folder / "gcn.dq")
    dqconvert.save(dqconvert.convert(module), folder / "gcn.int")
    return folder


@pytest.fixture(autouse=True)
def here(files, monkeypatch):
    monkeypatch.chdir(files)


def dq(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")
    assert not isinstance(result.exception, Exception), result.exception
    return result


DATA = ["--data", "graph.pt"]
TO = ["-o", "out.dq"]

WRONG_USAGE = {
    "a command": ["convrt"],
    "a flag": ["convert", "gcn.pt", *TO, "--qconfg", "int8-dq"],
    "a preset": ["convert", "gcn.pt", *TO, *MODEL, "--qconfig", "int8-qd"],
    "a config file": ["convert", "gcn.pt", *TO, *MODEL, "--qconfig", "gone.toml"],
    "a field": ["convert", "gcn.pt", *TO, *MODEL, "--set", "activation.bit=4"],
    "a value": ["convert", "gcn.pt", *TO, *MODEL, "--set", "activation.bits=40"],
    "a rule": ["convert", "gcn.pt", *TO, *MODEL, "--rule", "convs.0"],
    "a role": ["convert", "gcn.pt", *TO, *MODEL, "--rule", "convs.0@mesage=float"],
    "a rule that matches nothing": ["convert", "gcn.pt", *TO, *MODEL, "--rule", "layers.*=float"],
    "a model": ["convert", "gcn.pt", *TO, "--model", "torch_geometric.nn:GCM"],
    "a model's module": ["convert", "gcn.pt", *TO, "--model", "torch_geometri.nn:GCN"],
    "kwargs": ["convert", "gcn.pt", *TO, *MODEL[:3], "{in_channels: 6}"],
    "a kwarg": ["convert", "gcn.pt", *TO, *MODEL[:3], '{"in_channel": 6}'],
    "a key": ["convert", "gcn.pt", *TO, *MODEL, "--key", "ema"],
    "no model": ["convert", "gcn.pt", *TO],
    "no data": ["convert", "gcn.pt", *TO, *MODEL, "--qconfig", "int8-ptq", "--integer"],
    "an ending": ["compare", "gcn.pt", "gcn.int", *DATA, *MODEL, "--plot", "a.bmp"],
    "compare, no model": ["compare", "gcn.pt", "gcn.int", *DATA],
    "inspect, a preset": ["inspect", "gcn.pt", *MODEL, "--qconfig", "int8-qd"],
    "inspect, integers side by side": ["inspect", "gcn.int", "--diff"],
    "inspect, two forms": ["inspect", "gcn.dq", "--code", "--graph"],
    "run, no data": ["run", "gcn.int"],
    "bench, a workload": ["bench", "train", "--workload", "W9"],
    "bench, a preset": ["bench", "infer", "--preset", "int8-qd"],
    "bench, an ending": ["bench", "prepare", "--chart", "a.bmp"],
}

FAILED = {
    "no checkpoint": ["convert", "gone.pt", *TO, *MODEL],
    "no data": ["run", "gcn.int", "--data", "gone.pt"],
    "a file that exists": ["convert", "gcn.pt", "-o", "gcn.dq", *MODEL],
    "an integer file": ["convert", "gcn.int", *TO, *MODEL, "--integer"],
    "a prepared file": ["run", "gcn.dq", *DATA],
    "never trained": ["convert", "new.dq", *TO, *MODEL, "--integer"],
    "compare, never trained": ["compare", "gcn.pt", "new.dq", *DATA, *MODEL],
    "other weights": ["convert", "gcn.pt", *TO, *MODEL[:3], json.dumps({**KWARGS, "hidden_channels": 9})],
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", WRONG_USAGE)
def test_what_was_typed_wrong_exits_with_2(case):
    result = dq(*WRONG_USAGE[case])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("dqconvert: ") is (len(result.stderr.splitlines()) == 1)


@pytest.mark.parametrize("case", FAILED)
def test_what_failed_exits_with_1_and_one_line(case):
    result = dq(*FAILED[case])
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("dqconvert: ")
    assert "While executing" not in line


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("a flag", "--qconfig"),
        ("a command", "convert"),
        ("a preset", "did you mean 'int8-dq'"),
        ("a field", "did you mean 'bits'"),
        ("a role", "--rule convs.0@mesage=float: unknown role 'mesage'; did you mean 'message'"),
        ("a model", "did you mean 'GCN'"),
        ("a kwarg", "missing a required argument: 'in_channels'"),
        ("no data", "--integer needs ranges, and gcn.pt is a float checkpoint, which has none: pass --calibrate"),
    ],
)
def test_the_right_word_is_named(case, words):
    assert words in dq(*WRONG_USAGE[case]).stderr


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("an integer file", "gcn.int: is an integer file already: run it with `dqconvert run`."),
        ("a prepared file", "gcn.dq: holds a prepared module: make integers of it"),
        ("never trained", "new.dq: was neither trained nor calibrated: pass --calibrate DATA."),
        ("compare, never trained", "never observed a value"),
    ],
)
def test_what_a_file_is_and_what_to_do(case, words):
    assert words in dq(*FAILED[case]).stderr


def test_help_explains_rules_and_set_with_examples():
    text = dq("convert", "--help").stdout
    assert "--set activation.bits=4" in text
    assert "--rule '@edge_weight=float'" in text
    assert "2 wrong usage" in dq("--help").stdout


def test_a_calibrated_file_says_how_far_it_is_from_the_float_model(tmp_path):
    good = dq("convert", "gcn.pt", "-o", tmp_path / "a.dq", *MODEL, "--qconfig", "int8-ptq", "--calibrate", "graph.pt")
    found = re.search(
        r"against the float model, on the data: outputs with ([\d.]+) dB .* ([\d.]+) % of 40 pred", good.stdout
    )
    model, data = GCN(**KWARGS), torch.load("graph.pt", weights_only=False)
    model.load_state_dict(torch.load("gcn.pt"))
    expected = dqconvert.compare(model, dqconvert.load(tmp_path / "a.dq", model=GCN(**KWARGS)), data)
    assert float(found[1]) == pytest.approx(expected.output.sqnr_db, abs=0.06)
    assert float(found[2]) == pytest.approx(100 * expected.agreement, abs=0.006)


@pytest.mark.parametrize("integer", [[], ["--integer"]])
def test_one_that_lost_much_warns(integer, tmp_path):
    low = [
        "--set",
        "activation.bits=2",
        "--set",
        "weight.bits=2",
        "--set",
        "message.bits=2",
        "--set",
        "aggregate.bits=2",
    ]
    options = [*MODEL, "--qconfig", "int8-ptq", "--calibrate", "graph.pt", *low, *integer]
    lines = dq("convert", "gcn.pt", "-o", tmp_path / "a", *options).stdout
    assert "warning: that is low, and accuracy will suffer. Rounding hurts most at convs." in lines
    found = json.loads(dq("convert", "gcn.pt", "-o", tmp_path / "b", *options, "--json").stdout)["agreement"]
    assert found["low"] is True
    assert found["predictions"] == 40


def test_compare_takes_a_prepared_file_first():
    lines = dq("compare", "gcn.dq", "gcn.int", *DATA, *MODEL).stdout.splitlines()
    assert lines[-2].startswith("as the model without rounding predicts: ")
    assert lines[-1].startswith("as the prepared module predicts in evaluation: 100.00 % of 40 predictions")


def test_run_tells_the_first_call_from_the_others_and_names_outputs_after_files(tmp_path):
    os.makedirs(tmp_path / "data")
    data = torch.load("graph.pt", weights_only=False)
    for name in ("b", "a"):
        torch.save(data, tmp_path / "data" / f"{name}.pt")
    assert "1 call: the first took" in dq("run", "gcn.int", *DATA).stdout
    text = dq("run", "gcn.int", "--data", tmp_path / "data", "-o", tmp_path / "out.safetensors").stdout
    assert re.search(r"2 calls: the first took [\d.]+ ms, preparations included, the fastest of the others", text)
    import safetensors.torch

    assert sorted(safetensors.torch.load_file(tmp_path / "out.safetensors")) == ["a", "b"]


def test_a_pickled_module_is_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_gnn.py").write_text("from torch_geometric.nn import GCN\nclass Own(GCN):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_gnn

    torch.save(own_gnn.Own(6, 8, 2, 3), "own.pt")
    import sys

    monkeypatch.delitem(sys.modules, "own_gnn")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    assert dq("convert", "own.pt", "-o", "own.dq", "--trust-pickle").exit_code == 0


def test_a_saved_batch_is_an_input(tmp_path):
    data = torch.load("graph.pt", weights_only=False)
    torch.save(Batch.from_data_list([data, data]), tmp_path / "batch.pt")
    assert dq("run", "gcn.int", "--data", tmp_path / "batch.pt").exit_code == 0

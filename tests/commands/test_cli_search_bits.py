"""``dqconvert search-bits``: a checkpoint, data and a budget to a config that the other commands take; or one line."""

import json
import os

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app
from dqconvert.qconfig import as_qconfig

KWARGS = {"in_channels": 6, "hidden_channels": 8, "num_layers": 2, "out_channels": 4}
FACTORY = ["--model", "torch_geometric.nn:GCN", "--kwargs", json.dumps(KWARGS)]


def graph(nodes=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 3 * nodes), generator=generator)
    return Data(x=torch.randn(nodes, 6, generator=generator), edge_index=edges)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own, with the checkpoint of a GCN, a graph, and a list of graphs in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(GCN(**KWARGS).state_dict(), "gcn.pt")
    torch.save(graph(), "graph.pt")
    torch.save([graph(10, seed) for seed in range(5)], "graphs.pt")


def invoke(*args):
    return CliRunner().invoke(app, [*map(str, args)], prog_name="dqconvert")


def dq(*args, data="graph.pt", out="bits.toml", bits="2,4"):
    return invoke("search-bits", "gcn.pt", *FACTORY, "--data", data, "-o", out, "--bits", bits, *args)


def test_its_config_serves_the_other_commands():
    result = dq("--budget", 3, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["budget"], summary["count"], summary["out"]) == (3, "elements", "bits.toml")
    assert set(summary["chosen"].values()) == {2, 4}
    assert summary["average_bits"]["activations"] <= 3
    assert summary["sensitivity"]["sites"][0]["loss"].keys() == {"2", "4"}
    done = invoke("convert", "gcn.pt", *FACTORY, "--qconfig", "bits.toml", "-o", "gcn.dq", "--calibrate", "graph.pt")
    assert done.exit_code == 0, done.output
    report = dqconvert.load("gcn.dq", model=GCN(**KWARGS)).report
    assert {entry.path: entry.bits for entry in report.entries} == summary["chosen"]
    assert f"{summary['average_bits']['activations']:.2f} activations" in report.average_bits
    assert "average bits: " in invoke("inspect", "gcn.dq", "--report").stdout


def test_it_does_what_the_function_does():
    torch.manual_seed(1)
    assert dq("--budget", 3.5, "--weights", 4, "--count", "quantizers", "--quiet", out="bits.json").output == ""
    model = GCN(**KWARGS)
    model.load_state_dict(torch.load("gcn.pt"))
    wanted = dqconvert.search_bits(model, graph(), 3.5, weights=4, count="quantizers", bits=(2, 4), progress=False)
    assert as_qconfig("bits.json") == wanted


def test_in_words_with_a_config_of_ones_own():
    options = ["--qconfig", "int8-dq", "--set", "message=float", "--rule", "@edge_weight=bits=6,range=minmax"]
    result = dq("--budget", 4, *options)
    assert result.exit_code == 0, result.output
    assert "gcn.pt: the weights of a GCN" in result.stdout
    assert "chosen" in result.stdout
    assert "average bits: " in result.stdout
    assert "bits.toml: written; train with it: dqconvert finetune gcn.pt --qconfig bits.toml" in result.stdout
    config = as_qconfig("bits.toml")
    assert config.message is None
    assert {rule.spec.range for rule in config.rules if rule.role == "edge_weight"} == {"minmax"}
    assert {rule.spec.range for rule in config.rules if rule.role == "feature"} == {"percentile"}


@pytest.mark.study
@pytest.mark.parametrize(("options", "calls"), [([], 5), (["--batch-size", 2], 3), (["--batches", 4, "--numbers"], 4)])
def test_a_list_of_graphs(options, calls):
    result = dq("--budget", 3, "--json", *options, data="graphs.pt")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["sensitivity"]
    assert (found["batches"], found["measure"]) == (calls, "error" if "--numbers" in options else "KL")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"args": ["--budget", 1]}, 2, "budget=1.0: no average can be below the fewest bits, 2"),
        ({"args": ["--budget", 3, "--count", "element"]}, 2, "did you mean 'elements'"),
        ({"args": ["--budget", 3], "bits": "2;4"}, 2, "--bits 2;4: must be whole numbers from 2 to 8"),
        ({"args": ["--budget", 3], "bits": "9"}, 2, "--bits 9: must be"),
        ({"args": ["--budget", 3], "out": "bits.yaml"}, 2, "must end in .toml or .json"),
        ({"args": ["--budget", 3], "out": "nowhere/bits.toml"}, 1, "does not exist: create it first"),
        ({"args": ["--budget", 3], "data": "nowhere.pt"}, 1, "there is no such file or folder"),
        ({"args": ["--budget", 3, "--batch-size", 2]}, 1, "--batch-size needs --data with a list of graphs"),
        ({"args": ["--budget", 3, "--qconfig", "int4"]}, 2, "unknown preset 'int4'"),
        ({"args": ["--budget", 3, "--set", "message.bit=4"]}, 2, "message.bit: unknown field"),
        ({"args": []}, 2, "--budget"),
    ],
)
def test_mistakes_are_one_line_and_no_file(options, code, message):
    result = dq(*options.pop("args"), **options)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert {name for name in os.listdir() if "bits" in name} == set()


def test_a_file_that_exists_stays():
    with open("bits.toml", "w") as file:
        file.write("mine")
    result = dq("--budget", 3)
    assert (result.exit_code, "exists already: pass --force" in result.stderr) == (1, True)
    with open("bits.toml") as file:
        assert file.read() == "mine"

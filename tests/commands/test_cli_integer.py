"""Integer files on the command line: convert --integer, run, compare, inspect; every mistake is one line."""

import json
import math
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GIN
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app

KWARGS = {"in_channels": 6, "hidden_channels": 8, "num_layers": 2, "out_channels": 4}
FACTORY = ["--model", "torch_geometric.nn:GIN", "--kwargs", json.dumps(KWARGS)]


def graph(nodes=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, 3 * nodes), generator=generator)
    return torch.randn(nodes, 6, generator=generator), edge_index


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own, with the checkpoint of a GIN and two graphs in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(GIN(**KWARGS).state_dict(), "gin.pt")
    torch.save([Data(x=x, edge_index=edge_index) for x, edge_index in (graph(), graph(20, 1))], "graphs.pt")
    return tmp_path


def dq(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")
    assert result.exit_code == code, result.output
    return result


def make(*args, out="gin.int"):
    dq(
        "convert",
        "gin.pt",
        *FACTORY,
        "-o",
        out,
        "--qconfig",
        "int8-ptq",
        "--calibrate",
        "graphs.pt",
        "--integer",
        *args,
    )
    return dqconvert.load(out)


def refused(*args, code=1):
    """The line of an error that changes no file."""
    before = {path: os.path.getmtime(path) for path in os.listdir()}
    result = dq(*args, code=code)
    assert result.stdout == ""
    assert {path: os.path.getmtime(path) for path in os.listdir()} == before
    [line] = result.stderr.splitlines()
    return line


# -- convert --integer ---------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_an_integer_file():
    model = GIN(**KWARGS)
    model.load_state_dict(torch.load("gin.pt"))
    module = dqconvert.prepare(model, "int8-ptq").module
    dqconvert.calibrate(module, [graph(), graph(20, 1)])
    expected = dqconvert.convert(module)
    assert torch.equal(make()(*graph(30, 2)), expected(*graph(30, 2)))


def test_folding_can_be_left_out():
    folded, whole = make(), make("--no-fold", out="whole.int")
    assert folded.report.ops["fold_nodes"] == 1
    assert "fold_nodes" not in whole.report.ops
    assert torch.equal(folded(*graph(30, 2)), whole(*graph(30, 2)))
    assert "--integer" in refused("convert", "gin.pt", *FACTORY, "-o", "gin.dq", "--no-fold", code=2)


def test_a_trained_prepared_file_becomes_an_integer_file():
    module = dqconvert.prepare(GIN(**KWARGS), "int4-dq").module.train()
    module(*graph())
    dqconvert.save(module, "gin.dq")
    dq("convert", "gin.dq", *FACTORY, "-o", "gin.int", "--integer")
    assert torch.equal(dqconvert.load("gin.int")(*graph(30, 2)), dqconvert.convert(module)(*graph(30, 2)))


def test_it_says_what_it_did_in_words_and_as_json():
    args = ("convert", "gin.pt", *FACTORY, "--qconfig", "int8-ptq", "--calibrate", "graphs.pt", "--integer")
    lines = dq(*args, "-o", "a.int").stdout.splitlines()
    assert lines[0] == "gin.pt: a GIN"
    assert lines[-1].startswith(f"a.int: {os.path.getsize('a.int'):,} bytes written, ")
    assert "times the float weights' 744: what describes the graph (" in lines[-1]  # it grows, and says why
    found = json.loads(dq(*args, "-o", "b.int", "--json").stdout)
    assert found["model"] == "GIN"
    assert found["operations"]["integer_linear"] == 4
    assert found["bytes"] == os.path.getsize("b.int")
    assert dq(*args, "-o", "c.int", "--quiet").output == ""


def test_what_has_no_ranges_or_no_model_is_refused():
    line = refused("convert", "gin.pt", *FACTORY, "-o", "a.int", "--integer", code=2)
    assert "--integer needs ranges, and gin.pt is a float checkpoint, which has none: pass --calibrate" in line
    dqconvert.save(dqconvert.prepare(GIN(**KWARGS), "int8-dq").module, "gin.dq")
    line = refused("convert", "gin.dq", "-o", "a.int", "--integer", code=2)
    assert "is a prepared file: say what builds its float model, with --model" in line


# -- run -----------------------------------------------------------------------------------------------------------


def test_run_writes_the_outputs_of_each_input():
    module = make()
    dq("run", "gin.int", "--data", "graphs.pt", "-o", "out.safetensors")
    found = safetensors.torch.load_file("out.safetensors")
    assert sorted(found) == ["graphs.0", "graphs.1"]
    assert torch.equal(found["graphs.0"], module(*graph()))
    assert torch.equal(found["graphs.1"], module(*graph(20, 1)))


def test_run_says_what_came_out():
    module = make()
    out = module(*graph())
    lines = dq("run", "gin.int", "--data", "graphs.pt").stdout
    assert "(9, 4)" in lines
    assert f"{float(out.min()):.4g}" in lines
    found = json.loads(dq("run", "gin.int", "--data", "graphs.pt", "--json").stdout)
    assert found["outputs"][0] == {
        "name": "graphs.0",
        "shape": [9, 4],
        "dtype": "float32",
        "min": pytest.approx(float(out.min())),
        "max": pytest.approx(float(out.max())),
    }
    assert len(found["seconds"]) == 2
    assert dq("run", "gin.int", "--data", "graphs.pt", "--quiet").output == ""


def test_run_refuses_what_does_not_fit():
    make()
    dqconvert.save(dqconvert.prepare(GIN(**KWARGS), "int8-dq").module, "gin.dq")
    assert "holds a prepared module: make integers of it" in refused("run", "gin.dq", "--data", "graphs.pt")
    assert "not a file that dqconvert wrote" in refused("run", "gin.pt", "--data", "graphs.pt")
    assert "--data nowhere.pt: there is no such file" in refused("run", "gin.int", "--data", "nowhere.pt")
    x, edge_index = graph()
    torch.save((x, edge_index + 5), "far.pt")
    assert "edge_index names node" in refused("run", "gin.int", "--data", "far.pt")
    torch.save((x[:, :3], edge_index), "narrow.pt")
    assert "narrow.pt: does not fit the model" in refused("run", "gin.int", "--data", "narrow.pt")
    x[2, 1] = math.nan
    torch.save((x, edge_index), "nan.pt")
    assert "x holds NaN" in refused("run", "gin.int", "--data", "nan.pt")
    assert "--force" in refused("run", "gin.int", "--data", "graphs.pt", "-o", "gin.int")
    assert "No such option" in dq("run", "gin.int", "--dta", "graphs.pt", code=2).stderr


# -- compare -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["integer", "prepared"])
def test_compare_prints_what_the_function_finds(kind):
    make()
    model = GIN(**KWARGS)
    model.load_state_dict(torch.load("gin.pt"))
    if kind == "prepared":
        dq("convert", "gin.pt", *FACTORY, "-o", "gin.dq", "--qconfig", "int8-ptq", "--calibrate", "graphs.pt")
    file = "gin.int" if kind == "integer" else "gin.dq"
    loaded = dqconvert.load(file) if kind == "integer" else dqconvert.load(file, GIN(**KWARGS))
    expected = dqconvert.compare(model, loaded, [graph(), graph(20, 1)])
    args = ("compare", "gin.pt", file, "--data", "graphs.pt", *FACTORY)
    assert dq(*args).stdout.rstrip() == str(expected)
    assert json.loads(dq(*args, "--json").stdout) == json.loads(json.dumps(expected.to_dict()))


def test_compare_draws():
    pytest.importorskip("matplotlib")
    make()
    dq("compare", "gin.pt", "gin.int", "--data", "graphs.pt", *FACTORY, "--plot", "a.png")
    assert Path("a.png").read_bytes()[:4] == b"\x89PNG"
    line = refused("compare", "gin.pt", "gin.int", "--data", "graphs.pt", *FACTORY, "--plot", "a.docx", code=2)
    assert "--plot" in line


def test_compare_refuses_another_model():
    make()
    other = ["--model", "torch_geometric.nn:GIN", "--kwargs", json.dumps({**KWARGS, "out_channels": 5})]
    torch.save(GIN(**{**KWARGS, "out_channels": 5}).state_dict(), "other.pt")
    line = refused("compare", "other.pt", "gin.int", "--data", "graphs.pt", *other)
    assert "it was not made of this model" in line


# -- inspect -------------------------------------------------------------------------------------------------------


def test_inspect_shows_the_graph_the_code_the_report_and_all_of_it():
    module = make()
    lines = dq("inspect", "gin.int").stdout.splitlines()
    assert lines[0] == "integer module of a GIN"
    assert sum(line.split()[1] == "integer_linear" for line in lines[1:]) == 4
    assert any("convs.1" in line for line in lines)
    assert "def forward(self, x, edge_index" in dq("inspect", "gin.int", "--code").stdout
    assert dq("inspect", "gin.int", "--report").stdout.rstrip() == str(module.report)
    found = json.loads(dq("inspect", "gin.int", "--json").stdout)
    assert found["model"] == "GIN"
    assert len([node for node in found["graph"] if "integer_linear" in node["target"]]) == 4


def test_inspect_refuses_what_integer_files_do_not_have():
    make()
    assert "no --diff" in refused("inspect", "gin.int", "--diff", code=2)


def test_graphs_of_a_list_are_batches_of_one(folder, monkeypatch):
    """A classifier of graphs that counts those of its batch."""
    Path("counting.py").write_text(
        "from torch import nn\n"
        "from torch_geometric.nn import GCNConv, global_add_pool\n"
        "class Classifier(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.out = GCNConv(6, 8), nn.Linear(8, 3)\n"
        "    def forward(self, data):\n"
        "        x = self.conv(data.x, data.edge_index).relu()\n"
        "        return self.out(global_add_pool(x, data.batch, size=data.num_graphs))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import counting

    torch.save(counting.Classifier().state_dict(), "counting.pt")
    known = ["--model", "counting:Classifier", "--example", "graphs.pt", "--calibrate", "graphs.pt"]
    dq("convert", "counting.pt", *known, "--qconfig", "int8-ptq", "--integer", "-o", "counting.int")
    dq("run", "counting.int", "--data", "graphs.pt", "-o", "out.safetensors")
    assert sorted(tuple(t.shape) for t in safetensors.torch.load_file("out.safetensors").values()) == [(1, 3)] * 2
    batch = Batch.from_data_list(torch.load("graphs.pt", weights_only=False))
    assert dqconvert.load("counting.int")(batch).shape == (2, 3)

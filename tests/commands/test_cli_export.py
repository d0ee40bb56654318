"""``dqconvert export``, and ``dqconvert run`` on what it wrote."""

import json

import pytest
import safetensors.torch
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GIN
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app

KWARGS = {"in_channels": 4, "hidden_channels": 8, "num_layers": 1, "out_channels": 3}
FACTORY = ["--model", "torch_geometric.nn:GIN", "--kwargs", json.dumps(KWARGS)]
GRAPH = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(18).view(2, 9) % 7


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A calibrated GIN; its file is in the folder."""
    monkeypatch.chdir(tmp_path)
    prepared = dqconvert.prepare(GIN(**KWARGS)).module
    dqconvert.calibrate(prepared, GRAPH)
    dqconvert.save(prepared, "gin.dq")
    torch.save(Data(x=GRAPH[0], edge_index=GRAPH[1]), "graph.pt")
    return prepared.eval()


def dq(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")
    assert result.exit_code == code, result.output
    return result


def test_a_prepared_file_is_exported_and_run(module):
    found = json.loads(dq("export", "gin.dq", "-o", "gin.onnx", *FACTORY, "--json").stdout)
    assert found["format"] == "onnx"
    dq("run", "gin.onnx", "--data", "graph.pt", "-o", "out.safetensors", "-q")
    found = safetensors.torch.load_file("out.safetensors")
    torch.testing.assert_close(found, {"graph": module(*GRAPH).detach()}, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gin.dq", "-o", "gin.tflite", *FACTORY], "is no format"),
        (["gin.dq", "-o", "gin.onnx"], "--model"),
        (["gin.dq", "-o", "gin.onnx", *FACTORY, "--target", "tensorrt"], "int8-dq-symmetric"),
        (["gin.dq", "-o", "graph.pt", "--format", "onnx", *FACTORY], "--force"),
    ],
)
def test_mistakes_are_one_line(args, words):
    result = CliRunner().invoke(app, ["export", *args], prog_name="dqconvert")
    assert result.exit_code in (1, 2)
    [line] = result.stderr.splitlines()
    assert words in line


def test_a_program_is_not_run_and_it_says_what_does(module, tmp_path):
    (tmp_path / "gin.pt2").write_bytes(b"")
    [line] = dq("run", "gin.pt2", "--data", "graph.pt", code=1).stderr.splitlines()
    assert "torch.export.load('gin.pt2')" in line


def test_a_file_of_somebody_else_is_refused():
    with open("other.onnx", "wb") as file:
        file.write(b"no such thing")
    assert "cannot be read as ONNX" in dq("run", "other.onnx", "--data", "graph.pt", code=1).stderr

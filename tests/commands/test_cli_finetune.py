"""``dqconvert finetune``: a checkpoint and data to a file that predicts as the float model; or one line and no file."""

import json
import os

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from typer.testing import CliRunner

import dqconvert
from dqconvert.cli import app

KWARGS = {"in_channels": 6, "hidden_channels": 8, "num_layers": 2, "out_channels": 4}
FACTORY = ["--model", "torch_geometric.nn:GCN", "--kwargs", json.dumps(KWARGS)]


def graph(nodes=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.randn(nodes, 6, generator=generator),
        edge_index=torch.randint(nodes, (2, 3 * nodes), generator=generator),
        y=torch.randint(4, (nodes,), generator=generator),
        train_mask=torch.arange(nodes) % 2 == 0,
        val_mask=torch.arange(nodes) % 2 == 1,
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own, with the checkpoint of a GCN, a graph, and a list of graphs in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(GCN(**KWARGS).state_dict(), "gcn.pt")
    torch.save(graph(), "graph.pt")
    torch.save([graph(12, seed) for seed in range(5)], "graphs.pt")
    return tmp_path


def dq(*args, data="graph.pt"):
    fixed = ["finetune", "gcn.pt", *FACTORY, "--data", data, "-o", "out.dq"]
    return CliRunner().invoke(app, [*fixed, *map(str, args)], prog_name="dqconvert")


def test_a_graph_without_labels():
    result = dq("--epochs", 4, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["chosen_by"] == "agreement"
    assert [epoch["number"] for epoch in summary["epochs"]] == [1, 2, 3, 4]
    assert summary["best"] == pytest.approx(summary["agreement"]["equal"], abs=1e-6)
    module = dqconvert.load("out.dq", model=GCN(**KWARGS))
    data = graph()
    same = module.eval()(data.x, data.edge_index).argmax(1) == _float()(data.x, data.edge_index).argmax(1)
    assert same.float().mean().item() == pytest.approx(summary["best"])


def _float():
    model = GCN(**KWARGS)
    model.load_state_dict(torch.load("gcn.pt", weights_only=True))
    return model.eval()


def test_with_labels_to_an_integer_file_in_words():
    fields = ["--labels", "y", "--mask", "train_mask", "--validation", "val_mask"]
    result = dq("--epochs", 2, "--qconfig", "int4-dq", "--integer", *fields)
    assert result.exit_code == 0, result.output
    assert "gcn.pt: the weights of a GCN" in result.stdout
    assert "int4-dq: 2 epochs, loss " in result.stdout
    assert "% of the validation rows right" in result.stdout
    assert dqconvert.load("out.dq")(graph().x, graph().edge_index).shape == (40, 4)


def test_seeds_repeat():
    for name in ("one", "other"):
        assert dq("--epochs", 2, "--seed", 3, "--force").exit_code == 0
        os.rename("out.dq", name)
    one, other = (dqconvert.load(name, model=GCN(**KWARGS)).state_dict() for name in ("one", "other"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("options", [[], ["--batch-size", 2]], ids=["one by one", "batches"])
def test_a_list_of_graphs(options):
    result = dq("--epochs", 2, "--labels", "y", "--quiet", *options, data="graphs.pt")
    assert result.exit_code == 0, result.output
    assert result.output == ""


def test_a_folder_of_graphs():
    os.mkdir("many")
    for seed in range(3):
        torch.save(graph(12, seed), f"many/{seed}.pt")
    assert dq("--epochs", 1, "--batch-size", 2, data="many").exit_code == 0


def test_it_goes_on_from_a_state():
    assert dq("--epochs", 2, "--resume", "state", "--json").exit_code == 0
    result = dq("--epochs", 2, "--resume", "state", "--json", "--force")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["epochs"] == []


@pytest.mark.parametrize(
    ("options", "data", "code", "message"),
    [
        (["--mask", "train_mask"], "graph.pt", 2, "--mask and --validation say which labels to use: pass --labels"),
        (["--labels", "Y"], "graph.pt", 2, "labels='Y' is not in the Data"),
        (["--batch-size", 2], "graph.pt", 1, "--batch-size needs --data with a list of graphs"),
        (["--qconfig", "int4"], "graph.pt", 2, "unknown preset 'int4'"),
        (["--lr", 0], "graph.pt", 2, "lr a number above 0, got 0.0"),
        (["--epochs", 0], "graph.pt", 2, "--epochs"),
        ([], "nowhere.pt", 1, "there is no such file or folder"),
    ],
)
def test_mistakes_are_one_line_and_no_file(options, data, code, message):
    result = dq("--epochs", 1, *options, data=data)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not os.path.exists("out.dq")

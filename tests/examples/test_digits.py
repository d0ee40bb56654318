"""The experiment on digits: graphs of small images, and a run on them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch_geometric.data import Data

import digits


def made_up(number: int = 40) -> list[Data]:
    """Bars that stand and bars that lie."""
    found = []
    for index in range(number):
        image = torch.zeros(8, 8)
        if index % 2:
            image[2:6, index % 8] = 0.5
        else:
            image[index % 8, 1:7] = 1.0
        found.append(digits.graph_of(image, index % 2))
    return found


def test_the_graph_of_an_image() -> None:
    image = torch.zeros(8, 8)
    image[0, 0], image[0, 7], image[7, 7] = 0.25, 0.5, 1.0
    graph = digits.graph_of(image, 3, neighbours=1)
    assert graph.x.tolist() == [[0.25, 0, 0], [0.5, 0, 1], [1, 1, 1]]
    assert graph.edge_index.tolist() == [[1, graph.edge_index[0, 1].item(), 1], [0, 1, 2]]
    assert graph.edge_attr[0].tolist() == [0.5, 0.0]  # from the right end of the row to the left one
    assert graph.edge_attr[2].tolist() == [1.0, 0.5]
    assert graph.y.tolist() == [3]


@pytest.mark.parametrize("layer", digits.MODELS)
def test_a_run(layer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(digits, "load", lambda limit: made_up())
    epochs = ["--float-epochs", "3", "--epochs", "1", "--seeds", "1"]
    digits.main(["--model", layer, *epochs, "--preset", "int8-ptq", "--json"])
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [row["preset"] for row in runs] == ["float", "float + 1 epochs", "int8-ptq"]
    assert runs[2]["integer"] == runs[2]["test"]


def test_scikit_learns_images() -> None:
    pytest.importorskip("sklearn")
    graphs = digits.load(20)
    assert [int(graph.y) for graph in graphs[:10]] == list(range(10))
    assert all(10 < graph.num_nodes < 64 and graph.x.max() <= 1 for graph in graphs)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install 'dqconvert\\[examples\\]'"):
        digits.load(None)

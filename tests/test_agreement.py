"""Integer modules predict what the prepared modules predict: part of what examples/agreement.py finds out."""

import json

import pytest
import torch

import agreement as study

# Each model in one way of eight, each way with several models.
CASES = [(name, study.WAYS[k % 8]) for k, name in enumerate(study.CASES)]


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "way"), CASES, ids=[f"{name}-{way[0]}-{way[1]}-{way[2]}" for name, way in CASES])
def test_predictions_agree(name, way):
    found = study.examine(name, 0, way)
    assert found.passed, found
    assert found.clear > 100
    if way[0] == 8:
        assert found.share >= study.ENOUGH


def test_twelve_layers_and_every_basic_gnn_are_among_them():
    layers = [name for name in study.CASES if name.endswith("Conv")]
    assert len(layers) == 12
    assert {"GCN", "GraphSAGE", "GIN", "GAT", "PNA", "EdgeCNN"} <= set(study.CASES)
    assert {way for _, way in CASES} == set(study.WAYS)


def test_the_step_is_that_of_the_grids_behind_the_scores():
    module = study.prepared("GCNConv", 0).train()
    found = study.graph(0, "")
    module(**study.inputs(found))
    steps = {path: float(quantizer.scale) for path, quantizer in module.quantizers()}
    assert study.step_of(module) == steps["quant.update"]


def test_it_prints_a_table_and_json(capsys, monkeypatch):
    monkeypatch.setattr(study, "WAYS", study.WAYS[:1])
    assert study.main(["SAGEConv", "--seeds", "1"]) == 0
    assert "1 of 1 agree" in capsys.readouterr().out
    assert study.main(["SAGEConv", "--seeds", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["model"], found["passed"]) == ("SAGEConv", True)
    with pytest.raises(SystemExit):
        study.main(["Nothing"])
    assert torch.is_grad_enabled()

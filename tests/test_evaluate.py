"""``evaluate``: what it says of models is what their own loops say; what it cannot measure, it says."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN, global_add_pool
from typer.testing import CliRunner

import citation
import dqconvert
from dqconvert.bench.costs import why_not_measurable
from dqconvert.cli import app
from dqconvert.demo import GraphSpec, make_graph
from dqconvert.errors import CheckpointError, ConfigError, ObserverError

KWARGS = {"in_channels": 30, "hidden_channels": 8, "num_layers": 2, "out_channels": 3}


class Pooled(nn.Module):
    """A number for each graph."""

    def __init__(self):
        super().__init__()
        self.gnn, self.lin = GCN(4, 8, 2), nn.Linear(8, 1)

    def forward(self, x, edge_index, batch):
        return self.lin(global_add_pool(self.gnn(x, edge_index), batch)).squeeze(-1)


@pytest.fixture(scope="module")
def case():
    """A graph with labels; a float model, its prepared and its integer module."""
    torch.manual_seed(0)
    data = make_graph(spec=GraphSpec(num_nodes=240, num_classes=3, num_words=30, num_train=15, num_val=20))
    model = GCN(**KWARGS)
    citation.fit(model, data, 30, 0.01, lambda epoch, **values: None)
    module, _ = dqconvert.prepare(model, "int8-ptq")
    dqconvert.calibrate(module, data)
    return data, {"float": model, "prepared": module, "integer": dqconvert.convert(module)}


def test_accuracies_are_those_of_the_citation_study(case):
    data, models = case
    found = dqconvert.evaluate(models, data, mask="test_mask", costs=False)
    for one, model in zip(found.models, models.values(), strict=True):
        assert one.metrics["accuracy"] == pytest.approx(citation.accuracy(model, data, data.test_mask), abs=1e-4)
    assert (found.labels, found.rows) == ("y at test_mask", int(data.test_mask.sum()))
    assert found.notes == ()


def test_agreement_is_that_of_compare(case):
    data, models = case
    found = dqconvert.evaluate(models, data, costs=False).models
    compared = dqconvert.compare(models["float"], models["integer"], data)
    assert found[2].agreement == compared.agreement
    assert found[2].sqnr_db == pytest.approx(compared.output.sqnr_db)
    assert found[0].agreement == 1
    assert math.isinf(found[0].sqnr_db)


def test_costs(case):
    data, models = case
    for one in dqconvert.evaluate(models, data, repeats=1).models:
        assert one.warm_ms > 0
        assert one.new_ms > 0
        assert one.bytes > 1000
        assert (one.peak_mib is None) == (why_not_measurable() is not None)


def test_models_stay_as_they_were(case):
    data, models = case
    models = copy.deepcopy(models)
    models["prepared"].train()
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    models["integer"](data.x, data.edge_index)
    kept = len(models["integer"].graph_memory)
    dqconvert.evaluate(models, data, repeats=1)
    assert models["prepared"].training
    assert len(models["integer"].graph_memory) == kept > 0
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("what", ["number", "object", "function"])
def test_any_metric(case, what):
    data, models = case
    from torchmetrics.classification import MulticlassF1Score  # two seconds, in one test

    f1 = MulticlassF1Score(num_classes=3, average="macro")
    metric = {"number": "accuracy", "object": f1, "function": lambda rows, y: (rows.argmax(-1) == y).sum()}[what]
    found = dqconvert.evaluate(models["float"], data, {"mine": metric}, mask="val_mask", costs=False)
    rows = models["float"].eval()(data.x, data.edge_index)[data.val_mask]
    y = data.y[data.val_mask]
    hits = (rows.argmax(-1) == y).sum()
    expected = {"number": 100 * hits / len(y), "object": f1(rows, y), "function": hits}[what]
    assert found.models[0].metrics["mine"] == pytest.approx(float(expected))


def test_numbers_over_several_graphs():
    torch.manual_seed(0)
    graphs = [Data(torch.randn(n, 4), torch.randint(n, (2, 3 * n)), y=torch.randn(1)) for n in (5, 9, 7)]
    model = Pooled()
    module, _ = dqconvert.prepare(model, "int8-ptq", graphs)
    dqconvert.calibrate(module, graphs)
    found = dqconvert.evaluate([model, module], graphs, {"mae": "mae", "rmse": "rmse"}, costs=False)
    zeros = [torch.zeros(graph.num_nodes, dtype=torch.long) for graph in graphs]
    with torch.no_grad():
        errors = [float(model(g.x, g.edge_index, z) - g.y) for g, z in zip(graphs, zeros, strict=True)]
    assert found.models[0].metrics["mae"] == pytest.approx(sum(map(abs, errors)) / 3)
    assert found.models[0].metrics["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 3))
    assert (found.rows, found.batches) == (3, 3)
    assert dqconvert.evaluate(model, graphs, costs=False).units == {"mae": ""}


def test_classes_in_a_column(case):
    """As the labels of OGB are."""
    data, models = case
    column = data.clone()
    column.y = data.y[:, None]
    found = [dqconvert.evaluate(models["float"], one, costs=False).models[0] for one in (data, column)]
    assert found[0] == found[1]


@pytest.mark.study
def test_exported_models(case, tmp_path):
    data, models = case
    dqconvert.export(models["integer"], tmp_path / "gcn.pt2")
    program = torch.export.load(tmp_path / "gcn.pt2")
    several = {**models, "program": program, "file": tmp_path / "gcn.pt2"}
    found = dqconvert.evaluate(several, data, mask="test_mask", repeats=1).models
    assert [one.form for one in found[3:]] == ["exported", "exported"]
    assert found[2].metrics == found[3].metrics == found[4].metrics
    assert (found[3].bytes, found[4].bytes) == (None, (tmp_path / "gcn.pt2").stat().st_size)
    (tmp_path / "torn.pt2").write_bytes(b"PK")
    for model, error in [
        (tmp_path / "torn.pt2", CheckpointError),
        ("gone.onnx", CheckpointError),
        ("x.bin", ConfigError),
    ]:
        with pytest.raises(error):
            dqconvert.evaluate([models["float"], model], data)
    with pytest.raises(ConfigError, match="float model first"):
        dqconvert.evaluate(program, data)


# -- what cannot be measured ---------------------------------------------------------------------------------------


def test_without_labels_it_says_what_it_can(case):
    data, models = case
    found = dqconvert.evaluate(models, Data(data.x, data.edge_index), costs=False)
    assert found.units == {}
    assert found.models[2].agreement > 0.9
    assert "no labels" in found.notes[0]
    assert "accuracy" not in str(found)


@pytest.mark.parametrize(
    ("y", "says"),
    [(torch.zeros(7, dtype=torch.long), "240 rows"), (torch.zeros(240, 2, dtype=torch.long), "pass metric=")],
)
def test_labels_that_do_not_fit_are_not_used_and_it_says_so(case, y, says):
    data, models = case
    other = data.clone()
    other.y = y
    found = dqconvert.evaluate(models["float"], other, costs=False)
    assert found.units == {}
    assert says in found.notes[0]


def test_training_rows_among_the_labels_are_mentioned(case):
    data, models = case
    assert "test_mask" in dqconvert.evaluate(models["float"], data, costs=False).notes[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"metric": 3}, "got an int"),
        ({"metric": Pooled}, "make an instance"),
        ({"metric": lambda rows, y: rows}, "one number is expected"),
        ({"metric": {"mine": lambda rows, y: rows[999]}}, "the metric mine raised IndexError: index 999"),
        ({"labels": "label"}, "which has"),
        ({"mask": "x"}, "bool tensor"),
        ({"repeats": 0}, "from 1 on"),
    ],
)
def test_wrong_arguments(case, arguments, says):
    data, models = case
    with pytest.raises(ConfigError, match=says):
        dqconvert.evaluate(models["float"], data, costs=False, **arguments)


def test_data_that_a_model_does_not_take(case):
    data, models = case
    wide = Data(torch.ones(5, 31), data.edge_index % 5)
    with pytest.raises(ConfigError, match="the model 'float', called on the data, raised RuntimeError: "):
        dqconvert.evaluate(models["float"], wide, costs=False)


def test_models_that_do_not_belong_together(case):
    data, models = case
    with pytest.raises(ConfigError, match="was not made of this model"):
        dqconvert.evaluate([GCN(30, 8, 2, 4), models["integer"]], data, costs=False)
    with pytest.raises(ConfigError, match="list or a dict of models"):
        dqconvert.evaluate([], data)
    with pytest.raises(ConfigError, match="no data"):
        dqconvert.evaluate(models, [])
    with pytest.raises(ObserverError):
        dqconvert.evaluate(dqconvert.prepare(models["float"]).module, data)


# -- how it is shown -----------------------------------------------------------------------------------------------


def test_table_json_html_and_chart(case, tmp_path):
    data, models = case
    found = dqconvert.evaluate(models, data, mask="test_mask", repeats=1)
    lines = str(found).splitlines()
    assert lines[0] == "y at test_mask: 135 rows; 240 predictions of 1 call; 1 thread".replace(
        "1 thread", f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    )
    assert all(len(line) <= 100 for line in lines[:7])  # times are as long as they are
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["models"][1]["metrics"] == found.models[1].metrics
    assert plain["models"][0]["sqnr_db"] is None
    assert found._repr_html_().partition("</table>")[0].count("<tr>") == 4
    assert repr(found).startswith("<Evaluation on 135 labels: accuracy of float ")
    found.plot(tmp_path / "chart.svg")
    assert "accuracy" in (tmp_path / "chart.svg").read_text() or (tmp_path / "chart.svg").stat().st_size > 10_000


def test_command(case, tmp_path, monkeypatch):
    data, models = case
    monkeypatch.chdir(tmp_path)
    torch.save(models["float"].state_dict(), "gcn.pt")
    torch.save(data, "graph.pt")
    dqconvert.save(models["prepared"], "gcn.dq")
    dqconvert.save(models["integer"], "gcn.int8")
    Path("score.py").write_text("def right(rows, y):\n    return (rows.argmax(-1) == y).sum()\n")
    model = ["--model", "torch_geometric.nn:GCN", "--kwargs", json.dumps(KWARGS), "--data", "graph.pt"]
    more = ["--metric", "score:right", "--metric", "accuracy", "--mask", "test_mask", "--repeats", "1", "--json"]
    done = CliRunner().invoke(app, ["evaluate", "gcn.pt", "gcn.dq", "gcn.int8", *model, *more])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [one["form"] for one in printed["models"]] == ["float", "prepared", "integer"]
    expected = dqconvert.evaluate(models, data, mask="test_mask", costs=False)
    for one, other in zip(printed["models"], expected.models, strict=True):
        assert one["metrics"]["accuracy"] == pytest.approx(other.metrics["accuracy"])
        assert one["metrics"]["right"] == pytest.approx(other.metrics["accuracy"] / 100 * expected.rows)
    alone = CliRunner().invoke(app, ["evaluate", "gcn.int8", "--data", "graph.pt", "--no-costs"])
    assert alone.exit_code == 0, alone.output
    assert "accuracy" in alone.stdout
    wrong = CliRunner().invoke(app, ["evaluate", "gcn.int8", "--data", "graph.pt", "--metric", "f2"])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.study
@pytest.mark.parametrize("preset", ["int8-dq", "int4-dq+"])
def test_cora_as_the_study_has_it(preset):
    """The numbers of ``examples/citation.py`` on Cora, of one seed."""
    root = os.environ.get("DQCONVERT_DATA")
    if root is None or not (Path(root) / "Planetoid" / "Cora").exists():
        pytest.skip("needs DQCONVERT_DATA with Planetoid's Cora")
    data = citation.load(root, "Cora")
    torch.manual_seed(0)
    model = citation.GCN(data.num_features, 7)
    citation.fit(model, data, 100, 0.01, lambda epoch, **values: None)
    module, _ = dqconvert.prepare(model, preset, (data.x, data.edge_index))
    dqconvert.calibrate(module, data)
    citation.fit(module, data, 30, 0.01, lambda epoch, **values: None)
    models = {"float": model, "prepared": module, "integer": dqconvert.convert(module)}
    found = dqconvert.evaluate(models, data, mask="test_mask")
    for one, each in zip(found.models, models.values(), strict=True):
        assert round(one.metrics["accuracy"], 3) == round(citation.accuracy(each, data, data.test_mask), 3)

"""What the experiments share: configs in other widths, means, Markdown, TensorBoard's absence, exact going on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, global_add_pool

import graph_study
import study
from dqconvert import QSpec, Rule, presets
from dqconvert.qconfig import KINDS


def test_a_config_in_other_widths() -> None:
    config = study.with_bits(
        presets["int8-ptq"].__class__(message=QSpec(), rules=(Rule(role="input", spec=QSpec()),)), 3
    )
    assert config.message is not None
    assert config.message.bits == 3
    assert config.weight is None
    assert isinstance(config.rules[0].spec, QSpec)
    assert config.rules[0].spec.bits == 3
    assert study.with_bits(presets["int4-dq"], None) == presets["int4-dq"]
    two = study.with_bits(presets["int4-dq+"], 2)
    assert two.graph_bits is None
    assert all(getattr(two, kind).bits == 2 for kind in KINDS)


def test_means_deviations_and_the_difference_to_float_of_the_same_seed() -> None:
    found = [("float", 0, 80.0), ("int8-dq", 0, 79.0), ("float", 1, 82.0), ("int8-dq", 1, 79.0)]
    rows = [{"model": "GCN", "preset": preset, "seed": seed, "test": test} for preset, seed, test in found]
    rows[1]["integer"], rows[3]["integer"] = 79.1, 78.7
    first, second = study.summary(rows, ["model", "preset"], ["test"])
    assert first == {
        "model": "GCN",
        "preset": "float",
        "seeds": 2,
        "test_mean": 81.0,
        "test_std": pytest.approx(2**0.5),
    }
    assert second["change"] == -2.0
    assert second["integer_mean"] == pytest.approx(78.9)
    assert second["integer_gap"] == pytest.approx(0.3)


def test_markdown_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"preset": "float", "seed": 0, "test": 80.0}]
    args = argparse.Namespace(json=False, markdown=True, command="python examples/x.py --seeds 1")
    study.show(rows, study.summary(rows, ["preset"], ["test"]), args, "Accuracy")
    printed = capsys.readouterr().out
    assert "| float | 1 | 80.0 ± 0.0 |" in printed
    assert "```\npython examples/x.py --seeds 1\n```" in printed


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    args = argparse.Namespace(out=None, json=True, tensorboard=tmp_path)
    with pytest.raises(SystemExit, match="pip install 'dqconvert\\[examples\\]'"):
        study.carry_out([study.Job({"preset": "float"}, lambda log: {}, 1)], args)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = GCNConv(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.dropout(self.conv(x, edge_index).relu(), 0.3, self.training)
        return self.lin(global_add_pool(h, batch))


def graphs(number: int) -> list[Data]:
    """Graphs whose class says where their features lie."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(number):
        x = torch.randn(6, 3, generator=generator) + index % 2
        edge_index = torch.randint(6, (2, 12), generator=generator)
        found.append(Data(x=x, edge_index=edge_index, y=torch.tensor([index % 2])))
    return found


TASK = graph_study.classification("x", "edge_index", "batch")


def test_training_goes_on_exactly_from_its_last_epoch(tmp_path: Path) -> None:
    recipe = graph_study.Recipe(epochs=4, lr=0.05, batch_size=8)
    data, seen = graphs(40), []

    def trained(state: Path | None, stop_after: int = 9) -> nn.Module:
        torch.manual_seed(0)
        model = Pooled()

        def log(epoch: int, **values: float) -> None:
            seen.append(epoch)
            if epoch == stop_after:
                raise KeyboardInterrupt

        graph_study.train(model, data[:24], data[24:32], TASK, recipe, log, seed=0, state=state)
        return model

    whole = trained(None).state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "state.pt", stop_after=2)
    assert seen == [1, 2, 3, 4, 1, 2]
    torch.testing.assert_close(trained(tmp_path / "state.pt").state_dict(), whole, rtol=0, atol=0)
    assert seen[6:] == [3, 4]


def test_a_teacher_is_asked_once_of_each_graph() -> None:
    torch.manual_seed(0)
    data, teacher = graphs(10), Pooled().eval()
    batch = Batch.from_data_list(graph_study.taught(data, teacher, TASK, batch_size=4)[::-1])
    torch.testing.assert_close(batch.target, teacher(batch.x, batch.edge_index, batch.batch))
    assert "target" not in data[0]


def test_jobs_of_a_split(tmp_path: Path) -> None:
    """From scratch and from float; the test graphs' labels change the test scores alone."""
    data = graphs(40)
    recipes = {
        "float": graph_study.Recipe(epochs=8, lr=0.05, halve=4, batch_size=8),
        "int8-dq": graph_study.Recipe(epochs=3, lr=0.05, start="scratch", batch_size=8),
        "int8-ptq": graph_study.Recipe(epochs=2, lr=0.01, distil=1.0, batch_size=8),
    }
    configs = {name: presets[name] for name in ("int8-dq", "int8-ptq")}

    def rows(test: list[Data], out: Path | None) -> list[study.Row]:
        torch.manual_seed(0)
        split = graph_study.Split(train=data[:24], validation=data[24:32], test=test)
        found = graph_study.jobs(Pooled, split, TASK, recipes, configs, {"fold": 0}, seed=0, out=out)
        return study.carry_out(found, argparse.Namespace(out=out, json=True, tensorboard=None))

    found = rows(data[32:], tmp_path)
    assert [row["preset"] for row in found] == ["float", "float + 2 epochs", "int8-dq", "int8-ptq"]
    assert found[0]["test"] == found[3]["test"] == found[3]["integer"] == 100.0
    swapped = [Data(x=g.x, edge_index=g.edge_index, y=1 - g.y) for g in data[32:]]
    again = rows(swapped, None)
    assert [row["val"] for row in again] == [row["val"] for row in found]
    assert [row["test"] for row in again] == [100 - row["test"] for row in found]
    assert [row["seconds"] for row in rows(data[32:], tmp_path)] == [row["seconds"] for row in found]

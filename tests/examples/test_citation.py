"""The citation study on a small graph: what it runs, that it goes on, and that test nodes choose nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

import citation
from dqconvert.demo import GraphSpec, make_graph

SHORT = ["--root", "x", "--dataset", "Cora", "--seeds", "1", "--float-epochs", "20", "--json"]


def small_graph() -> Data:
    return make_graph(spec=GraphSpec(num_nodes=240, num_classes=3, num_words=30, num_train=15, num_val=20))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citation, "load", lambda root, name: small_graph())


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[list[dict], list[dict]]:
    citation.main([*SHORT, *argv])
    printed = json.loads(capsys.readouterr().out)
    return printed["runs"], printed["summary"]


def test_float_float_trained_on_and_each_preset(capsys: pytest.CaptureFixture[str]) -> None:
    runs, lines = run(capsys, "--preset", "int8-dq", "--preset", "int8-qat", "--epochs", "6")
    assert [row["preset"] for row in runs] == ["float", "float + 6 epochs", "int8-dq", "int8-qat"]
    assert all(row["test"] > 60 for row in runs)
    assert ["integer" in row for row in runs] == [False, False, True, True]
    assert lines[2]["integer_gap"] <= 1.0
    assert lines[2]["change"] == pytest.approx(runs[2]["test"] - runs[0]["test"])


@pytest.mark.study
@pytest.mark.parametrize("how", ["--distil", "--unlabelled", "--calibrate"])
def test_other_ways(capsys: pytest.CaptureFixture[str], how: str) -> None:
    runs, _ = run(capsys, how, "--bits", "8", "--bits", "2", "--model", "GIN", "--epochs", "4")
    further = ["float + 4 epochs"] if how == "--distil" else []
    assert [row["preset"] for row in runs] == ["float", *further, "int8-dq, 8 bits", "int8-dq, 2 bits"]
    assert runs[-2]["test"] > runs[-1]["test"]
    eight, two = (row["errors"] for row in runs[-2:])
    assert all(none is few is None or none < few for none, few in zip(eight, two, strict=True))
    assert citation.by_degree(runs).count("\n") == 3


def test_widths_within_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    runs, _ = run(capsys, "--calibrate", "--budget", "8", "--budget", "2.5")
    assert [row["preset"] for row in runs[1:]] == ["int8-dq, 8.0 bits on average", "int8-dq, 2.5 bits on average"]
    assert runs[1]["test"] > runs[2]["test"]


def test_a_run_that_was_killed_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--epochs", "3", "--out", str(tmp_path)]
    whole, _ = run(capsys, *argv)
    journal = tmp_path / "runs.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + lines[1] + lines[2][:40])  # killed while it wrote the third
    again, _ = run(capsys, *argv)
    timeless = [[{**row, "seconds": 0} for row in rows] for rows in (whole, again)]
    assert timeless[0] == timeless[1]
    assert again[:2] == whole[:2]
    assert len(journal.read_text().splitlines()) == 3
    monkeypatch.setattr(citation, "fit", None)  # all is done: nothing is trained any more
    assert run(capsys, *argv)[0] == again


@pytest.mark.parametrize("how", [(), ("--distil",)], ids=["loop", "distil"])
def test_test_nodes_choose_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    """Other labels of the test nodes change what is reported of them, and nothing else."""
    data = small_graph()
    before, _ = run(capsys, *how, "--epochs", "6")
    data.y[data.test_mask] = torch.randint(3, (int(data.test_mask.sum()),))
    monkeypatch.setattr(citation, "load", lambda root, name: data)
    after, _ = run(capsys, *how, "--epochs", "6")
    assert [row["val"] for row in after] == [row["val"] for row in before]
    assert all(row["test"] < 60 < other["test"] for row, other in zip(after, before, strict=True))


def test_test_nodes_are_read_once_per_model_when_it_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read, seen = small_graph(), citation.accuracy, []

    def accuracy(model: torch.nn.Module, given: Data, mask: torch.Tensor) -> float:
        seen.append("test" if torch.equal(mask, data.test_mask) else "val")
        assert "test_mask" not in given
        return read(model, given, mask)

    monkeypatch.setattr(citation, "accuracy", accuracy)
    run(capsys, "--epochs", "5")
    each = " ".join(seen).replace("val", "").split()
    assert len(each) == 1 + 1 + 2  # float, float trained on, prepared and integer
    assert seen[-3:] == ["val", "test", "test"]


def test_without_data_it_says_what_to_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DQCONVERT_DATA", raising=False)
    with pytest.raises(SystemExit) as stopped:
        citation.main([])
    assert stopped.value.code == 2
    assert "--root DIR, or set DQCONVERT_DATA" in capsys.readouterr().err


def test_a_preset_that_is_none_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        citation.main(["--root", "x", "--preset", "int8-gat"])
    assert "did you mean 'int8-qat'" in capsys.readouterr().err

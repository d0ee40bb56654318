"""The citation study: a short run on real data where there is any, and its messages where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import citation

HAS_CORA = (Path(os.environ.get("DQCONVERT_DATA", "")) / "Planetoid" / "Cora").is_dir()


@pytest.mark.skipif(not HAS_CORA, reason="DQCONVERT_DATA does not name a folder with Planetoid/Cora")
@pytest.mark.timeout(300)
def test_cora_with_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dataset", "Cora", "--seeds", "1", "--float-epochs", "40", "--epochs", "5", "--json"]
    citation.main(argv)
    printed = json.loads(capsys.readouterr().out)
    assert [run["preset"] for run in printed["runs"]] == ["float", "int8-dq"]
    assert all(run["test"] > 70 for run in printed["runs"])
    assert [run["integer"] is None for run in printed["runs"]] == [True, False]
    assert printed["summary"][1]["integer_gap"] <= 0.2
    assert [row["test_mean"] for row in printed["summary"]] == [run["test"] for run in printed["runs"]]


@pytest.mark.skipif(not HAS_CORA, reason="DQCONVERT_DATA does not name a folder with Planetoid/Cora")
@pytest.mark.timeout(300)
def test_distilled_with_searched_ranges_four_bits_learn(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(citation.__file__).with_name("int4-searched.toml"))
    argv = ["--dataset", "Cora", "--seeds", "1", "--float-epochs", "40", "--epochs", "8", "--distil", "--json"]
    citation.main([*argv, "--preset", config])
    float_run, run = json.loads(capsys.readouterr().out)["runs"]
    assert run["preset"] == "int4-searched"
    assert run["test"] > float_run["test"] - 4
    assert abs(run["test"] - run["integer"]) <= 0.2


def test_summary_is_the_mean_over_seeds() -> None:
    found = [("float", 0, 80.0), ("int8-dq", 0, 79.0), ("float", 1, 82.0), ("int8-dq", 1, 79.0)]
    runs = [citation.Run("Cora", "GCN", preset, seed, val=test - 1, test=test) for preset, seed, test in found]
    rows = citation.summary(runs)
    assert [(row["preset"], row["seeds"], row["val_mean"], row["test_mean"]) for row in rows] == [
        ("float", 2, 80.0, 81.0),
        ("int8-dq", 2, 78.0, 79.0),
    ]
    assert [row["test_std"] for row in rows] == [pytest.approx(2**0.5), 0.0]


def test_the_gap_to_integers_is_the_largest() -> None:
    runs = [
        citation.Run("Cora", "GCN", "int8-dq", seed, val=79, test=test, integer=integer)
        for seed, (test, integer) in enumerate([(80.0, 80.1), (81.0, 80.7)])
    ]
    (row,) = citation.summary(runs)
    assert row["integer_mean"] == pytest.approx(80.4)
    assert row["integer_gap"] == pytest.approx(0.3)
    assert "integer_gap" not in citation.summary([citation.Run("Cora", "GCN", "float", 0, val=79, test=80)])[0]


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


def test_failed_download_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(citation, "Planetoid", no_network)
    with pytest.raises(SystemExit, match="could not be downloaded or unpacked there: no network"):
        citation.main(["--root", str(tmp_path), "--dataset", "Cora"])

"""``examples/lightning_gin.py``: a training by Lightning's Trainer, and one that goes on."""

import re
import sys

import pytest

pytest.importorskip("lightning.pytorch")
import lightning_gin


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lightning_gin.py", *map(str, arguments)])
    lightning_gin.main()
    prepared, integers = re.search(r"int8-dq: (\S+) %.*\nintegers: (\S+) %", capsys.readouterr().out).groups()
    return float(prepared), float(integers)


@pytest.mark.study
@pytest.mark.filterwarnings("ignore")
def test_it_trains_logs_and_goes_on(tmp_path, monkeypatch, capsys):
    run(monkeypatch, capsys, "--epochs", 1, "--graphs", 48, "--out", tmp_path)
    assert (tmp_path / "last.ckpt").exists()
    assert list((tmp_path / "gin").iterdir())
    run(monkeypatch, capsys, "--epochs", 2, "--graphs", 48, "--out", tmp_path, "--resume")


@pytest.mark.study
def test_it_tells_families_apart_in_integers(tmp_path, monkeypatch, capsys):
    prepared, integers = run(monkeypatch, capsys, "--epochs", 12, "--out", tmp_path)
    assert prepared > 95
    assert abs(prepared - integers) < 1

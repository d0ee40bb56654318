"""The REDDIT-BINARY experiment: the authors' setting, on graphs of two shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

import dqconvert
import reddit_binary
from dqconvert import QSpec, presets
from dqconvert.qconfig import as_qconfig


def graphs(number: int = 40) -> list[Data]:
    """Stars of one hub and of three."""
    found = []
    for index in range(number):
        nodes, hubs = 9 + index % 5, 1 + 2 * (index % 2)
        leaves = torch.arange(nodes)
        edges = torch.stack([leaves, leaves % hubs])
        found.append(
            Data(edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.tensor([index % 2]), num_nodes=nodes)
        )
    return found


def test_degrees_are_standardized_over_all_nodes() -> None:
    x = torch.cat([graph.x for graph in reddit_binary.with_degrees(graphs())])
    assert x.shape[1] == 1
    assert x.mean().item() == pytest.approx(0, abs=1e-6)
    assert x.std().item() == pytest.approx(1)


def test_presets_of_the_paper_are_those_of_its_runs() -> None:
    """The first linear map in float, MLPs without protection, 4 bits protected with 0.1 to 0.2."""
    data = reddit_binary.with_degrees(graphs())
    batch = (data[0].x, data[0].edge_index, torch.zeros(len(data[0].x), dtype=torch.int64))
    for preset, p_max in (("int8-dq", 0.1), ("int4-dq", 0.2)):
        config = reddit_binary.official(preset, dqconvert.presets[preset])
        _, report = dqconvert.prepare(reddit_binary.GIN(hidden=8), config, batch)
        assert config.protect is not None
        assert config.protect.p_max == p_max
        assert not config.protect.covers("feature")
        first = sorted(entry.path[8:] for entry in report.entries if entry.path.startswith("convs.0."))
        second = [f"nn.2.quant.{role}" for role in ("feature", "input", "weight")]
        assert first == [*second, *(f"quant.{role}" for role in ("aggregate", "message", "update"))]
    assert reddit_binary.official("int8-ptq", dqconvert.presets["int8-ptq"]) == dqconvert.presets["int8-ptq"]


def test_what_percentiles_clip_trains_from_new_weights() -> None:
    assert reddit_binary.recipe_of("int4-hubs", 30, None).start == "scratch"
    assert reddit_binary.recipe_of("int4-dq+", 30, None).start == "float"
    hubs = as_qconfig(Path(reddit_binary.__file__).with_name("int4-hubs.toml"))
    spec = QSpec(bits=4, signed="graph", range="percentile", percentile=0.001, grad="clip")
    assert hubs.activation == hubs.message == hubs.aggregate == spec
    assert hubs == replace(presets["int4-dq+"], weight=hubs.weight, activation=spec, message=spec, aggregate=spec)


@pytest.mark.parametrize("bits", [8, 4])
def test_configs_of_relative_ranges_are_the_presets_but_for_the_search(bits: int) -> None:
    found = as_qconfig(Path(reddit_binary.__file__).with_name(f"int{bits}-relative.toml"))
    plus = presets[f"int{bits}-dq+"]
    spec = replace(plus.activation, range="relative")
    assert found == replace(plus, activation=spec, message=spec, aggregate=spec)


def test_folds_are_stratified_and_apart() -> None:
    pytest.importorskip("sklearn")
    data = reddit_binary.with_degrees(graphs())
    tested: list[int] = []
    for fold in range(10):
        split = reddit_binary.split_of(data, fold)
        parts = [[id(graph) for graph in part] for part in (split.train, split.validation, split.test)]
        assert len(set().union(*parts)) == len(data) == sum(map(len, parts))
        assert sorted(int(graph.y) for graph in split.test) == [0, 0, 1, 1]
        tested += parts[2]
    assert len(set(tested)) == len(data)
    assert [id(g) for g in reddit_binary.split_of(data, 3).validation] == [
        id(g) for g in reddit_binary.split_of(data, 2).test
    ]


@pytest.mark.study
def test_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(reddit_binary, "load", lambda root: reddit_binary.with_degrees(graphs()))
    argv = ["--root", "x", "--fold", "0", "--epochs", "2", "--preset", "int8-dq", "--preset", "int8-ptq", "--json"]
    reddit_binary.main(argv)
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [row["preset"] for row in runs] == ["float", "float + 2 epochs", "int8-dq", "int8-ptq"]
    assert all(abs(row["test"] - row["integer"]) <= 25 for row in runs[2:])

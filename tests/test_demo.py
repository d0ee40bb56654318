"""The demo on small graphs: the generator, the job, its determinism."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch_geometric.nn import GCN
from torch_geometric.utils import contains_self_loops, degree, is_undirected

from dqconvert.demo import DemoResult, GraphSpec, make_graph, run, save_state, show
from dqconvert.errors import CheckpointError, ConfigError

SMALL = GraphSpec(num_nodes=300, num_classes=3, num_words=30, num_train=10, num_val=20)


class TestMakeGraph:
    def test_degrees_are_heavy_tailed(self) -> None:
        data = make_graph(seed=0)
        in_degree = degree(data.edge_index[1], data.num_nodes)
        # Of a graph with independent edges and this mean, no node would have three times the mean.
        assert in_degree.max() > 15 * in_degree.mean()
        assert in_degree.median() < 0.8 * in_degree.mean()
        top = in_degree.sort(descending=True).values[: data.num_nodes // 10]
        assert top.sum() > 0.3 * in_degree.sum()

    def test_edges_are_undirected_without_loops_or_repeats(self) -> None:
        data = make_graph(seed=0)
        assert is_undirected(data.edge_index)
        assert not contains_self_loops(data.edge_index)
        assert data.edge_index.unique(dim=1).size(1) == data.num_edges

    def test_edges_follow_the_classes(self) -> None:
        data = make_graph(seed=0)
        source, target = data.y[data.edge_index]
        expected = 0.75 + 0.25 / 6  # homophily, and what chance adds; repeats within a class count once
        assert float((source == target).float().mean()) == pytest.approx(expected, abs=0.05)

    def test_features_are_word_frequencies(self) -> None:
        x = make_graph(seed=0).x
        assert torch.allclose(x.sum(dim=1), torch.ones(x.size(0)))
        assert float((x > 0).float().mean()) < 0.15

    def test_every_node_is_in_one_split(self) -> None:
        data = make_graph(seed=0, spec=SMALL)
        assert ((data.train_mask.int() + data.val_mask.int() + data.test_mask.int()) == 1).all()
        assert [int(mask.sum()) for mask in (data.train_mask, data.val_mask)] == [30, 60]
        assert data.y[data.train_mask].bincount().tolist() == [10, 10, 10]

    def test_seed_decides_and_global_state_does_not(self) -> None:
        before = torch.get_rng_state()
        first, again, other = make_graph(0, SMALL), make_graph(0, SMALL), make_graph(1, SMALL)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first.edge_index, again.edge_index)
        assert torch.equal(first.x, again.x)
        assert not torch.equal(first.x, other.x)


def small_run(**changes: object) -> DemoResult:
    return run(**{"epochs": 6, "spec": SMALL, "presets": ("int8-dq",), "timing_rounds": 1, **changes})  # type: ignore[arg-type]


class TestRun:
    def test_equal_seeds_give_equal_accuracies(self) -> None:
        def accuracies(seed: int) -> list[float]:
            result = small_run(seed=seed)
            return [result.float_accuracy, result.rows[0].accuracy]

        assert accuracies(3) == accuracies(3)
        assert accuracies(3) != accuracies(4)

    def test_a_preset_does_not_depend_on_its_neighbors(self) -> None:
        alone = small_run(presets=("int4-dq",))
        after = small_run(presets=("int8-dq", "int4-dq"))
        assert alone.rows[0].accuracy == after.rows[1].accuracy

    def test_global_random_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        small_run(epochs=1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_quantized_model_learns(self) -> None:
        result = small_run(epochs=40)
        assert result.float_accuracy > 70
        assert result.rows[0].accuracy == pytest.approx(result.float_accuracy, abs=8)

    def test_checkpoint_loads_into_an_ordinary_model(self, tmp_path: Path) -> None:
        result = small_run(epochs=1, out=tmp_path / "new" / "folder")
        assert result.checkpoint == str(tmp_path / "new" / "folder" / "float.pt")
        state = torch.load(result.checkpoint, weights_only=True)
        GCN(30, 32, num_layers=2, out_channels=3).load_state_dict(state)
        assert [path.name for path in Path(result.checkpoint).parent.iterdir()] == ["float.pt"]

    def test_unknown_preset(self) -> None:
        with pytest.raises(ConfigError, match="int8-dq"):
            small_run(epochs=1, presets=("int8-qd",))

    def test_show_prints_what_was_measured(self) -> None:
        result = small_run(epochs=1)
        console = Console(width=120)
        with console.capture() as capture:
            show(result, console)
        text = capture.get()
        assert "convs.0.quant.message" in text
        assert f"{result.rows[0].accuracy:.1f}" in text
        with console.capture() as capture:
            show(result, console, report=False)
        assert "convs.0.quant.message" not in capture.get()


def test_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "float.pt"
    save_state({"weight": torch.ones(2)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # as if the disk were full behind 100 bytes
    try:
        with pytest.raises(CheckpointError, match=r"float\.pt: cannot be written: File too large"):
            save_state({"weight": torch.zeros(2)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(path, weights_only=True)["weight"].tolist() == [1, 1]
    assert [found.name for found in tmp_path.iterdir()] == ["float.pt"]

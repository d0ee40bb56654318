"""``dqconvert bench infer``: what is compared, on graphs that are known and on new ones, its results, its command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from typer.testing import CliRunner

from command_line import dqconvert_command
from dqconvert.bench import memory
from dqconvert.bench.case import Case, Subject, build
from dqconvert.bench.costs import file_bytes, why_not_measurable
from dqconvert.bench.engines import (
    CSR,
    EDGE_INDEX,
    Engine,
    Forward,
    engines_of,
    forward_of,
    mirrored,
    why_not,
)
from dqconvert.bench.infer import InferResult, InferSettings, run
from dqconvert.bench.operations import operations
from dqconvert.bench.tables import show_infer
from dqconvert.bench.workloads import INFERENCE
from dqconvert.cli import app
from dqconvert.errors import CommandError
from dqconvert.lower.remember import Remember

TINY = {"V1": 0.005, "V2": 0.005, "V3": 0.005, "V4": 0.002, "V5": 0.02, "V6": 0.05}
INT8 = Engine(name="int8-dq", preset="int8-dq")


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DQCONVERT_DATA", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def tiny(name: str) -> Case:
    return Case(workload=name, scale=TINY[name])


@pytest.fixture(scope="module")
def gcn() -> Subject:
    return build(tiny("V1"))


class TestWorkloads:
    def test_sizes_are_the_stated_ones(self) -> None:
        sizes = {name: workload.size for name, workload in INFERENCE.items()}
        for name in ("V1", "V2", "V3"):
            found = sizes[name]
            assert (found.nodes, found.edges) == (100_000, 5_000_000)
            assert (found.features, found.hidden, found.classes) == (128, 128, 40)
        assert (sizes["V4"].nodes, sizes["V4"].edges) == (100_000, 1_000_000)
        assert (sizes["V6"].nodes, sizes["V6"].edges, sizes["V6"].hidden) == (2_708, 10_556, 16)

    @pytest.mark.parametrize(
        ("name", "layer"), [("V1", GCNConv), ("V2", GINConv), ("V3", SAGEConv), ("V4", GATConv), ("V6", GCNConv)]
    )
    def test_models_are_the_stated_ones(self, name: str, layer: type[nn.Module]) -> None:
        model: Any = build(tiny(name)).model
        assert isinstance(model.conv1, layer)
        assert isinstance(model.conv2, layer)
        if name == "V4":
            assert (model.conv1.heads, model.conv1.out_channels) == (4, 32)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


class TestEngines:
    @pytest.mark.sample(9)
    @pytest.mark.parametrize("name", TINY)
    def test_they_compute_the_same_on_known_graphs_and_on_new_ones(self, name: str) -> None:
        subject = build(tiny(name))
        expected = forward_of(EDGE_INDEX, subject).warm()
        for engine in (EDGE_INDEX, CSR, Engine(name="bf16", bfloat16=True), INT8):
            forward = forward_of(engine, subject)
            warm = forward.warm()
            # Batch norms of the model to be converted have seen data: its values are others.
            if engine is not INT8:
                assert difference(warm, expected) < (0.05 if engine.bfloat16 else 1e-5)
            tolerance = 0.05 if engine.bfloat16 else 1e-5
            for number in (1, 2):  # on the mirrored graph, and on the first one again
                forward.renew()
                found = forward.cold()
                assert difference(found.flip(0) if number == 1 else found, warm) < tolerance
            assert difference(forward.warm(), warm) < tolerance

    @pytest.mark.parametrize("engine", [EDGE_INDEX, CSR, INT8], ids=str)
    def test_a_new_graph_is_new(self, gcn: Subject, engine: Engine) -> None:
        forward = forward_of(engine, gcn)
        seen = []
        for _ in range(3):
            forward.renew()
            seen.append(forward.new.arguments["edge_index"])
        for before, after in pairwise(seen):
            assert not torch.equal(before, after)
        assert len({edge_index.data_ptr() for edge_index in seen}) == 3

    def test_nothing_is_remembered_of_it(self, gcn: Subject) -> None:
        forward = forward_of(INT8, gcn)
        (remember,) = (part for part in forward.module.modules() if isinstance(part, Remember))
        computed = []
        remember.inner.register_forward_hook(lambda *_: computed.append(True))
        for _ in range(2):
            forward.warm()
        assert len(computed) == 1
        for number in range(2, 5):
            forward.renew()
            forward.cold()
            assert len(computed) == number

    def test_norms_are_kept_where_the_layer_can(self, gcn: Subject) -> None:
        forward = forward_of(CSR, gcn)
        convs = [part for part in forward.module.modules() if isinstance(part, GCNConv)]
        forward.warm()
        kept = [conv._cached_edge_index for conv in convs]
        assert all(isinstance(norm, tuple) for norm in kept)
        forward.warm()
        assert all(conv._cached_edge_index is norm for conv, norm in zip(convs, kept, strict=True))
        forward.renew()
        forward.cold()
        assert [conv._cached_edge_index for conv in convs] == [None, None]
        assert not any(conv.cached for conv in gcn.model.modules() if isinstance(conv, GCNConv))

    def test_the_graph_of_a_matrix_is_built_within_the_cold_forward(
        self, gcn: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dqconvert.bench import engines

        built: list[int] = []
        real = engines.with_csr
        monkeypatch.setattr(engines, "with_csr", lambda inputs: built.append(1) or real(inputs))
        forward = forward_of(CSR, gcn)
        forward.warm()
        assert len(built) == 1
        forward.renew()
        assert len(built) == 1
        forward.cold()
        assert len(built) == 2

    def test_mirroring_keeps_what_a_graph_is(self) -> None:
        inputs = build(tiny("V5")).inputs
        found = mirrored(inputs).arguments
        assert bool((found["batch"].diff() >= 0).all())
        sender, receiver = found["edge_index"]
        assert bool(((sender * 10_000 + receiver).diff() > 0).all())
        assert torch.equal(found["batch"][sender], found["batch"][receiver])
        degree = inputs.arguments["edge_index"][1].bincount(minlength=found["x"].size(0))
        assert torch.equal(receiver.bincount(minlength=found["x"].size(0)).flip(0), degree)

    def test_an_argument_of_which_nothing_is_known_is_an_error(self, gcn: Subject) -> None:
        inputs = gcn.inputs
        other = type(inputs)(inputs.signature, {**inputs.arguments, "z": torch.ones(3)}, inputs.given | {"z"})
        with pytest.raises(CommandError, match="'z'"):
            mirrored(other)

    def test_what_does_not_work_says_why(self, gcn: Subject) -> None:
        reason = why_not(Engine(name="bf16, CSR", csr=True, bfloat16=True), gcn)
        assert reason is not None
        assert "Error" in reason
        assert why_not(INT8, gcn) is None

    def test_the_users_model_stays_as_it_is(self, gcn: Subject) -> None:
        before = {name: value.clone() for name, value in gcn.model.state_dict().items()}
        for engine in engines_of(["int8-dq"]):
            if why_not(engine, gcn) is None:
                forward_of(engine, gcn).warm()
        assert all(torch.equal(value, before[name]) for name, value in gcn.model.state_dict().items())
        assert all(value.dtype == torch.float32 for value in gcn.model.parameters())

    def test_compiled_forms_come_when_asked_for(self) -> None:
        assert not any(engine.compiled for engine in engines_of([]))
        assert sum(engine.compiled for engine in engines_of([], compiled=True)) == 2

    def test_int4_takes_less_than_int8_in_a_file(self) -> None:
        subject = build(Case(workload="V6", scale=0.05))
        sizes = []
        for bits in (8, 4):
            preset = f"int{bits}-dq"
            sizes.append(file_bytes(forward_of(Engine(name=preset, preset=preset), subject).module))
        whole = file_bytes(subject.model)
        assert whole > 4 * 1433 * 16
        assert sizes[1] < sizes[0] < whole


class TestOperations:
    def test_bytes_that_must_move(self, gcn: Subject) -> None:
        forward = forward_of(INT8, gcn)
        forward.warm()
        found = {o.name: o for o in operations(self.module(forward), lambda: forward.known, 2.0**30, known=True)}
        assert found["remembered"].moved_mib == 0
        assert found["getitem"].moved_mib == 0
        nodes, edges = 500, 25_000
        # x in float32, weights in int16, what is made in codes; codes are taken again by the second layer.
        weights = 128 * 128 * 2 + 128 * 48 * 2
        least = nodes * 128 * 4 + nodes * 128 + weights + nodes * 128 + nodes * 40
        assert least <= found["integer_linear"].moved_mib * 2**20 < least + 4_000
        assert found["integer_linear"].gathered_mib == 0
        assert found["integer_propagate"].gathered_mib * 2**20 == (edges + nodes) * (128 + 40)
        for operation in found.values():
            assert operation.floor_ms == pytest.approx(operation.moved_mib * 1e3 / 1024)
        assert sum(operation.share for operation in found.values()) == pytest.approx(1)

    def test_of_a_new_graph_the_order_of_edges_is_counted(self, gcn: Subject) -> None:
        forward = forward_of(INT8, gcn)
        forward.warm()
        counted = operations(self.module(forward), lambda: forward.known, 1e9, known=False, repeats=1)
        names = [operation.name for operation in counted]
        assert "remembered" not in names
        assert {"gcn_order", "gcn_codes", "integer_propagate"} <= set(names)
        assert [o.ms for o in counted] == sorted((o.ms for o in counted), reverse=True)

    @staticmethod
    def module(forward: Forward) -> Any:
        return forward.module


@pytest.fixture(scope="module")
def result() -> InferResult:
    quick = InferSettings(rounds=2, seconds=0, memory=False)
    return run([tiny("V1"), tiny("V6")], engines_of(["int8-dq", "int4-dq"]), quick)


SPEED = {
    "rounds", "median_ms", "min_ms", "over_edge_index", "over_csr", "min_over_edge_index", "min_over_csr",
}  # fmt: skip
OPERATION = {"name", "calls", "ms", "share", "moved_mib", "floor_ms", "gathered_mib"}


class TestResult:
    def test_keys_are_stable(self, result: InferResult) -> None:
        plain = json.loads(json.dumps(result.to_dict()))
        assert set(plain) == {"environment", "settings", "bandwidth", "no_memory", "cases", "seconds"}
        assert set(plain["settings"]) == {"rounds", "seconds", "threads", "cold", "memory", "phases", "seed"}
        for case in plain["cases"]:
            assert set(case) == {
                "name", "title", "data", "nodes", "edges", "features", "parameters", "left_out", "engines",
            }  # fmt: skip
            assert list(case["left_out"]) == ["bf16, CSR"]
            for row in case["engines"]:
                assert set(row) == {
                    "name", "preset", "csr", "bfloat16", "compiled", "warm", "cold", "nodes_per_second", "build_s",
                    "file_bytes", "peak_warm_mib", "peak_cold_mib", "phases", "phases_cold",
                }  # fmt: skip
                assert set(row["warm"]) == set(row["cold"]) == SPEED
                for counted in (row["phases"], row["phases_cold"]):
                    assert (counted is None) == (row["preset"] is None)
                    assert all(set(operation) == OPERATION for operation in counted or ())

    def test_numbers_agree(self, result: InferResult) -> None:
        for case in result.cases:
            assert [row.engine.name for row in case.rows] == [
                "fp32, edge_index", "fp32, CSR", "bf16, edge_index", "int8-dq", "int4-dq",
            ]  # fmt: skip
            base = case.rows[0]
            for row in case.rows:
                assert row.cold is not None
                assert base.cold is not None
                for speed, other in ((row.warm, base.warm), (row.cold, base.cold)):
                    assert speed.rounds == 2
                    assert 0 < speed.min_ms <= speed.median_ms
                    assert speed.over_edge_index == pytest.approx(other.median_ms / speed.median_ms)
                    assert speed.min_over_edge_index == pytest.approx(other.min_ms / speed.min_ms)
                assert row.nodes_per_second == pytest.approx(case.subject["nodes"] / row.warm.median_ms * 1e3)

    def test_the_table_shows_them(self, result: InferResult) -> None:
        console = Console(width=200)
        with console.capture() as capture:
            show_infer(result, console)
        text = capture.get()
        row = result.cases[0].rows[3]
        assert f"{row.warm.over_edge_index:.2f}" in text
        assert "V1: GCN 128-128-40 (generated: 500 nodes, 25,000 edges, 128 features)" in text
        assert text.count("integer_propagate") == 4
        assert "No bf16, CSR: " in text

    def test_the_global_state_is_left_alone(self) -> None:
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        quick = InferSettings(rounds=1, seconds=0, threads=threads + 1, cold=False, memory=False, phases=False)
        found = run([tiny("V1")], [EDGE_INDEX], quick)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads
        (row,) = found.cases[0].rows
        assert (row.cold, row.warm.over_csr, row.phases, row.peak_warm_mib) == (None, None, None, None)

    def test_what_is_short_is_repeated(self) -> None:
        quick = InferSettings(rounds=2, seconds=60, cold=False, memory=False, phases=False)
        assert run([tiny("V6")], [EDGE_INDEX], quick).cases[0].rows[0].warm.rounds == 40


@pytest.mark.skipif(why_not_measurable() is not None, reason="needs Linux's /proc")
def test_a_warm_forward_follows_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Forward] = []
    warm = Forward.warm
    monkeypatch.setattr(Forward, "warm", lambda self: taken.append(self) or warm(self))
    quick = InferSettings(rounds=3, seconds=0, memory=False, phases=False, cold=False)
    run([tiny("V6")], [EDGE_INDEX, CSR, INT8], quick)
    taken = [forward for forward in taken if taken.count(forward) > 2]  # others run once, on a part of the data
    assert len(set(taken)) == 3
    assert taken[::2] == taken[1::2], "one that is not timed, one that is"
    assert len(taken) == 3 * 2 * (1 + quick.rounds)


@pytest.mark.study
def test_memory_of_a_forward_in_a_process_of_its_own() -> None:
    warm, cold = memory.measure_forward(Case(workload="V1", scale=0.01), EDGE_INDEX, threads=1)
    messages = 50_000 * 128 * 4 / 2**20  # of the first layer, in float32
    assert warm.rise > messages
    assert cold.rise > messages


QUICK = ["bench", "infer", "--workload", "v1", "--scale", "0.005", "--rounds", "1", "--no-memory", "--no-bf16"]


class TestCommand:
    def test_json(self) -> None:
        done = CliRunner().invoke(app, [*QUICK, "--json", "--no-phases", "--no-cold", "--preset", "int8-ptq"])
        assert (done.exit_code, done.stderr) == (0, "")
        rows = json.loads(done.stdout)["cases"][0]["engines"]
        assert [row["preset"] for row in rows] == [None, None, "int8-ptq"]

    @pytest.mark.parametrize(
        ("args", "complaint"),
        [
            (["--workload", "W1"], "V1, V2, V3, V4, V5, V6"),
            (["--preset", "int9-dq"], "int8-dq"),
            (["--rounds", "0"], "--rounds"),
            (["--scale", "0"], "--scale"),
        ],
    )
    def test_wrong_usage_exits_2(self, args: list[str], complaint: str) -> None:
        done = CliRunner().invoke(app, ["bench", "infer", *args], env={"COLUMNS": "200"})
        assert (done.exit_code, done.stdout) == (2, "")
        assert complaint in done.stderr

    def test_a_graph_that_is_too_small_is_an_error_of_one_line(self) -> None:
        done = CliRunner().invoke(app, ["bench", "infer", "--workload", "V6", "--scale", "0.001"])
        assert (done.exit_code, done.stdout) == (2, "")
        assert "larger --scale" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_chart(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        chart = tmp_path / "chart.svg"
        done = CliRunner().invoke(app, [*QUICK, "--no-phases", "--chart", str(chart)])
        assert (done.exit_code, done.stderr) == (0, "")
        assert str(chart) in done.stdout.replace("\n", "")
        assert "<svg" in chart.read_text()

    def test_help_imports_no_torch(self) -> None:
        done = dqconvert_command("bench", "infer", "--help")
        assert done.returncode == 0
        assert "Example: dqconvert bench infer" in done.stdout

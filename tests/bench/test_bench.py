"""The benchmark: its workloads, what it measures with, its results, its commands."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch_geometric.nn import GCN
from torch_geometric.utils import contains_self_loops, is_undirected
from typer.testing import CliRunner

from command_line import dqconvert_command
from dqconvert.bench import costs, memory, sweep
from dqconvert.bench.case import Case, Subject, build
from dqconvert.bench.environment import environment, spinning
from dqconvert.bench.graphs import graph_sizes, zipf_batch, zipf_edges
from dqconvert.bench.phases import PHASE_OF, PHASES, phase_of, phases
from dqconvert.bench.prepare import run as run_prepare
from dqconvert.bench.tables import show_prepare, show_train
from dqconvert.bench.timing import interleave
from dqconvert.bench.train import TrainResult, TrainSettings, run
from dqconvert.bench.variants import FLOAT, Step, step_of, variants_of, why_not_csr
from dqconvert.bench.workloads import WORKLOADS
from dqconvert.cli import app
from dqconvert.cli.bench import train
from dqconvert.errors import CommandError
from dqconvert.qconfig import QSpec
from dqconvert.quant import FakeQuantize, fused

TINY = {"W1": 0.02, "W2": 0.002, "W3": 0.002, "W4": 0.002, "W5": 0.05}


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DQCONVERT_DATA", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def tiny(name: str) -> Case:
    return Case(workload=name, scale=TINY[name])


def arguments(subject: Subject) -> dict[str, Any]:
    return subject.inputs.arguments


def share_of_top(degree: Tensor, share: float = 0.01) -> float:
    """The share of all edges that the busiest nodes have."""
    return float(degree.sort(descending=True).values[: max(1, int(share * degree.numel()))].sum() / degree.sum())


class TestWorkloads:
    @pytest.mark.parametrize(
        ("name", "nodes", "edges", "features"),
        [
            ("W1", 68_000, 157_000, 1),
            ("W2", 100_000, 1_000_000, 128),
            ("W5", 2_708, 10_556, 1_433),
        ],
    )
    def test_sizes_are_the_stated_ones(self, name: str, nodes: int, edges: int, features: int) -> None:
        subject = build(Case(workload=name))
        assert arguments(subject)["x"].shape == (nodes, features)
        edge_index = subject.edge_index
        assert edge_index is not None
        assert edge_index.shape == (2, edges)
        assert 0 <= int(edge_index.min()) <= int(edge_index.max()) < nodes
        assert subject.to_dict()["data"] == "generated"

    def test_degrees_are_heavy_tailed_on_both_ends(self) -> None:
        edge_index = zipf_edges(20_000, 200_000)
        assert edge_index.unique(dim=1).size(1) == 200_000
        assert not contains_self_loops(edge_index)
        for end in edge_index:
            degree = end.bincount(minlength=20_000)
            # Of 200,000 edges drawn evenly, the busiest 1 % of the nodes would have 2 %, and no node 50 edges.
            assert share_of_top(degree) > 0.2
            assert degree.max() > 100 * degree.float().mean()
        assert (edge_index[0].diff() >= 0).all()

    def test_a_batch_has_hubs_in_its_graphs_and_no_edge_between_them(self) -> None:
        sizes = graph_sizes(128, 68_000)
        graph = torch.arange(128).repeat_interleave(sizes)
        edge_index = zipf_batch(sizes, 157_000)
        assert (graph[edge_index[0]] == graph[edge_index[1]]).all()
        assert is_undirected(edge_index)
        degree = edge_index[1].bincount(minlength=68_000)
        assert (degree == 0).float().mean() < 0.05
        assert share_of_top(degree) > 0.15

    def test_equal_cases_are_built_equally(self) -> None:
        before = torch.get_rng_state()
        first, second = build(tiny("W1")), build(tiny("W1"))
        assert torch.equal(torch.get_rng_state(), before)
        for name, value in arguments(first).items():
            assert torch.equal(value, arguments(second)[name])
        for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_models_have_the_stated_layers(self) -> None:
        counts = {name: build(tiny(name)).to_dict()["parameters"] for name in WORKLOADS}
        gin = (64 + 64) + 4 * (64 * 64 + 64) + 5 * (64 * 64 + 64) + 5 * (2 * 64 + 1) + (64 * 64 + 64) + (2 * 64 + 2)
        assert counts == {
            "W1": gin,
            "W2": 128 * 128 + 128 + 128 * 40 + 40,
            "W3": 2 * 128 * 128 + 128 + 2 * 128 * 40 + 40,
            "W4": 128 * 128 + 3 * 128 + 128 * 160 + 2 * 160 + 40,
            "W5": 1433 * 16 + 16 + 16 * 7 + 7,
        }

    def test_edges_and_features_replace_the_workloads(self) -> None:
        subject = build(Case(workload="W4", scale=0.01, edges=3_000, features=64))
        assert subject.edge_index is not None
        assert subject.edge_index.size(1) == 3_000
        assert arguments(subject)["x"].shape == (1_000, 64)

    @pytest.mark.sample(9)
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_traced_on_a_part_it_trains_on_the_whole(self, name: str) -> None:
        subject = build(tiny(name))
        assert subject.example["edge_index"].size(1) <= 1_000
        step = step_of(variants_of(["int8-dq"])[0], subject)
        losses = [float(step()) for _ in range(3)]
        assert all(torch.isfinite(torch.tensor(losses)))
        assert len(set(losses)) == 3

    def test_a_root_without_the_data_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "Planetoid").write_text("in the way")
        with pytest.raises(CommandError, match="the dataset is not there"):
            build(Case(workload="W5", root=str(tmp_path)))

    def test_too_few_nodes_are_an_error(self) -> None:
        with pytest.raises(CommandError, match="larger --scale"):
            zipf_edges(10, 90)


class TwoEnds(nn.Module):
    """Takes connectivity as indices only."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(x).index_add(0, edge_index[1], x[edge_index[0]])


class TestCSR:
    @pytest.mark.parametrize("name", ["W1", "W2", "W3", "W5"])
    def test_layers_that_take_it(self, name: str) -> None:
        assert why_not_csr(build(tiny(name))) is None

    def test_a_layer_that_does_not_says_why(self, tmp_path: Path) -> None:
        file = str(tmp_path / "example.pt")
        torch.save((torch.ones(3, 4), torch.tensor([[0, 1], [1, 2]])), file)
        subject = build(Case(factory="test_bench:TwoEnds", example=file))
        reason = why_not_csr(subject)
        assert reason is not None
        assert "Error" in reason
        result = run([Case(factory="test_bench:TwoEnds", example=file)], [], TrainSettings(steps=1, memory=False))
        assert result.cases[0].no_csr == reason
        assert result.cases[0].rows[0].ratio_to_csr is None

    def test_parallel_edges_are_found_out(self, tmp_path: Path) -> None:
        file = str(tmp_path / "example.pt")
        torch.save((torch.eye(4), torch.tensor([[0, 0, 1], [1, 1, 2]])), file)
        kwargs = '{"in_channels": 4, "hidden_channels": 4, "num_layers": 1, "aggr": "sum"}'
        case = Case(factory="torch_geometric.nn:GraphSAGE", kwargs=kwargs, example=file)
        reason = why_not_csr(build(case))
        assert reason is not None
        assert "parallel edges" in reason


class TestTiming:
    def test_order_alternates_and_warmup_is_not_timed(self) -> None:
        taken: list[str] = []
        steps = {name: lambda name=name: taken.append(name) for name in "ABC"}
        times = interleave(steps, rounds=3, warmup=2)
        assert "".join(taken) == "AABBCC" + "ABC" + "CBA" + "ABC"
        assert [len(found.seconds) for found in times.values()] == [3, 3, 3]

    def test_median_and_minimum_are_of_the_step(self) -> None:
        pauses = iter([0.2, 0.01, 0.05, 0.03])
        found = interleave({"A": lambda: time.sleep(next(pauses))}, rounds=3, warmup=1)["A"]
        assert [seconds >= pause for seconds, pause in zip(found.seconds, (0.01, 0.05, 0.03), strict=True)] == [
            True
        ] * 3
        assert found.minimum == min(found.seconds)
        assert found.median == sorted(found.seconds)[1]

    def test_a_step_trains(self) -> None:
        subject = build(tiny("W3"))
        before = {name: value.clone() for name, value in subject.model.state_dict().items()}
        step = step_of(FLOAT, subject)
        copied = step.copy()
        first = float(step())
        assert float(step()) != first
        assert all(parameter.grad is not None for parameter in step.module.parameters())
        assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
        assert all(torch.equal(value, before[name]) for name, value in copied.module.state_dict().items())


needs_memory = pytest.mark.skipif(costs.why_not_measurable() is not None, reason="needs Linux's /proc")


class TestMemory:
    @needs_memory
    @pytest.mark.parametrize("mib", [32, 256])
    def test_what_a_step_allocates_is_measured(self, mib: int) -> None:
        # Once: the C library may put what a second step allocates beside what the first one freed.
        found = costs.peak_of(lambda: torch.ones(mib << 18), repeats=1)
        assert mib - 1 <= found.rise < mib + 16
        assert found.before > 50

    @needs_memory
    def test_an_earlier_peak_does_not_count(self) -> None:
        torch.ones(512 << 18)
        assert costs.peak_of(lambda: None).rise < 16

    @pytest.mark.study
    @needs_memory
    def test_a_variant_in_a_process_of_its_own(self) -> None:
        case = Case(workload="W2", scale=0.05)
        found = memory.measure(case, FLOAT, threads=2)
        # The messages of the first layer alone, forward and backward, in float32.
        assert found.rise > 50_000 * 128 * 4 / 2**20
        assert found.before > 100

    @pytest.mark.study
    def test_an_error_of_that_process_is_ours(self) -> None:
        with pytest.raises(CommandError, match=r"'float, edge_index'.*there is no workload 'W9'"):
            memory.measure(Case(workload="W9"), FLOAT, threads=1)

    def test_where_it_cannot_be_measured_the_result_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "_RESET", Path("/proc/self/no_such_file"))
        result = run([tiny("W2")], [], TrainSettings(steps=1, warmup=1, phases=False))
        assert result.no_memory is not None
        assert all(row.peak_mib is None for row in result.cases[0].rows)


class TestPhases:
    def test_table_has_no_other_phases(self) -> None:
        assert set(PHASE_OF.values()) <= set(PHASES)

    @pytest.mark.parametrize(
        ("name", "phase"),
        [
            ("dqconvert::percentile_pair", "observe"),
            ("dqconvert::observe_fake_quantize_clip", "quantize"),
            ("GeneratedBackwardFor_dqconvert_propagate_sum_defaultBackward", "message passing"),
            ("autograd::engine::evaluate_function: GeneratedBackwardFor_dqconvert_fake_quantize_ste", "quantize"),
            ("autograd::engine::evaluate_function: AddmmBackward0", "linear"),
            ("ScatterAddBackward0", "message passing"),
            ("dqconvert::quantize_chain", "quantize"),
            ("dqconvert::quantize_chain_grad", "quantize"),
            ("dqconvert::quantize_linear", "linear"),
            ("dqconvert::quantize_linear_grad", "linear"),
            ("GeneratedBackwardFor_dqconvert_quantize_linear_defaultBackward", "linear"),
            ("autograd::engine::evaluate_function: GeneratedBackwardFor_dqconvert_quantize_chain_default", "quantize"),
            ("dqconvert::quantize_parts_grad", "quantize"),
            ("dqconvert::quantize_batch_norm", "rest"),
            ("dqconvert::batch_norm_grad", "rest"),
            ("dqconvert::propagate", "message passing"),
            ("dqconvert::propagate_grad", "message passing"),
            ("dqconvert::edge_order", "message passing"),
            ("dqconvert::dropout_grad", "rest"),
            ("aten::relu", None),
            ("aten::index_add_", "message passing"),
            ("IndexSelectBackward0", "message passing"),
            ("aten::_sparse_mm_reduce_impl", "message passing"),
            ("SparseAddmmBackward0", "message passing"),
            ("aten::bmm", "linear"),
            ("mkldnn::_linear_pointwise", "linear"),
            ("aten::embedding", None),
        ],
    )  # fmt: skip
    def test_operators_by_name(self, name: str, phase: str | None) -> None:
        assert phase_of(name) == phase

    def test_every_operator_of_ours_has_a_phase(self) -> None:
        import dqconvert.kernels  # registers them

        names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("dqconvert::")}
        names = {name for name in names if not name.startswith("dqconvert::test_")}  # of other tests
        assert "dqconvert::fake_quantize_clip" in names, dqconvert.kernels
        linear = (
            "integer_linear",
            "integer_propagate",
            "edge_products",
            "add_heads",
            "attention_sums",
            "receiver_order",
        )
        integer = ("_codes", "_colors", "_pairs", "_groups", "quantize_sum", *linear)  # no part of a training step
        assert {name for name in names if phase_of(name) is None and not name.endswith(integer)} == set()

    @pytest.mark.parametrize("source", ["linear", "batch norm", "nothing"])
    def test_what_makes_the_rows_of_a_chain_is_its_phase(self, source: str) -> None:
        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.quantizer, self.weight = FakeQuantize(QSpec(), name="one", signed=True), rows(64, 64)
                self.norm, self.steps = nn.BatchNorm1d(64), 0

            def forward(self) -> Tensor:
                self.steps += 1  # its range grows each time
                x, chain = self.steps * rows(20_000, 64), fused.FusedChain(second=self.quantizer)
                if source == "linear":
                    return fused.linear(x, self.weight, None, chain)
                if source == "batch norm":
                    return fused.batch_norm(x, self.norm, chain)
                return fused.chain(x, chain._replace(relu=True), None)

        def rows(*shape: int) -> Tensor:
            return torch.randn(shape).requires_grad_()

        layer = Layer()
        layer()
        found = phases(lambda: layer().sum().backward(), layer)
        assert found["message passing"] == found["protection"] == 0
        assert (found["linear"] > 0) == (source == "linear")
        assert (found["quantize"] > 0) == (source == "nothing")
        if source != "batch norm":  # whose rows stay as they are
            assert found["observe"] > 0

    def test_they_sum_to_the_step(self) -> None:
        step = step_of(variants_of(["int8-dq"])[0], build(Case(workload="W2", scale=0.02)))
        step()
        durations: list[float] = []

        def timed() -> None:
            start = time.perf_counter()
            step()
            durations.append(time.perf_counter() - start)

        found = phases(timed, step.module)
        assert list(found) == list(PHASES)
        assert all(seconds > 0 for seconds in found.values())
        observing = durations[::2]  # in turns with steps that keep the ranges
        assert sum(found.values()) == pytest.approx(sum(observing) / len(observing), rel=0.05)

    def test_what_a_quantizer_calls_is_quantizing(self) -> None:
        subject = build(tiny("W3"))
        float_step, step = step_of(FLOAT, subject), step_of(variants_of(["int8-dq"], ["unfused"])[0], subject)
        step()
        found = phases(float_step, float_step.module)
        assert found["protection"] == found["observe"] == found["quantize"] == 0
        assert min(found["message passing"], found["linear"], found["rest"]) > 0
        hooks = [len(part._forward_hooks) for part in step.module.modules() if isinstance(part, FakeQuantize)]
        phases(step, step.module, repeats=1)
        assert hooks == [len(part._forward_hooks) for part in step.module.modules() if isinstance(part, FakeQuantize)]

    def test_a_product_with_an_adjacency_is_no_linear_layer(self) -> None:
        adjacency = torch.eye(2_000).to_sparse_csr()
        x = torch.ones(2_000, 64, requires_grad=True)
        found = phases(lambda: torch.sparse.mm(adjacency, x).sum().backward(), nn.Module())
        assert found["message passing"] > found["linear"] == 0

    @pytest.mark.parametrize("slow", ["quantize", "observe"])
    def test_a_slow_phase_is_seen(self, slow: str) -> None:
        slept: list[float] = []

        class Slow(FakeQuantize):
            def forward(self, x: Tensor, protected: Tensor | None = None) -> Tensor:
                if slow == "quantize" or self.observer_enabled:
                    start = time.perf_counter()
                    time.sleep(0.05)
                    slept.append(time.perf_counter() - start)
                return super().forward(x, protected)

        step = step_of(variants_of(["int8-dq"], ["unfused"])[0], build(tiny("W3")))
        step()
        quantizers = [part for part in step.module.modules() if isinstance(part, FakeQuantize)]
        for quantizer in quantizers if slow == "quantize" else ():
            quantizer.observer_enabled = False  # steps with and without observing are compared: none of that here
        quantizers[0].__class__ = Slow
        found = phases(step, step.module, repeats=3)
        assert len(slept) == 3
        # Compared with how long it slept in these very steps, however long that was.
        if slow == "quantize":
            assert sum(slept) / 3 <= 1.001 * found["quantize"]
            assert found["observe"] == 0
        else:
            assert 0.8 * sum(slept) / 3 <= found["observe"]  # by the ratio of two medians
            assert found["quantize"] < found["observe"]

    def test_what_does_not_observe_takes_no_further_steps(self) -> None:
        taken: list[bool] = []
        step = step_of(variants_of(["int8-dq"])[0], build(tiny("W3")))
        quantizers = [part for part in step.module.modules() if isinstance(part, FakeQuantize)]

        def counted() -> None:
            taken.append(all(quantizer.observer_enabled for quantizer in quantizers))
            step()

        phases(counted, step.module, repeats=1)
        assert taken == [True, False]
        assert all(quantizer.observer_enabled for quantizer in quantizers)
        for quantizer in quantizers:
            quantizer.observer_enabled = False
        assert phases(counted, step.module, repeats=1)["observe"] == 0
        assert taken == [True, False, False]
        assert not any(quantizer.observer_enabled for quantizer in quantizers)


@pytest.fixture(scope="module")
def result() -> TrainResult:
    quick = TrainSettings(steps=3, warmup=1, memory=False)
    cases = [Case(workload="W2", scale=0.002, edges=edges) for edges in (1_000, 2_000)]
    return run(cases, variants_of(["int8-dq"], ["fused", "unfused"]), quick)


class TestTrain:
    def test_it_warms_up_until_ranges_hardly_grow(self) -> None:
        assert inspect.signature(train).parameters["warmup"].default == TrainSettings().warmup == 10
        assert TrainSettings(warmup=3).warmup == 3

    def test_keys_are_stable(self, result: TrainResult) -> None:
        plain = json.loads(json.dumps(result.to_dict()))
        assert set(plain) == {"environment", "settings", "no_memory", "cases", "seconds"}
        assert set(plain["environment"]) == {
            "cpu", "cores", "threads", "torch", "torch_geometric", "numba", "dqconvert", "python", "omp_wait_policy",
            "date",
        }  # fmt: skip
        assert set(plain["settings"]) == {"steps", "warmup", "threads", "memory", "phases", "seed"}
        for case in plain["cases"]:
            assert set(case) == {
                "name", "title", "data", "nodes", "edges", "features", "parameters", "no_csr", "variants",
            }  # fmt: skip
            for row in case["variants"]:
                assert set(row) == {
                    "name", "preset", "fuse", "csr", "median_ms", "min_ms", "ratio_to_edge_index", "ratio_to_csr",
                    "ratio_to_faster", "build_s", "peak_mib", "before_mib", "phases_ms",
                }  # fmt: skip
                assert list(row["phases_ms"]) == list(PHASES)

    def test_numbers_agree(self, result: TrainResult) -> None:
        for case in result.cases:
            names = [row.variant.name for row in case.rows]
            assert names == ["float, edge_index", "float, CSR", "int8-dq", "int8-dq, unfused"]
            edge_index, csr = (row.median_ms for row in case.rows[:2])
            for row in case.rows:
                assert 0 < row.min_ms <= row.median_ms
                assert row.ratio_to_edge_index == pytest.approx(row.median_ms / edge_index)
                assert row.ratio_to_csr == pytest.approx(row.median_ms / csr)
                assert row.ratio_to_faster == pytest.approx(row.median_ms / min(edge_index, csr))
        assert [case.subject["edges"] for case in result.cases] == [1_000, 2_000]

    def test_tables_show_them(self, result: TrainResult) -> None:
        console = Console(width=100)
        with console.capture() as capture:
            show_train(result, console)
        text = capture.get()
        row = result.cases[0].rows[2]
        assert f"{row.ratio_to_edge_index:.2f}" in text
        assert "message passing" in text
        growth = result.cases[1].rows[2].median_ms / row.median_ms
        assert re.search(rf"{growth:.2f} *\n", text[text.index("Growth") :])

    def test_the_global_state_is_left_alone(self) -> None:
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        run([tiny("W2")], [], TrainSettings(steps=1, warmup=1, threads=threads + 1, memory=False, phases=False))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads

    def test_a_models_output_must_be_a_tensor(self) -> None:
        class Pair(nn.Linear):
            def forward(self, x: Tensor) -> Any:
                return super().forward(x), x

        inputs = build(tiny("W2")).inputs
        step = Step(Pair(2, 2), type(inputs)(inputs.signature, {"x": torch.ones(1, 2)}, frozenset("x")), None)
        with pytest.raises(CommandError, match="returns a tuple"):
            step()


def test_prepare_growth() -> None:
    found = run_prepare(layers=[1, 2, 4], widths=[8, 16], repeats=1)
    assert [(point.layers, point.width) for point in found.by_layers] == [(1, 32), (2, 32), (4, 32)]
    assert [point.parameters for point in found.by_parameters] == [2 * (w * w + w) for w in (8, 16)]
    for points in (found.by_layers, found.by_parameters):
        assert (points[0].growth, points[0].size_growth) == (None, None)
        for before, point in pairwise(points):
            assert point.growth == pytest.approx(point.median_s / before.median_s)
    assert [point.size_growth for point in found.by_layers[1:]] == [2, 2]
    assert set(json.loads(json.dumps(found.to_dict()))) == {
        "environment", "preset", "repeats", "by_layers", "by_parameters", "seconds",
    }  # fmt: skip
    console = Console(width=100)
    with console.capture() as capture:
        show_prepare(found, console)
    assert f"{found.by_layers[2].growth:.2f}" in capture.get()


class TestEnvironment:
    def test_records_what_ran(self) -> None:
        found = environment(threads=2)
        assert (found.torch, found.threads, found.omp_wait_policy) == (torch.__version__, 2, "passive")
        assert found.cores >= 1
        assert len(found.cpu) > 2

    @pytest.mark.parametrize("value", [None, "active", "ACTIVE"])
    def test_spinning_threads_are_warned_of(self, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
        if value is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", value)
        assert "set it to passive" in (spinning() or "")

    def test_waiting_threads_are_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        assert spinning() is None


QUICK = ["bench", "train", "--workload", "w2", "--scale", "0.002", "--steps", "1", "--warmup", "1", "--no-memory"]


class TestCommand:
    def test_json(self) -> None:
        done = CliRunner().invoke(app, [*QUICK, "--json", "--no-phases", "--preset", "int8-qat"])
        assert (done.exit_code, done.stderr) == (0, "")
        rows = json.loads(done.stdout)["cases"][0]["variants"]
        assert [row["preset"] for row in rows] == [None, None, "int8-qat"]
        assert [row["phases_ms"] for row in rows] == [None] * 3

    @pytest.mark.study
    @needs_memory
    def test_as_a_process_with_memory(self) -> None:
        done = dqconvert_command(*QUICK[:-1], "--json")
        assert (done.returncode, done.stderr) == (0, "")
        for row in json.loads(done.stdout)["cases"][0]["variants"]:
            assert row["peak_mib"] > 0

    def test_own_model(self, tmp_path: Path) -> None:
        file = str(tmp_path / "example.pt")
        torch.save((torch.randn(6, 4), torch.tensor([[0, 1, 2], [1, 2, 3]])), file)
        kwargs = '{"in_channels": 4, "hidden_channels": 8, "num_layers": 2}'
        model = ["--model", "torch_geometric.nn:GCN", "--kwargs", kwargs, "--example", file]
        done = CliRunner().invoke(app, ["bench", "train", *model, "--steps", "1", "--no-memory", "--json"])
        assert (done.exit_code, done.stderr) == (0, "")
        (case,) = json.loads(done.stdout)["cases"]
        assert (case["title"], case["data"], case["nodes"], case["edges"]) == ("GCN", "example.pt", 6, 3)
        assert case["parameters"] == sum(p.numel() for p in GCN(4, 8, 2).parameters())
        assert case["variants"][2]["ratio_to_edge_index"] > 0

    def test_prepare(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        chart = tmp_path / "chart.svg"
        args = ["--layers", "1", "--width", "8", "--repeats", "1", "--chart", str(chart)]
        done = CliRunner().invoke(app, ["bench", "prepare", *args])
        assert (done.exit_code, done.stderr) == (0, "")
        assert "1 layers x 32" in done.stdout
        assert "<svg" in chart.read_text()

    @pytest.mark.parametrize(
        ("args", "complaint"),
        [
            (["train", "--workload", "W9"], "W1, W2, W3, W4, W5"),
            (["train", "--preset", "int9-dq"], "int8-dq"),
            (["train", "--variant", "compiled"], "fused, unfused"),
            (["train", "--workload", "W1", "--edges", "5"], "W2, W3, W4"),
            (["train", "--model", "a:b"], "--example"),
            (["train", "--model", "a:b", "--example", "f", "--scale", "2"], "--scale"),
            (["train", "--kwargs", "{}"], "--model"),
            (["train", "--steps", "0"], "--steps"),
            (["prepare", "--preset", "int9-dq"], "int8-dq"),
            (["prepare", "--layers", "0"], "--layers"),
            (["infr"], "infr"),
        ],
    )
    def test_wrong_usage_exits_2(self, args: list[str], complaint: str) -> None:
        done = CliRunner().invoke(app, ["bench", *args], env={"COLUMNS": "200"})
        assert (done.exit_code, done.stdout) == (2, "")
        assert complaint in done.stderr

    def test_failure_exits_1_with_one_line(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, [*QUICK, "--chart", str(tmp_path / "missing" / "chart.png")])
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("dqconvert: ")
        assert done.stderr.count("\n") == 1

    def test_spinning_is_warned_of_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        done = CliRunner().invoke(app, [*QUICK, "--quiet", "--no-phases"])
        assert done.exit_code == 0
        assert done.stderr.count("OMP_WAIT_POLICY is 'active'") == 1
        assert "OMP_WAIT_POLICY=active" in done.stdout

    def test_help_has_examples_and_imports_no_torch(self) -> None:
        code = (
            "import sys; from dqconvert.cli import app\n"
            "try: app(sys.argv[1:])\n"
            "except SystemExit as done: assert not done.code, done.code\n"
            "assert not {'torch', 'numpy', 'rich.progress'} & set(sys.modules)"
        )
        for args in (["bench", "-h"], ["bench", "train", "-h"], ["bench", "prepare", "--help"]):
            done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "Example: dqconvert bench" in done.stdout


class TestChart:
    def test_is_a_picture(self, tmp_path: Path) -> None:
        image = pytest.importorskip("matplotlib.image")
        chart = tmp_path / "chart.png"
        done = CliRunner().invoke(app, [*QUICK, "--chart", str(chart)])
        assert (done.exit_code, done.stderr) == (0, "")
        assert str(chart) in done.stdout.replace("\n", "")
        assert chart.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = image.imread(chart)
        assert pixels.shape[1] > 1_000
        assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, pixels.shape[2]).tolist()}) > 5
        assert [found.name for found in tmp_path.iterdir()] == ["chart.png"]

    def test_missing_matplotlib_shows_before_the_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str, package: str | None = None) -> Any:
            if name.startswith("matplotlib"):
                raise ModuleNotFoundError(f"No module named {name!r}")
            return real(name, package)

        real = importlib.import_module
        monkeypatch.setattr(importlib, "import_module", missing)
        monkeypatch.setattr("dqconvert.bench.train.run", None)  # is not reached
        done = CliRunner().invoke(app, [*QUICK, "--chart", str(tmp_path / "chart.png")])
        assert (done.exit_code, done.stdout) == (1, "")
        assert "pip install 'dqconvert[plot]'" in done.stderr
        assert list(tmp_path.iterdir()) == []


class TestSweep:
    def test_the_sample_depends_on_the_seed_alone(self) -> None:
        one, two = sweep.SweepSettings(seed=1, largest=1 << 16), sweep.SweepSettings(seed=2, largest=1 << 16)
        assert sweep.shapes(one) == sweep.shapes(one) != sweep.shapes(two)
        assert set(sweep.shapes(one)) == set(sweep.shapes(two))
        assert {shape.layer for shape in sweep.shapes(one)} == set(sweep.LAYERS)

    def test_as_json_it_has_the_worst_and_all(self) -> None:
        done = CliRunner().invoke(app, ["bench", "sweep", "--quick", "--seconds", "0", "--threads", "1", "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert set(found) == {"environment", "settings", "worst_training", "worst_inference", "rows", "seconds"}
        (row,) = found["rows"]
        assert found["worst_training"] == found["worst_inference"] == [row]
        assert row["fused_ratio"] == pytest.approx(row["fused_ms"] / row["unfused_ms"])
        assert row["infer_ratio"] == pytest.approx(row["integer_forward_ms"] / row["float_forward_ms"])

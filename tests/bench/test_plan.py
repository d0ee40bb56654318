"""`dqconvert bench plan`: its arithmetic by hand; and, in the study, plans against measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dqconvert.bench.environment import environment
from dqconvert.bench.laws import Law, Machine, fit
from dqconvert.bench.plan import Between, Checked, Laws, Plan, Wanted, data_bytes, rows_of, sampled_size
from dqconvert.bench.plan_table import show_plan
from dqconvert.bench.probes import run
from dqconvert.bench.workloads import Size
from dqconvert.cli import app
from dqconvert.errors import UsageError

MACHINE = Machine(bandwidth=100.0, gather=((1 << 10, 1e-9), (1 << 20, 3e-9)), memory=1 << 30)
SIZE = Size(nodes=1_000, edges=8_000, features=4, hidden=16, classes=3)
LAWS = {
    "training, float": Laws(
        time=Law(fixed=1.0, node=0.01, edge=0.001),
        memory=Law(fixed=100.0, node=10.0, edge=1.0),
        traffic=Law(fixed=0.0, node=100.0, edge=50.0),
    ),
    "inference, int8-dq": Laws(
        time=Law(fixed=0.0, node=0.0, edge=0.001), memory=None, traffic=Law(fixed=0.0, node=1.0, edge=0.0)
    ),
}
BETWEEN = Between(calls={"training, float": 2}, parameters=1_000, latency=0.5, bandwidth=1_000.0)


def test_an_epoch_on_the_whole_graph_is_one_step() -> None:
    train, infer = rows_of(Wanted(size=SIZE), MACHINE, LAWS)
    assert (train.nodes, train.edges) == (infer.nodes, infer.edges) == (1_000, 8_000)
    assert train.seconds == train.epoch_seconds == pytest.approx(1 + 10 + 8)
    assert train.memory_bytes == 100 + 10_000 + 8_000
    assert train.traffic_bytes == 100_000 + 400_000
    assert train.floor_seconds == 5_000
    assert train.data_bytes == 1_000 * (4 * 4 + 8) + 16 * 8_000
    assert (infer.seconds, infer.epoch_seconds, infer.memory_bytes, infer.sent_bytes) == (8, None, None, 0)


def test_ranks_share_a_training_and_wait_for_each_other() -> None:
    train, infer = rows_of(Wanted(size=SIZE, ranks=4), MACHINE, LAWS, BETWEEN)
    assert (train.nodes, train.edges) == (250, 2_000)
    assert train.seconds == pytest.approx(1 + 2.5 + 2)
    assert train.sent_bytes == 1_500
    assert train.between_seconds == 2 * 0.5 + 1.5
    assert train.epoch_seconds == train.seconds + 2.5
    assert (infer.nodes, infer.between_seconds) == (1_000, 0)


def test_sampled_epochs_have_a_step_for_each_batch_of_all_ranks() -> None:
    wanted = Wanted(size=SIZE, ranks=2, batch=10, fanout=(3, 2), train_nodes=500)
    assert wanted.steps == 25
    nodes, edges = wanted.step_size
    assert edges == 10 * 3 + round((nodes_after_one_hop() - 10) * 2)
    train, infer = rows_of(wanted, MACHINE, LAWS, BETWEEN)
    assert (train.nodes, train.edges) == (nodes, edges)
    assert train.epoch_seconds == pytest.approx(25 * (train.seconds + train.between_seconds))
    assert infer.edges == 8_000


def nodes_after_one_hop() -> float:
    return 10 + 990 * (1 - np.exp(-30 / 1_000))


def test_sampled_batches_are_never_larger_than_the_graph() -> None:
    assert sampled_size(100, 400, 100, [-1, -1]) == (100, 400)
    assert sampled_size(10**9, 10**10, 100, [5, 5]) == pytest.approx((3_100, 3_000), abs=1)


def test_laws_are_found_again() -> None:
    law = Law(fixed=0.5, node=2e-6, edge=3e-7, gather=0.4, row=64)
    at = [(64_000, 256_000), (64_000, 64_000), (16_000, 256_000), (16_000, 64_000), (4_000, 64_000), (500, 64_000)]
    found = fit([(*size, law.at(*size, MACHINE)) for size in at], MACHINE, row=64)
    for size in ((1_000, 20_000), (10**8, 10**9)):
        assert found.at(*size, MACHINE) == pytest.approx(law.at(*size, MACHINE), rel=1e-4)


def test_no_law_is_negative() -> None:
    found = fit([(10, 10, 5.0), (20, 10, 4.0), (10, 20, 3.0)], MACHINE)
    assert min(found.fixed, found.node, found.edge) >= 0
    assert fit([(10, 10, 0.0), (20, 10, 0.0)], MACHINE).at(10**6, 10**6, MACHINE) == 0


def test_reading_rows_takes_longer_from_larger_tables() -> None:
    assert MACHINE.gathering(1) == 1e-9  # no larger than the smallest
    assert MACHINE.gathering(1 << 15) == pytest.approx(2e-9)
    assert MACHINE.gathering(1 << 40) == 3e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": replace(SIZE, nodes=10, edges=101)}, "no such graph"),
        ({"batch": 10}, "go together"),
        ({"batch": 10, "fanout": (3,)}, "for each of the 2 layers"),
        ({"train_nodes": 10}, "sampled training"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Wanted(**{"size": SIZE, **changes})


SMALL = ["bench", "plan", "--nodes", "400", "--edges", "1200", "--features", "8", "--hidden", "8", "--quiet"]


@pytest.mark.study
def test_the_command_prints_a_plan_or_json() -> None:
    found = CliRunner().invoke(app, [*SMALL, "--batch", "20", "--fanout", "3", "--fanout", "2", "--json"])
    assert found.exit_code == 0, found.output
    plain = json.loads(found.stdout)
    assert set(plain) == {"environment", "wanted", "machine", "between", "laws", "rows", "checked", "seconds"}
    assert plain["wanted"]["steps_per_epoch"] == 20
    assert plain["wanted"]["data_bytes"] == data_bytes(400, 1_200, 8)
    assert [row["name"] for row in plain["rows"]] == [
        "training, float",
        "training, int8-dq",
        "inference, float",
        "inference, int8-dq",
        "inference, int8-dq, new graph",
    ]
    assert all(row["seconds"] > 0 and row["traffic_bytes"] > 0 for row in plain["rows"])


def test_the_table_is_whole() -> None:
    """One of a plan by hand, at 80 columns."""
    name = "inference, int8-dq, new graph"
    times, bytes_ = (3.0, 2.0), (1.5e9, 1e9)
    checked = Checked(name=name, nodes=1_310_072, edges=5_242_880, seconds=times, memory=bytes_, traffic=bytes_)
    plan = Plan(
        wanted=Wanted(size=SIZE, ranks=4),
        environment=environment(2),
        machine=MACHINE,
        laws=LAWS,
        between=BETWEEN,
        rows=rows_of(Wanted(size=SIZE, ranks=4), MACHINE, LAWS, BETWEEN),
        checked=(checked,),
        seconds=1.0,
    )
    console = Console(width=80)
    with console.capture() as capture:
        show_plan(plan, console)
    text = capture.get()
    assert "5.5 s" in text
    assert "8.0 s" in text  # of an epoch
    assert "1.50" in text
    assert "edges between parts are left out" in " ".join(text.split())
    assert "…" not in text


@pytest.mark.idle
@pytest.mark.parametrize("model", ["GCN", "GIN", "SAGE", "GAT"])
def test_plans_are_near_what_is_measured(model: str) -> None:
    """At three sizes beyond those that a plan is made from: within 30 % of time, and of memory and traffic."""
    size = Size(nodes=10**6, edges=10**7, features=64, hidden=64, classes=16)
    plan = run(Wanted(size=size, layer=model, threads=1), check=True)  # by the processor's time
    assert len(plan.checked) == 15
    off = {}
    for one in plan.checked:
        for what, pair in (("time", one.seconds), ("memory", one.memory), ("traffic", one.traffic)):
            if pair is not None and not 1 / 1.3 <= pair[0] / pair[1] <= 1.3:
                off[one.name, one.nodes, one.edges, what] = pair
    assert off == {}


@pytest.mark.idle
def test_what_ranks_say_is_counted() -> None:
    size = Size(nodes=10**5, edges=10**6, features=8, hidden=8, classes=4)
    between = run(Wanted(size=size, ranks=2)).between
    assert between is not None
    assert between.calls["training, float"] >= 1
    assert 0 <= between.calls["training, int8-dq"] - between.calls["training, float"] <= 12
    assert between.parameters == 4 * (8 * 8 + 8 + 8 * 4 + 4)

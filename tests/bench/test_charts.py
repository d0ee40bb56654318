"""Charts and tables of benchmarks, of results made up by hand: what is empty is not named, 80 columns suffice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dqconvert.bench.charts import draw_infer, draw_train
from dqconvert.bench.engines import Engine
from dqconvert.bench.environment import environment
from dqconvert.bench.infer import InferCase, InferResult, InferRow, InferSettings, Speed
from dqconvert.bench.operations import Operation
from dqconvert.bench.phases import PHASES
from dqconvert.bench.tables import show_infer, show_train
from dqconvert.bench.train import TrainCase, TrainResult, TrainRow, TrainSettings
from dqconvert.bench.variants import Variant
from dqconvert.drawing import PALETTE

SUBJECT = {"name": "V1", "title": "GCN 128-128-40", "data": "generated", "nodes": 100_000, "edges": 5_000_000}
SUBJECT |= {"features": 128}
SPEED = Speed(
    rounds=3,
    median_ms=1234.5,
    min_ms=1200.0,
    over_edge_index=59.04,
    over_csr=4.6,
    min_over_edge_index=1,
    min_over_csr=1,
)


def operation(name: str) -> Operation:
    numbers: dict[str, Any] = {field: 12345.6 for field in Operation.__dataclass_fields__ if field != "name"}
    return Operation(**{**numbers, "name": name, "calls": 12, "share": 0.5})


def inference(*, cold: bool = True) -> InferResult:
    names = ("fp32, edge_index", "fp32, CSR", "compiled, edge_index", "int8-dq")
    rows = [
        InferRow(
            engine=Engine(name=name),
            warm=replace(SPEED, median_ms=1234.5 / 4**place),
            cold=SPEED if cold else None,
            nodes_per_second=1e6,
            build_s=1.0,
            file_bytes=123_456_789,
            peak_warm_mib=1234.0,
            peak_cold_mib=2345.0,
            phases=(operation("integer_propagate"),) if name == "int8-dq" else None,
            phases_cold=(operation("integer_propagate"),) if name == "int8-dq" else None,
        )
        for place, name in enumerate(names)
    ]
    case = InferCase(subject=SUBJECT, left_out={"bf16, CSR": "not implemented"}, rows=tuple(rows))
    return InferResult(
        environment=environment(2), settings=InferSettings(), bandwidth=1e10, no_memory=None, cases=(case,), seconds=9.0
    )


def training(phases: dict[str, float]) -> TrainResult:
    row = TrainRow(
        variant=Variant(name="float, edge_index"),
        median_ms=1234.5,
        min_ms=1200.0,
        ratio_to_edge_index=1.0,
        ratio_to_csr=0.5,
        ratio_to_faster=1.0,
        build_s=1.0,
        peak_mib=12345.0,
        before_mib=1.0,
        phases_ms={name: phases.get(name, 0.0) for name in PHASES},
    )
    case = TrainCase(subject=SUBJECT, no_csr=None, rows=(row, replace(row, variant=Variant(name="int8-dq, unfused"))))
    return TrainResult(environment=environment(2), settings=TrainSettings(), no_memory=None, cases=(case,), seconds=9.0)


def texts(path: Path) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())]


@pytest.mark.parametrize("cold", [True, False])
def test_the_legend_of_forwards_names_what_was_measured(tmp_path: Path, cold: bool) -> None:
    draw_infer(inference(cold=cold), tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    assert ("known graph" in said, "new graph" in said) == (True, cold)
    assert {"20", "100", "1,000"} <= {*said}  # plain numbers: no powers of ten
    assert said.count("59.0x") == (8 if cold else 4)


def test_the_legend_of_steps_has_no_phase_that_cannot_be_seen(tmp_path: Path) -> None:
    draw_train(training({"linear": 50.0, "quantize": 30.0, "protection": 0.01, "rest": 20.0}), tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    assert [phase for phase in PHASES if phase in said] == ["quantize", "linear", "rest"]
    assert "0" in said  # where bars start


def test_no_two_colors_are_alike() -> None:
    numbers = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in PALETTE]
    for place, one in enumerate(numbers):
        for other in numbers[:place]:
            assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) > 60**2, (one, other)


def test_tables_are_whole_at_80_columns() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    show_infer(inference(), console)
    show_train(training({"linear": 1234.5, "rest": 1234.5}), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert any(re.match(r" compiled, edge_index +77\.2 +1200 +59\.04 +4\.60 +1\.30 *$", line) for line in lines), lines
    assert any(line.strip() == "New graph" for line in lines)
    assert any(re.match(r" int8-dq +1234 / 2345 +123457 *$", line) for line in lines)
    assert any(line.startswith(" integer_propagate ") for line in lines)

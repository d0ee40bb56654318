"""The results of the benchmarks as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dqconvert.bench import infer
from dqconvert.bench.operations import Operation
from dqconvert.bench.phases import PHASES
from dqconvert.bench.prepare import Point, PrepareResult
from dqconvert.bench.sweep import SweepResult
from dqconvert.bench.train import TrainCase, TrainResult, TrainRow

_SMALL = 0.01
"""Share of a forward below which operations are not shown one by one."""


def show_train(result: TrainResult, console: Console) -> None:
    """Prints a table of times per case, one of phases, and what they were measured with."""
    for case in result.cases:
        console.print(_title(case.subject), style="bold", highlight=False)
        console.print(_times(case))
        if any(row.phases_ms for row in case.rows):
            console.print(_phases(case))
        if case.no_csr is not None:
            console.print(f"No CSR adjacency: {case.no_csr}.", highlight=False)
        console.print()
    if (grown := _growth(result.cases)) is not None:
        console.print(grown)
    settings = result.settings
    notes = [f"Times: {settings.steps} steps of each in turns, after {settings.warmup}; ratios are of medians."]
    if result.no_memory is not None:
        notes.append(f"No memory: {result.no_memory}.")
    elif settings.memory:
        notes.append(
            "Memory: how far a process of its own rises in two steps above what it had before (model, data, libraries)."
        )
    if settings.phases:
        notes.append(
            "Phases: under the profiler, which slows a step of many small operators; observe: what a step saves where "
            "every range stays as it is."
        )
    print_notes(console, result, *notes)


def show_infer(result: infer.InferResult, console: Console) -> None:
    """Prints a table of times per case, one of operations per integer module, and what they were measured with."""
    for case in result.cases:
        console.print(_title(case.subject), style="bold", highlight=False)
        for table in _speeds(case):
            console.print(table)
        for name, reason in case.left_out.items():
            console.print(f"No {name}: {reason}.", highlight=False)
        for row in case.rows:
            if row.phases is not None:
                console.print(_operations(row.engine.name, row.phases, row.phases_cold))
        console.print()
    settings = result.settings
    turns = f"Times: {settings.rounds} forwards or more of each in turns, each behind one that is not timed;"
    notes = [f"{turns} x: the float's median over this one's."]
    if settings.cold:
        notes.append("Cold: on a graph that was not seen before, from its edge_index on.")
    if result.no_memory is not None:
        notes.append(f"No memory: {result.no_memory}.")
    elif settings.memory:
        notes.append("Memory: how far a process of its own rises in a forward, on a known graph / on a new one.")
    if settings.phases:
        notes.append(
            "Operations: the shortest time of each call; moved: every tensor read or written once; floor: what that "
            f"takes at {result.bandwidth / (1 << 30):.1f} GiB/s, as in a copy; gathered: rows read for the edges."
        )
    print_notes(console, result, *notes)


def show_prepare(result: PrepareResult, console: Console) -> None:
    """Prints a table per series."""
    console.print(_points("prepare against layers", "layers", result.by_layers))
    console.print(_points("prepare against parameters", "parameters", result.by_parameters))
    growth = "Growth is over the line before: of time, and of size."
    print_notes(console, result, f"GCNs, {result.preset}; medians of {result.repeats}. {growth}")


def show_sweep(result: SweepResult, console: Console) -> None:
    """Prints the ten worst shapes of training and of inference."""
    training = new_table("fused, ms", "unfused, ms", "x unfused", "x float", title="Training steps: the worst")
    for row in result.worst("fused_ratio"):
        times = _digits(row.fused_ms), _digits(row.unfused_ms)
        training.add_row(str(row.shape), *times, f"{row.fused_ratio:.2f}", f"{row.train_ratio:.2f}")
    inference = new_table("integer, ms", "float, ms", "x float", title="Forwards on a known graph: the worst")
    for row in result.worst("infer_ratio"):
        times = _digits(row.integer_forward_ms), _digits(row.float_forward_ms)
        inference.add_row(str(row.shape), *times, f"{row.infer_ratio:.2f}")
    console.print(training)
    console.print(inference)
    turns = f"{result.settings.rounds} steps of each in turns; ratios are of medians."
    print_notes(console, result, f"{len(result.rows)} shapes, {turns}")


def print_notes(console: Console, result: Any, *notes: str) -> None:
    """Prints what the figures mean, and what they were measured with."""
    console.print(" ".join(notes), highlight=False)
    console.print(f"{result.environment}; {result.seconds:.0f} s in all", highlight=False)


def _title(subject: dict[str, Any]) -> str:
    sizes = [f"{subject[name]:,} {name}" for name in ("nodes", "edges", "features") if subject[name] is not None]
    return f"{subject['name']}: {subject['title']} ({subject['data']}: {', '.join(sizes)})"


def new_table(*columns: str, title: str | None = None) -> Table:
    """Returns a table whose first column names its rows."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _times(case: TrainCase) -> Table:
    table = new_table("median", "min\nms", "x edge_\nindex", "x CSR", "x\nfaster", "peak\nMiB", "x\nfloat")
    base = case.rows[0].peak_mib
    for row in case.rows:
        table.add_row(
            row.variant.name,
            _digits(row.median_ms),
            _digits(row.min_ms),
            f"{row.ratio_to_edge_index:.2f}",
            _ratio(row.ratio_to_csr),
            f"{row.ratio_to_faster:.2f}",
            "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
            _ratio(row.peak_mib / base if row.peak_mib is not None and base else None),
        )
    return table


def _phases(case: TrainCase) -> Table:
    table = new_table(*(phase.replace("protection", "protec-\ntion") for phase in PHASES), "sum, ms")
    for row in case.rows:
        if row.phases_ms is not None:
            table.add_row(row.variant.name, *(_digits(row.phases_ms[name]) for name in PHASES), _digits(_sum(row)))
    return table


def _speeds(case: infer.InferCase) -> Iterator[Table]:
    """Yields a table for the known graph, one for new ones, and one of memory: together they are too wide."""
    for title in ("Known graph", "New graph"):
        table = new_table("median, ms", "min, ms", "x edge_index", "x CSR", "Mnodes/s", title=title)
        for row in case.rows:
            if (speed := row.warm if title == "Known graph" else row.cold) is not None:
                times, ratios = (speed.median_ms, speed.min_ms), (speed.over_edge_index, speed.over_csr)
                rate = case.subject["nodes"] / speed.median_ms / 1e3
                table.add_row(row.engine.name, *map(_digits, times), *map(_ratio, ratios), f"{rate:.2f}")
        if table.row_count:
            yield table
    table = new_table("peak, MiB", "file, kB", title="Memory")
    for row in case.rows:
        table.add_row(row.engine.name, _peaks(row), f"{row.file_bytes / 1e3:.0f}")
    yield table


def _peaks(row: infer.InferRow) -> str:
    return " / ".join(f"{peak:.0f}" for peak in (row.peak_warm_mib, row.peak_cold_mib) if peak is not None)


def _operations(title: str, known: Sequence[Operation], new: Sequence[Operation] | None) -> Table:
    """Returns a row per operation that takes a noticeable share; what a known graph spares comes last."""
    columns = ["calls", "ms", "share", "moved\nMiB", "floor\nms", "gathered\nMiB"]
    table = new_table(*columns, *(["cold\nms", "cold\nfloor"] if new is not None else []), title=title)
    shown = dict.fromkeys(operation.name for operation in (*known, *(new or ())) if operation.share >= _SMALL)
    groups: dict[str, Sequence[str]] = {name: [name] for name in shown}
    groups["rest"] = [operation.name for operation in (*known, *(new or ())) if operation.name not in shown]
    groups["sum"] = [*shown, *groups["rest"]]
    for group, names in groups.items():
        warm, cold = ([o for o in counted if o.name in names] for counted in (known, new or ()))
        gathered = sum(o.gathered_mib for o in warm)
        table.add_row(
            group,
            f"{sum(o.calls for o in warm)}",
            _digits(sum(o.ms for o in warm)),
            f"{sum(o.share for o in warm):.0%}",
            _digits(sum(o.moved_mib for o in warm)),
            _digits(sum(o.floor_ms for o in warm)),
            _digits(gathered) if gathered else "",
            *([_digits(sum(o.ms for o in cold)), _digits(sum(o.floor_ms for o in cold))] if new is not None else []),
        )
    return table


def _growth(cases: Sequence[TrainCase]) -> Table | None:
    """Returns the growth of time from one size of a workload to the next; ``None`` where no workload has several."""
    table = new_table("edges", "features", "x edges", "x features", "x time", title="Growth")
    for before, case in pairwise(cases):
        if before.subject["name"] != case.subject["name"] or case.subject["edges"] is None:
            continue
        for row in case.rows:
            earlier = [other for other in before.rows if other.variant == row.variant]
            sizes = [f"{case.subject[name]:,}" for name in ("edges", "features")]
            grown = [f"{case.subject[name] / before.subject[name]:.2f}" for name in ("edges", "features")]
            for other in earlier:
                name = f"{case.subject['name']}, {row.variant.name}"
                table.add_row(name, *sizes, *grown, f"{row.median_ms / other.median_ms:.2f}")
    return table if table.row_count else None


def _points(title: str, what: str, points: Sequence[Point]) -> Table:
    table = new_table("parameters", "median, s", "min, s", "x size", "x time", title=title)
    for point in points:
        table.add_row(
            f"{point.layers} layers x {point.width}",
            f"{point.parameters:,}",
            f"{point.median_s:.3f}",
            f"{point.min_s:.3f}",
            _ratio(point.size_growth),
            _ratio(point.growth),
        )
    return table


def _sum(row: TrainRow) -> float:
    return sum((row.phases_ms or {}).values())


def _digits(value: float) -> str:
    """Formats a value with three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

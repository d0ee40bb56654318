"""The results of the benchmarks as charts, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

import os

from dqconvert.bench.infer import InferResult, Speed
from dqconvert.bench.phases import PHASES
from dqconvert.bench.prepare import PrepareResult
from dqconvert.bench.train import TrainCase, TrainResult
from dqconvert.drawing import PALETTE, chart, check_drawing, log_axis

_LEAST = 0.005
"""The share of the longest bar that a part has to have to be seen."""


def check_chart(path: str | os.PathLike[str]) -> None:
    """Makes sure, before any work is done, that a chart can be drawn and written.

    Raises:
        CommandError: If matplotlib is missing.
        UsageError: If it does not write such files.
        CheckpointError: If the file cannot be written.

    Example:
        >>> check_chart("chart.bmp")
        Traceback (most recent call last):
            ...
        dqconvert.errors.UsageError: --chart chart.bmp: must end in .png, .svg, .pdf.
    """
    check_drawing(path, "--chart")


def draw_train(result: TrainResult, path: str | os.PathLike[str]) -> None:
    """Writes a chart of step times: a panel per case, a bar per variant, split by phase where that was measured.

    The profiler slows a step down: the parts have the proportions that it saw, the bar the length that was timed.

    Raises:
        CommandError: If matplotlib is missing.
        CheckpointError: If the file cannot be written.
    """
    rows = max((len(case.rows) for case in result.cases), default=1)
    colors = dict(zip((*PHASES, "step"), (*PALETTE, PALETTE[0]), strict=False))
    with chart(path, len(result.cases), size=(10, 1.7 + 0.4 * rows)) as (figure, panels):
        for axes, case in zip(panels, result.cases, strict=True):
            names = [row.variant.name for row in case.rows]
            starts = [0.0] * len(names)
            for phase, parts in _bars(case, result.settings.phases).items():
                axes.barh(names, parts, left=starts, label=phase, color=colors[phase], height=0.7)
                starts = [start + part for start, part in zip(starts, parts, strict=True)]
            for row in case.rows:
                axes.text(row.median_ms, row.variant.name, f" {row.ratio_to_edge_index:.2f}x", va="center")
            axes.set_xlim(0, 1.15 * max(row.median_ms for row in case.rows))
            axes.invert_yaxis()
            axes.set_xlabel("training step, ms (x float with edge_index)")
            axes.set_title(f"{case.subject['name']}: {case.subject['title']}")
        if result.settings.phases:
            shown = {
                label: bar for axes in panels for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            order = [phase for phase in PHASES if phase in shown]
            figure.legend([shown[phase] for phase in order], order, fontsize="small", loc="outside right upper")


def draw_prepare(result: PrepareResult, path: str | os.PathLike[str]) -> None:
    """Writes a chart of the time of ``prepare`` against layers and against parameters, both axes logarithmic.

    Raises:
        CommandError: If matplotlib is missing.
        CheckpointError: If the file cannot be written.
    """
    with chart(path, 2, size=(9, 3)) as (_, panels):
        series = {"layers": result.by_layers, "parameters": result.by_parameters}
        for axes, (what, points) in zip(panels, series.items(), strict=True):
            axes.plot([getattr(point, what) for point in points], [point.median_s for point in points], marker="o")
            for name in "xy":
                log_axis(axes, name)
            axes.set_xlabel(what)
            axes.set_ylabel("prepare, s")
            axes.grid(visible=True)


def draw_infer(result: InferResult, path: str | os.PathLike[str]) -> None:
    """Writes a chart of forward times: a panel per case, a dot per engine for a known graph and one for a new one.

    Raises:
        CommandError: If matplotlib is missing.
        CheckpointError: If the file cannot be written.
    """
    rows = max((len(case.rows) for case in result.cases), default=1)
    with chart(path, len(result.cases), size=(10, 1.7 + 0.45 * rows)) as (_, panels):
        for axes, case in zip(panels, result.cases, strict=True):
            kinds: dict[str, list[Speed | None]] = {
                "known graph": [row.warm for row in case.rows],
                "new graph": [row.cold for row in case.rows],
            }
            for side, marker, (label, speeds) in zip((-1, 1), "oD", kinds.items(), strict=True):
                shown = {at + 0.17 * side: speed for at, speed in enumerate(speeds) if speed is not None}
                if not shown:
                    continue
                axes.plot([speed.median_ms for speed in shown.values()], list(shown), marker, ms=9, label=label)
                for at, speed in shown.items():
                    text = f"   {speed.over_edge_index:.1f}x"
                    axes.text(speed.median_ms, at, text, va="center", fontsize="small")
            axes.set_yticks(range(len(case.rows)), [row.engine.name for row in case.rows])
            log_axis(axes, "x")
            axes.margins(x=0.15, y=0.08)
            axes.grid(visible=True, axis="x")
            axes.invert_yaxis()
            axes.set_xlabel("forward, ms (x as fast as float with edge_index)")
            axes.set_title(f"{case.subject['name']}: {case.subject['title']}")
        panels[0].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _bars(case: TrainCase, phases: bool) -> dict[str, list[float]]:
    """Returns how long each phase is in each row, in ms; what nobody could see is with the rest."""
    if not phases:
        return {"step": [row.median_ms for row in case.rows]}
    found = {phase: [_part(row.phases_ms, phase) * row.median_ms for row in case.rows] for phase in PHASES}
    least = _LEAST * max(row.median_ms for row in case.rows)
    for phase in [phase for phase, parts in found.items() if phase != "rest" and max(parts) < least]:
        found["rest"] = [one + other for one, other in zip(found["rest"], found.pop(phase), strict=True)]
    return found


def _part(phases_ms: dict[str, float] | None, phase: str) -> float:
    """Returns the share of a phase in a step."""
    if phases_ms is None:
        return float(phase == "rest")
    return phases_ms[phase] / sum(phases_ms.values())

"""The results of the benchmarks as charts, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

import os

from dqconvert.bench.infer import InferResult, Speed
from dqconvert.bench.phases import PHASES
from dqconvert.bench.prepare import PrepareResult
from dqconvert.bench.train import TrainResult
from dqconvert.drawing import check_drawing, new_figure, write_figure


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
    figure, panels = new_figure(len(result.cases))
    for axes, case in zip(panels, result.cases, strict=True):
        names = [row.variant.name for row in case.rows]
        starts = [0.0] * len(names)
        for phase in PHASES if result.settings.phases else ("step",):
            parts = [_part(row.phases_ms, phase) * row.median_ms for row in case.rows]
            axes.barh(names, parts, left=starts, label=phase)
            starts = [start + part for start, part in zip(starts, parts, strict=True)]
        for row in case.rows:
            axes.text(row.median_ms, row.variant.name, f" {row.ratio_to_edge_index:.2f}x", va="center")
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_xlabel("training step, ms (x float with edge_index)")
        axes.set_title(f"{case.subject['name']}: {case.subject['title']}")
    panels[0].legend(fontsize="small")
    write_figure(figure, path)


def draw_prepare(result: PrepareResult, path: str | os.PathLike[str]) -> None:
    """Writes a chart of the time of ``prepare`` against layers and against parameters, both axes logarithmic.

    Raises:
        CommandError: If matplotlib is missing.
        CheckpointError: If the file cannot be written.
    """
    figure, panels = new_figure(2)
    for axes, what, points in zip(
        panels, ("layers", "parameters"), (result.by_layers, result.by_parameters), strict=True
    ):
        axes.loglog([getattr(point, what) for point in points], [point.median_s for point in points], marker="o")
        axes.set_xlabel(what)
        axes.set_ylabel("prepare, s")
        axes.grid(visible=True, which="both", alpha=0.3)
    write_figure(figure, path)


def draw_infer(result: InferResult, path: str | os.PathLike[str]) -> None:
    """Writes a chart of forward times: a panel per case, a bar per engine for a known graph and one for a new one.

    Raises:
        CommandError: If matplotlib is missing.
        CheckpointError: If the file cannot be written.
    """
    figure, panels = new_figure(len(result.cases))
    for axes, case in zip(panels, result.cases, strict=True):
        kinds: dict[str, list[Speed | None]] = {
            "known graph": [row.warm for row in case.rows],
            "new graph": [row.cold for row in case.rows],
        }
        for side, (label, speeds) in zip((-1, 1), kinds.items(), strict=True):
            shown = {at + 0.2 * side: speed for at, speed in enumerate(speeds) if speed is not None}
            axes.barh(list(shown), [speed.median_ms for speed in shown.values()], height=0.38, label=label)
            for at, speed in shown.items():
                axes.text(speed.median_ms, at, f" {speed.over_edge_index:.1f}x", va="center", fontsize="small")
        axes.set_yticks(range(len(case.rows)), [row.engine.name for row in case.rows])
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_xlabel("forward, ms (x as fast as float with edge_index)")
        axes.set_title(f"{case.subject['name']}: {case.subject['title']}")
    panels[0].legend(fontsize="small")
    write_figure(figure, path)


def _part(phases_ms: dict[str, float] | None, phase: str) -> float:
    """Returns the share of a phase in a step."""
    return 1.0 if phases_ms is None else phases_ms[phase] / sum(phases_ms.values())

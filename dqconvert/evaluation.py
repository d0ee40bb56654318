"""The result of ``evaluate``: what each model scores and costs, as a table, JSON, HTML and a chart."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dqconvert import notebook
from dqconvert.advice import Advice
from dqconvert.drawing import chart, check_drawing
from dqconvert.words import count


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What one model scores and costs; ``None``: not measured, or there is nothing to measure.

    Attributes:
        name: As the caller named it.
        form: ``"float"``, ``"prepared"``, ``"integer"``, ``"exported"``.
        metrics: By name, on the rows whose labels count.
        agreement: The share of predictions that are the first model's, see :class:`dqconvert.Comparison`.
        sqnr_db: Signal-to-quantization-noise ratio of the outputs against the first model's, in dB; infinite: equal.
        warm_ms: Median time of a forward on inputs that it has seen, in milliseconds.
        new_ms: The same on a graph that is new to it: orders of edges, norms and degrees are computed again.
        peak_mib: How far the memory of the process rises in a forward.
        bytes: Of its file: :func:`dqconvert.save`'s, of a float model its tensors.
    """

    name: str
    form: str
    metrics: dict[str, float]
    agreement: float | None = None
    sqnr_db: float | None = None
    warm_ms: float | None = None
    new_ms: float | None = None
    peak_mib: float | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The result of :func:`dqconvert.evaluate`. ``print`` shows it as a table.

    Attributes:
        models: In the order given; the first is what the others are compared with.
        units: Of each metric, ``"%"`` or nothing.
        labels: What the metrics are of, in words; empty: there are no labels.
        rows: How many labels count.
        predictions: How many predictions were compared.
        batches: How many calls there were.
        threads: Of torch, while times were measured.
        notes: What could not be measured, and why.
    """

    models: tuple[Evaluated, ...]
    units: dict[str, str]
    labels: str
    rows: int
    predictions: int
    batches: int
    threads: int
    notes: tuple[str, ...] = ()
    advice: Mapping[str, Advice] = field(default_factory=dict)
    """By name, the advice on each prepared model that has some."""

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON; a number that is not finite is None."""
        plain = {name: value for name, value in vars(self).items() if name not in ("models", "advice")}
        advice = {name: one.to_list() for name, one in self.advice.items()}
        return _finite({**plain, "models": [asdict(model) for model in self.models], "advice": advice})

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

    def __repr__(self) -> str:
        first = next(iter(self.units), None)
        shown = (
            f"{m.name} {_number(m.metrics.get(first), self.units[first])}" if first else m.name for m in self.models
        )
        return f"<Evaluation on {self._on()}: {f'{first} of ' if first else ''}{', '.join(shown)}; print it>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header, rows = self._table()
        table = Table(title=self._title(), title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
        for index, (name, unit) in enumerate(header):
            table.add_column(f"{name}\n{unit}".rstrip(), justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        yield table
        yield _LEGEND
        yield from (f"note: {note}" for note in self.notes)
        for name, advice in self.advice.items():
            yield Text(f"{name}: {advice}")

    def _repr_html_(self) -> str:
        header, rows = self._table()
        names = [f"{name}, {unit}" if unit else name for name, unit in header]
        return (
            notebook.table(self._title(), names, rows)
            + notebook.lines([_LEGEND, *(f"note: {note}" for note in self.notes)])
            + "".join(notebook.folded(f"advice on {name}", one._repr_html_()) for name, one in self.advice.items())
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a chart, a panel for each thing measured; ``path`` ends in ``.png``, ``.svg`` or ``.pdf``.

        Raises:
            CommandError: If matplotlib is missing (``pip install 'dqconvert[plot]'``), or does not write such files.
            CheckpointError: If the file cannot be written.
        """
        check_drawing(path)
        panels = [panel for panel in self._columns() if any(value is not None for value in panel[2])]
        with chart(path, max(len(panels), 1), size=(9, 1.1 + 0.4 * len(self.models))) as (figure, axes_of):
            names = [model.name for model in self.models]
            for axes, (name, unit, values) in zip(axes_of, panels, strict=False):
                shown = [0.0 if value is None or not math.isfinite(value) else value for value in values]
                axes.barh(names, shown)
                for place, value in enumerate(values):
                    axes.text(shown[place], place, f" {_number(value, unit)}", va="center")
                axes.margins(x=0.15)
                axes.set_xlim(left=min(0.0, *shown))
                axes.invert_yaxis()
                axes.set_title(f"{name}, {unit}" if unit else name, loc="left")
            figure.suptitle(self._title(), fontsize="medium")

    def _on(self) -> str:
        return count(self.rows, "label") if self.units else count(self.batches, "batch", "batches")

    def _title(self) -> str:
        labels = f"{self.labels}: {count(self.rows, 'row')}; " if self.labels else ""
        of = f"{count(self.predictions, 'prediction')} of {count(self.batches, 'call')}"
        return f"{labels}{of}; {count(self.threads, 'thread')}"

    def _columns(self) -> list[tuple[str, str, list[float | None]]]:
        """Returns what was measured: name, unit, and the value of each model."""
        found: list[tuple[str, str, list[float | None]]] = [
            (name, unit, [model.metrics.get(name) for model in self.models]) for name, unit in self.units.items()
        ]
        shares = [None if m.agreement is None else 100 * m.agreement for m in self.models]
        sizes = [None if m.bytes is None else m.bytes / 1e3 for m in self.models]
        return [
            *found,
            ("as first", "%", shares),
            ("SNR", "dB", [m.sqnr_db for m in self.models]),
            ("warm", "ms", [m.warm_ms for m in self.models]),
            ("new", "ms", [m.new_ms for m in self.models]),
            ("memory", "MiB", [m.peak_mib for m in self.models]),
            ("file", "kB", sizes),
        ]

    def _table(self) -> tuple[list[tuple[str, str]], list[list[str]]]:
        columns = self._columns()
        header = [("", ""), *((name, unit) for name, unit, _ in columns)]
        rows = [
            [model.name, *(_number(values[place], unit) for _, unit, values in columns)]
            for place, model in enumerate(self.models)
        ]
        return header, rows


_LEGEND = "as first, SNR: predictions and outputs held to the first model's; warm, new: on a known graph, on a new one"

_DIGITS = {"%": ".2f", "dB": ".1f", "ms": ",.2f", "MiB": ",.1f", "kB": ",.0f"}


def _number(value: float | None, unit: str) -> str:
    """Returns a number as tables show it."""
    if value is None:
        return ""
    if math.isinf(value) and unit == "dB":
        return "equal"
    return f"{value:{_DIGITS.get(unit, '.4g')}}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

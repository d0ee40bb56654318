"""``dqconvert evaluate``: a float checkpoint, and the files that were made of it, side by side on saved data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from torch import nn

from dqconvert.checkpoint import holds_integer, load
from dqconvert.checkpoint.container import is_prepared
from dqconvert.commands.convert import float_model, unfilled, usage
from dqconvert.commands.finetune import saved_batches
from dqconvert.commands.options import Scoring, Source
from dqconvert.drawing import check_drawing
from dqconvert.errors import UsageError
from dqconvert.evaluate import evaluate as evaluate_models
from dqconvert.exported import ENDINGS
from dqconvert.metrics import NAMED
from dqconvert.user.factory import build, find, parse_kwargs


def evaluate(
    source: Source,
    files: Sequence[Path],
    data: Path,
    scoring: Scoring,
    *,
    plot: Path | None = None,
    as_json: bool = False,
) -> None:
    """Evaluates a model and the files that were made of it, and prints a table.

    Args:
        source: The float model, or the first of the files, which the others are then compared with.
        files: Prepared, integer and exported files.
        data: Saved inputs, with the labels.
        plot: Where to draw a chart; ``None``: nowhere.
        as_json: Print everything as JSON.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    if plot is not None:
        check_drawing(plot, "--plot")
    if (names := [str(path) for path in (source.checkpoint, *files)]) and len(set(names)) < len(names):
        raise UsageError("name each file once.")
    quantized = is_prepared(source.checkpoint)
    model = None if quantized else float_model(source)[0]
    models: dict[str, nn.Module | Path] = {} if model is None else {source.checkpoint.name: model}
    for file in ([source.checkpoint] if quantized else []) + [*files]:
        models[file.name if file.name not in models else str(file)] = _opened(file, source, model)
    with usage():
        found = evaluate_models(
            models,
            saved_batches(data, scoring.batch_size, shuffle=False),
            _metrics(scoring),
            labels=scoring.labels,
            mask=scoring.mask,
            repeats=scoring.repeats,
            costs=not scoring.no_costs,
        )
    if plot is not None:
        found.plot(plot)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        Console(highlight=False).print(found)


def _opened(file: Path, source: Source, model: nn.Module | None) -> nn.Module | Path:
    """Returns the module in a file; of an exported one its path."""
    if file.suffix in ENDINGS:
        return file
    return load(file, None if holds_integer(file) else model or unfilled(source))


def _metrics(scoring: Scoring) -> dict[str, Any] | None:
    """Returns the metrics by name; a class of metrics becomes an object."""
    found: dict[str, Any] = {}
    for name in scoring.metrics or ():
        if ":" not in name:
            if name not in NAMED:
                raise UsageError(f"--metric {name}: must be one of {', '.join(NAMED)}, or pkg.mod:name.")
            found[name] = name
            continue
        metric: Any = find(name, "--metric")
        if isinstance(metric, type):
            kwargs = parse_kwargs(scoring.metric_kwargs, "--metric-kwargs")
            metric = build(name, kwargs, "--metric", "--metric-kwargs")
        found[name.partition(":")[2]] = metric
    return found or None

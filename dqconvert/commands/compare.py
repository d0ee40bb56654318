"""``dqconvert compare``: compares a float checkpoint with the integer or prepared file that was made of it."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from torch import nn

from dqconvert.checkpoint import holds_integer, load
from dqconvert.checkpoint.container import is_prepared
from dqconvert.commands.convert import float_model, prepared_model, unfilled
from dqconvert.commands.options import Source
from dqconvert.compare import compare as compare_modules
from dqconvert.drawing import check_drawing
from dqconvert.user.inputs import SavedInputs


def compare(source: Source, file: Path, data: Path, *, plot: Path | None = None, as_json: bool = False) -> None:
    """Compares a float model with a quantized one on saved inputs, and prints what differs most.

    Args:
        source: The float model; or a prepared file, for what rounding and integers change of it.
        file: An integer or a prepared file.
        data: Inputs, see :class:`dqconvert.user.inputs.SavedInputs`.
        plot: Where to draw a chart; ``None``: nowhere.
        as_json: Print everything as JSON.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    if plot is not None:
        check_drawing(plot, "--plot")
    prepared = is_prepared(source.checkpoint)
    model: nn.Module = prepared_model(source) if prepared else float_model(source)[0]
    instance = unfilled(source) if prepared else model
    quantized = load(file) if holds_integer(file) else load(file, instance)
    saved = SavedInputs(data, "--data")
    with saved.fitting():
        found = compare_modules(model, quantized, saved.calls(quantized))
    if plot is not None:
        found.plot(plot)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))

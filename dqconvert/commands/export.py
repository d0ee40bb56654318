"""``dqconvert export``: a prepared or an integer file becomes a file for other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from torch import nn

from dqconvert.checkpoint import holds_integer, load
from dqconvert.commands.convert import prepared_model
from dqconvert.commands.options import Output, Source
from dqconvert.export import export as write
from dqconvert.export import format_of
from dqconvert.files import check_target
from dqconvert.user.inputs import read_example
from dqconvert.words import count


def export(
    source: Source,
    out: Path,
    output: Output,
    *,
    format: str | None = None,
    exact: bool = False,
    target: Any = None,
    example: Path | None = None,
) -> None:
    """Writes a prepared or an integer file for other runtimes, see :func:`dqconvert.export.export`.

    Args:
        source: The file, and for a prepared one what builds its model.
        out: Where to write.
        output: Whether to replace a file, and what to print.
        format: ``"onnx"`` or ``"pt2"``; ``None``: what ``out`` ends in.
        exact: Whether roundings are arithmetic.
        target: The runtime.
        example: A file of inputs; ``None``: those that the model was prepared with.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    form = format_of(out, format)
    check_target(out, overwrite=output.force)
    example_inputs = None if example is None else read_example(example)
    module: nn.Module = load(source.checkpoint) if holds_integer(source.checkpoint) else prepared_model(source)
    write(module.eval(), out, example_inputs, format=form, exact=exact, target=target)
    size = out.stat().st_size
    if output.as_json:
        typer.echo(
            json.dumps({"file": str(source.checkpoint), "format": form, "out": str(out), "bytes": size}, indent=2)
        )
    elif not output.quiet:
        typer.echo(f"{out}: {form}, {count(size, 'byte')}")

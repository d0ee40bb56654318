"""``dqconvert search-bits``: a float checkpoint, data and a budget become a config file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console

from dqconvert.commands.convert import float_model, usage
from dqconvert.commands.finetune import saved_batches
from dqconvert.commands.options import Changes, Output, Search, Source
from dqconvert.commands.overrides import qconfig_from
from dqconvert.errors import UsageError
from dqconvert.files import check_target, write_file
from dqconvert.mixed.search import bit_sensitivity
from dqconvert.mixed.sensitivity import check_budget
from dqconvert.user.inputs import read_example
from dqconvert.words import article

_WIDTH = 80


def search_bits(
    source: Source,
    out: Path,
    data: Path,
    search: Search,
    output: Output,
    *,
    qconfig: str,
    changes: Changes,
    example: Path | None = None,
) -> None:
    """Chooses a width for each value of the model of a float checkpoint, and writes the config.

    Args:
        source: The float model.
        out: Where to write: a ``.toml`` or ``.json`` file.
        data: Inputs to measure on: a file, or a folder of files.
        search: How to search.
        output: Whether to replace a file, and what to print.
        qconfig: A preset or a config file, for all but the bits.
        changes: Fields to override and rules to add.
        example: A file of inputs to trace on; ``None``: the first of the data.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    if out.suffix not in (".toml", ".json"):
        raise UsageError(f"--out {out}: a config file's name must end in .toml or .json.")
    check_target(out, overwrite=output.force)
    widths, count = _widths(search.bits), cast(Any, search.count)  # which is checked with the rest
    with usage():
        config = qconfig_from(qconfig, changes.sets, changes.rules)
        check_budget(search.budget, search.weights, count, widths)
    model, found = float_model(source)
    inputs = saved_batches(data, search.batch_size, shuffle=False)
    with usage():
        table = bit_sensitivity(
            model,
            inputs,
            config,
            bits=widths,
            batches=search.batches,
            example_inputs=None if example is None else read_example(example),
            scores=False if search.numbers else None,
            seed=search.seed,
            progress=not (output.quiet or output.as_json),
        )
    chosen = table.choose(search.budget, weights=search.weights, count=count)
    text = table.config(chosen)
    check_target(out, overwrite=output.force)
    write_file(out, [(text.to_toml() if out.suffix == ".toml" else text.to_json()).encode()])
    averages = table.average(chosen)
    if output.as_json:
        summary = {
            "checkpoint": str(source.checkpoint),
            "found": found,
            **asdict(search),
            "chosen": chosen,
            "loss": table.loss(chosen),
            "average_bits": averages._asdict(),
            "sensitivity": table.to_dict(),
            "out": str(out),
        }
        typer.echo(json.dumps(summary, indent=2))
    elif not output.quiet:
        where = f" ({found})" if found else ""
        typer.echo(f"{source.checkpoint}: the weights of {article(table.model)}{where}")
        console = Console(highlight=False)
        console = console if console.is_terminal else Console(highlight=False, width=_WIDTH, no_color=True)
        console.print(table.table(chosen))
        typer.echo(f"average bits: {averages}")
        typer.echo(f"{out}: written; train with it: dqconvert finetune {source.checkpoint} --qconfig {out} …")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        widths = ()
    if not widths or not all(2 <= width <= 8 for width in widths):
        raise UsageError(f"--bits {text}: must be whole numbers from 2 to 8 with commas, such as 2,3,4,8.")
    return widths

"""``dqconvert demo``: its options and help; what it does is in :mod:`dqconvert.demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the graph, the weights and the training.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the float training and of each fine-tuning.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the float checkpoint in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the table of results only.")] = False,
) -> None:
    """Quantize a GCN on a generated graph: train in float, prepare, fine-tune, compare. Needs no download.

    Example: dqconvert demo --seed 1 --epochs 50
    """
    import json

    from rich.console import Console
    from rich.progress import Progress

    from dqconvert.demo import run, show

    stdout, stderr = Console(), Console(stderr=True)
    silent = quiet or as_json or not (stdout.is_terminal and stderr.is_terminal)
    with Progress(console=stderr, transient=True, disable=silent) as progress:
        result = run(seed=seed, epochs=epochs, out=out, progress=progress)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        show(result, stdout, report=not quiet)

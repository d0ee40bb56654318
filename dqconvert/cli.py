"""The command line. Each command is one function here, which imports what it needs only when it runs.

To add a command: a function under ``@app.command()``; its docstring is its help, and ends with an example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dqconvert import __version__
from dqconvert.errors import DQConvertError


class _Commands(TyperGroup):
    """The group of all commands. Every :class:`DQConvertError` ends here: one line on stderr, exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DQConvertError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"dqconvert: {'; '.join(str(error).splitlines())}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dqconvert {__version__}")
        raise typer.Exit


@app.callback()
def _dqconvert(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Turn an ordinary float PyTorch Geometric model into a trainable Degree-Quant model.

    Exit codes: 0 done, 1 failed, 2 wrong usage.

    Example: dqconvert demo
    """


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Of the graph, the weights and the training.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Of the float training and of each fine-tuning.")] = 50,
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


def main() -> None:
    """The entry point of the console script ``dqconvert``."""
    app(prog_name="dqconvert")

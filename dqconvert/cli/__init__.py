"""The command line. Each command is a function of this package, which imports what it needs only when it runs.

To add a command: a function in a file here, whose docstring is its help and ends with an example, and its name in
``COMMANDS``. Options that others have, too, are in :mod:`dqconvert.commands.options`; a parameter that is a dataclass
there stands for an option for each of its fields. ``dqconvert bench`` is a group of its own.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dqconvert import __version__
from dqconvert.cli.bench import bench
from dqconvert.cli.demo import demo
from dqconvert.cli.groups import flat
from dqconvert.cli.look import compare, evaluate, inspect, run
from dqconvert.cli.make import convert, export, finetune, search_bits
from dqconvert.errors import DQConvertError, UsageError

COMMANDS = (demo, convert, finetune, search_bits, export, inspect, run, compare, evaluate)
"""In the order of the help."""


class _Commands(TyperGroup):
    """The group of all commands. Every :class:`DQConvertError` ends here: one line on stderr, exit code 1 or 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DQConvertError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"dqconvert: {'; '.join(str(error).splitlines())}", err=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error


app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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
    """Turn a float PyTorch Geometric model into a trainable Degree-Quant model, and that into an integer model.

    Exit codes: 0 done, 1 failed, 2 wrong usage (a name, an option or its value).

    Example: dqconvert demo
    """


for function in COMMANDS:
    app.command(function.__name__.replace("_", "-"))(flat(function))
app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the console script ``dqconvert``."""
    app(prog_name="dqconvert")

"""What the commands of ``dqconvert bench`` share: which cases to measure, progress, and how results are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from dqconvert.bench.case import Case


def workloads(
    names: Sequence[str] | None,
    edges: Sequence[int] | None,
    features: Sequence[int] | None,
    *,
    scale: float,
    root: str | None,
) -> list[Case]:
    """Returns a case for each workload and size that was asked for."""
    from dqconvert.bench.case import Case
    from dqconvert.bench.workloads import WORKLOADS

    found = once(name.upper() for name in names) if names else list(WORKLOADS)
    check_names("--workload", found, list(WORKLOADS))
    fixed = [name for name in found if not WORKLOADS[name].grows]
    if (edges or features) and fixed:
        growing = ", ".join(name for name, workload in WORKLOADS.items() if workload.grows)
        raise typer.BadParameter(f"--edges and --features do not apply to {fixed[0]}: choose --workload of {growing}.")
    widths: Sequence[int | None] = features or [None]
    numbers: Sequence[int | None] = edges or [None]
    return [
        Case(workload=name, scale=scale, edges=number, features=width, root=root)
        for name in found
        for width in widths
        for number in numbers
    ]


def cases_of(names: Sequence[str] | None, known: Sequence[str], *, scale: float, root: Path | None) -> list[Case]:
    """Returns a case for each workload that was asked for, at one size."""
    from dqconvert.bench.case import Case

    found = once(name.upper() for name in names) if names else known
    check_names("--workload", found, known)
    return [Case(workload=name, scale=scale, root=None if root is None else str(root)) for name in found]


def own_model(factory: str, kwargs: str | None, example: str) -> list[Case]:
    """Returns the case of the user's own model."""
    from dqconvert.bench.case import Case

    return [Case(factory=factory, kwargs=kwargs, example=example)]


def check_names(option: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises unless all names are known."""
    for name in names:
        if name not in allowed:
            raise typer.BadParameter(f"{option}: there is no {name!r}: choose from {', '.join(allowed)}.")


def once(values: Any) -> list[Any]:
    """Returns the values without repeats, in order."""
    return list(dict.fromkeys(values))


def begin(chart: Path | None) -> None:
    """Checks the chart's path and warns of spinning threads, before the work rather than after it."""
    from dqconvert.bench.charts import check_chart
    from dqconvert.bench.environment import spinning

    if chart is not None:
        check_chart(chart)
    if (warning := spinning()) is not None:
        typer.echo(f"dqconvert: {warning}", err=True)


@contextmanager
def progress_bar(*, silent: bool) -> Iterator[Progress]:
    """Shows progress on stderr, if both streams are terminals."""
    from rich.console import Console
    from rich.progress import Progress

    stdout, stderr = Console(), Console(stderr=True)
    silent = silent or not (stdout.is_terminal and stderr.is_terminal)
    with Progress(console=stderr, transient=True, disable=silent) as progress:
        yield progress


def end(result: Any, show: Any, draw: Any, *, chart: Path | None, as_json: bool) -> None:
    """Writes the chart, and prints the result."""
    import json

    from rich.console import Console

    if chart is not None:
        draw(result, chart)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
        return
    console = Console()
    show(result, console if console.is_terminal else Console(width=80))
    if chart is not None:
        typer.echo(f"{chart}: written")

"""``dqconvert inspect``: shows a prepared or an integer file in several formats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from dqconvert.checkpoint.container import is_prepared
from dqconvert.checkpoint.schema import made
from dqconvert.checkpoint.view import integer_graphs, read_integer, view_file, view_live
from dqconvert.commands.convert import float_model, usage
from dqconvert.commands.options import Source
from dqconvert.errors import CheckpointError, CommandError, UsageError
from dqconvert.files import check_target, write_file
from dqconvert.lower import IntegerReport
from dqconvert.prepare import prepare
from dqconvert.qconfig import as_qconfig
from dqconvert.show.code import code_of
from dqconvert.show.diff import diff_rows
from dqconvert.show.integer import integer_code, integer_lines
from dqconvert.show.page import integer_page, page_of
from dqconvert.show.tree import LEFT, tree_lines
from dqconvert.show.view import View
from dqconvert.words import article, kind_of

_WIDTH = 80
_HALF = 36


def inspect(
    source: Source,
    *,
    qconfig: str = "int8-dq",
    form: str = "graph",
    html: Path | None = None,
    comparison: Path | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Shows a prepared or an integer file, or what ``convert`` would make of a float checkpoint.

    Args:
        source: The file, and for a float checkpoint what builds its model.
        qconfig: For a float checkpoint, what to prepare it with.
        form: ``graph``, ``code``, ``report`` or ``diff``.
        html: Where to write the page instead.
        comparison: What ``compare --json`` printed, to color the layers of the page by.
        force: Replace a page that exists.
        as_json: Print everything as JSON instead.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    ratios: dict[str, float] = {}
    if html is not None:
        check_target(html, overwrite=force)
    if comparison is not None:
        if html is None:
            raise UsageError("--comparison colors the page that --html writes: give both.")
        ratios = _ratios(comparison)
    if is_prepared(source.checkpoint) and (document := read_integer(source.checkpoint)) is not None:
        _inspect_integer(document, form, html=html, ratios=ratios, as_json=as_json)
        return
    facts, view = _view(source, qconfig)
    if html is not None:
        _write(html, page_of(view, ratios))
    elif as_json:
        typer.echo(json.dumps({**facts, **view.to_dict()}, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=False)
        console = console if console.is_terminal else Console(highlight=False, width=_WIDTH, no_color=True)
        _FORMS[form](view, console)


def _write(html: Path, page: str) -> None:
    write_file(html, [page.encode()])
    typer.echo(f"{html}: open it in a browser")


def _ratios(path: Path) -> dict[str, float]:
    """Returns the ratios of a comparison by the path of a quantizer; infinite where nothing differs."""
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        exact = {layer["path"]: math.inf if layer["max_error"] == 0 else -math.inf for layer in layers}
        return exact | {layer["path"]: float(layer["sqnr_db"]) for layer in layers if layer["sqnr_db"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"--comparison {path}: is not what `dqconvert compare --json` prints ({kind_of(error)}: {error})."
        ) from error


def _inspect_integer(
    document: dict[str, Any], form: str, *, html: Path | None, ratios: Mapping[str, float], as_json: bool
) -> None:
    if form == "diff":
        raise UsageError("an integer file has no --diff: inspect the prepared file that it was made of.")
    report = made(IntegerReport, document["report"])
    if html is not None:
        held: dict[str, list[tuple[str, str]]] = {}
        for place in report.places:
            grid = f"(code - {place.zero}) x {place.scale:.4g}{', two codes to a byte' if place.packed else ''}"
            held.setdefault(place.node, []).append((place.path, grid))
        floats = {one.node: one.reason for one in report.floats}
        graphs = integer_graphs(document)
        method = document.get("method", "forward")
        page = integer_page(
            report.model, graphs, method=method, held=held, floats=floats, notes=report.remarks, ratios=ratios
        )
        _write(html, page)
        return
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    elif form == "graph":
        lines = integer_lines(integer_graphs(document))
        typer.echo("\n".join([f"integer module of {article(document['model'])}", *lines]))
    elif form == "code":
        typer.echo(integer_code(integer_graphs(document)[""]))
    else:
        typer.echo(str(report))


def _view(source: Source, qconfig: str) -> tuple[dict[str, Any], View]:
    if is_prepared(source.checkpoint):
        return view_file(source.checkpoint)
    if source.factory is None and not source.trust_pickle:
        raise CheckpointError(
            f"{source.checkpoint}: is not a file that dqconvert wrote, or is damaged. If it is a float checkpoint, say "
            f"what builds its model, with --model pkg.mod:name."
        )
    model, _ = float_model(source)
    with usage():
        return view_live(prepare(model, as_qconfig(qconfig)).module)


def _graph(view: View, console: Console) -> None:
    lines = tree_lines(view)
    for number, line in enumerate(lines):
        left = Text(f"{line.left:<{LEFT}}" if line.right else line.left, style="bold" if number == 0 else "")
        console.print(left.append(line.right, style="green"), soft_wrap=True)


def _code(view: View, console: Console) -> None:
    if console.is_terminal:
        console.print(Syntax(code_of(view), "python", theme="ansi_dark", background_color="default"))
    else:
        typer.echo(code_of(view))


def _report(view: View, console: Console) -> None:
    console.print(view.report)


def _diff(view: View, console: Console) -> None:
    console.print(Text(f"{'float':<{_HALF}} | rewritten", style="bold"), soft_wrap=True)
    for row in diff_rows(view):
        left = row.left if len(row.left) <= _HALF else f"…{row.left[1 - _HALF :]}"
        text = Text(f"{left:<{_HALF}} | ").append(row.right, style="green" if row.inserted else "")
        text.rstrip()
        console.print(text, soft_wrap=True)


_FORMS: Mapping[str, Callable[[View, Console], None]] = {
    "graph": _graph,
    "code": _code,
    "report": _report,
    "diff": _diff,
}

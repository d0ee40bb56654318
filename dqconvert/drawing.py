"""Charts with matplotlib (the extra ``plot``)."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

from dqconvert.errors import CommandError, UsageError
from dqconvert.files import check_target, write_file
from dqconvert.words import kind_of

_ENDINGS = (".png", ".svg", ".pdf")


def check_drawing(path: str | os.PathLike[str], name: str = "plot") -> None:
    """Makes sure, before any work is done, that a chart can be drawn and written.

    Args:
        name: What the user calls the chart, for the message.

    Raises:
        CommandError: If matplotlib is missing or does not write such files.
        CheckpointError: If the file cannot be written.

    Example:
        >>> check_drawing("chart.bmp", "--chart")
        Traceback (most recent call last):
            ...
        dqconvert.errors.UsageError: --chart chart.bmp: must end in .png, .svg, .pdf.
    """
    if not isinstance(path, str | os.PathLike):
        raise CommandError(f"{name}: takes the path of a file that ends in {', '.join(_ENDINGS)}, got {kind_of(path)}.")
    if Path(path).suffix.lower() not in _ENDINGS:
        raise UsageError(f"{name} {path}: must end in {', '.join(_ENDINGS)}.")
    check_target(path)
    _matplotlib(name)


def new_figure(panels: int, height: float = 2.6) -> tuple[Any, list[Any]]:
    """A matplotlib figure, and its panels below one another, each so many inches high."""
    # A figure of its own, not pyplot's: no window system is looked for, and nothing is left behind.
    figure = _matplotlib("a plot").Figure(figsize=(9, height * panels), layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False)[:, 0])


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure, in the format that the path ends in."""
    contents = io.BytesIO()
    figure.savefig(contents, format=Path(path).suffix.lower()[1:], dpi=150)
    write_file(path, [contents.getbuffer()])


def _matplotlib(name: str) -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise CommandError(
            f"{name} needs matplotlib, which cannot be imported ({error}): pip install 'dqconvert[plot]'"
        ) from error

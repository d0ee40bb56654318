"""Charts with matplotlib (the extra ``plot``)."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#8c6bb1", "#555555", "#8fbf3f")
"""Colors that are told apart, also by the color-blind: no two of them are blues. After Okabe and Ito, 2008."""

_STYLE: dict[str, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dqconvert",
}


@contextmanager
def chart(
    path: str | os.PathLike[str], rows: int, columns: int = 1, *, size: tuple[float, float] = (9, 2.6)
) -> Iterator[tuple[Any, list[Any]]]:
    """A matplotlib figure and its panels, in letters that can be read from a slide; written at the end.

    Args:
        path: Where to write it, in the format that it ends in, see :func:`check_drawing`.
        rows: Of panels.
        columns: Of panels.
        size: Of one panel, in inches.

    Raises:
        CommandError: If matplotlib is missing.
        CheckpointError: If the file cannot be written.
    """
    figures, base = _matplotlib("a plot"), importlib.import_module("matplotlib")
    cycle = importlib.import_module("cycler").cycler(color=PALETTE)
    with base.rc_context({**_STYLE, "axes.prop_cycle": cycle}):
        # A figure of its own, not pyplot's: no window system is looked for, and nothing is left behind.
        figure = figures.Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)
        contents = io.BytesIO()
        figure.savefig(contents, format=Path(path).suffix.lower()[1:], dpi=150)
    write_file(path, [contents.getbuffer()])


def log_axis(axes: Any, name: str) -> None:
    """Makes the ``"x"`` or the ``"y"`` axis of a panel logarithmic, with plain numbers: 0.5, 2, 100."""
    ticks = importlib.import_module("matplotlib.ticker")
    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(ticks.LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_minor_formatter(ticks.NullFormatter())


def _matplotlib(name: str) -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise CommandError(
            f"{name} needs matplotlib, which cannot be imported ({error}): pip install 'dqconvert[plot]'"
        ) from error

"""The pages' transcripts, run as they stand: their files are written, their commands typed, their output compared."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dqconvert.cli import app

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "examples/GUIDE.md")
BLOCK = re.compile(r"^```(?P<kind>python file=(?P<file>\S+)|console)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE)
NUMBER = re.compile(r"(\d[\d,]*(?:\.\d+)?)")
POINTS = 6.0
"""How far a share may be off on another machine, whose sums of floats round elsewhere, in points of a percent."""


def transcripts() -> Iterator[object]:
    """Yields, for each page's section with a transcript, the blocks to write or to run in order."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
            blocks = list(BLOCK.finditer(section))
            if any(block["kind"] == "console" for block in blocks):
                title = section.splitlines()[0].removeprefix("## ")
                marks = [pytest.mark.study] if page != "README.md" else []
                yield pytest.param(blocks, id=f"{Path(page).stem}: {title}", marks=marks)


@pytest.mark.parametrize("blocks", list(transcripts()))
@pytest.mark.filterwarnings("ignore")
def test_transcripts_run_as_they_stand(
    blocks: list[re.Match[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks:
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["body"], encoding="utf-8")
            monkeypatch.delitem(sys.modules, Path(block["file"]).stem, raising=False)
            continue
        for step in COMMAND.finditer(block["body"]):
            printed = run(shlex.split(step["command"]), capsys)
            assert alike(step["output"].splitlines(), printed.splitlines()), f"{step['command']}\n{printed}"


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command in this process, which has imported torch already, and returns what it prints."""
    program, *arguments = words
    if program == "python":
        (file,) = arguments
        runpy.run_path(file, run_name="__main__")
        return capsys.readouterr().out
    assert program == "dqconvert"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def alike(wanted: list[str], found: list[str]) -> bool:
    """True if lines say the same: ``...`` is any lines, shares and times may differ as machines do, all else may not.

    Example:
        >>> alike(["12 quantizers", "...", "int8: 66 %, in 3 ms"], ["12 quantizers", "a", "b", "int8: 68 %, in 9 ms"])
        True
        >>> alike(["12 quantizers"], ["13 quantizers"]), alike(["66 %"], ["76 %"])
        (False, False)
    """
    if not wanted:
        return not found
    if wanted[0] == "...":
        return any(alike(wanted[1:], found[skipped:]) for skipped in range(len(found) + 1))
    return bool(found) and _line_alike(wanted[0], found[0]) and alike(wanted[1:], found[1:])


def _line_alike(wanted: str, found: str) -> bool:
    ours, theirs = NUMBER.split(wanted), NUMBER.split(found)  # text and numbers by turns
    if ours[::2] != theirs[::2]:
        return False
    for one, other, unit in zip(ours[1::2], theirs[1::2], ours[2::2], strict=True):
        if re.match(r" ?%", unit):
            same = abs(_value(one) - _value(other)) <= POINTS
        else:
            same = one == other or re.match(r" (ms|s|dB)\b", unit) is not None
        if not same:
            return False
    return True


def _value(number: str) -> float:
    return float(number.replace(",", ""))

"""The README's transcripts, run as they stand: its files are written, its commands typed, its output compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dqconvert

README = Path(dqconvert.__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(?P<kind>python file=(?P<file>\S+)|console)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE)


def sections():
    """The README's sections that hold transcripts: title, and what to write or run in order."""
    if not README.exists():
        return
    for section in re.split(r"^(?=## )", README.read_text(encoding="utf-8"), flags=re.MULTILINE):
        blocks = list(BLOCK.finditer(section))
        if any(block["kind"] == "console" for block in blocks) and any(block["file"] for block in blocks):
            yield pytest.param(blocks, id=section.splitlines()[0].removeprefix("## "))


@pytest.mark.parametrize("blocks", list(sections()))
def test_transcripts_run_as_they_stand(blocks, tmp_path):
    path = os.pathsep.join([str(README.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    for block in blocks:
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["body"])
            continue
        for step in COMMAND.finditer(block["body"]):
            words = step["command"].replace("dqconvert ", "-m dqconvert ").replace("python ", "")
            command = [sys.executable, *words.split()]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
            assert done.returncode == 0, f"{step['command']}\n{done.stderr}"
            assert re.fullmatch(pattern(step["output"]), done.stdout), f"{step['command']}\n{done.stdout}"


def pattern(output):
    """What a transcript's output matches: ``...`` is anything, and numbers may be others."""
    lines = []
    for line in output.splitlines():
        lines.append(r"(?:.*\n)*" if line == "..." else re.sub(r"\d+", r"\\d+", re.escape(line)) + r"\n")
    return "".join(lines)

"""Odd graphs, in a process of their own where a crash could hide; `tests/odd_graphs.py` says what may come of them.

`DQCONVERT_FUZZ=2000` runs as many instead of a few.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = os.environ.get("DQCONVERT_FUZZ", "")
STUDY = pytest.mark.study


@pytest.mark.parametrize(
    ("seed", "kinds", "guard", "count"),
    [
        (1, ["GCN", "Pooled"], [], 10),
        (2, ["GIN", "Weighted"], ["--guard"], 10),
        pytest.param(3, ["GCN", "Pooled", "GIN", "SAGE max", "GAT", "Weighted"], ["--guard"], 200, marks=STUDY),
    ],
    ids=["odd", "between pages that nobody may touch", "many"],
)
def test_odd_graphs_are_an_error_or_right(seed, kinds, guard, count):
    count = COUNT or str(count)
    command = [
        sys.executable,
        "-m",
        "tests.odd_graphs",
        "--count",
        count,
        "--seed",
        str(seed),
        "--kinds",
        *kinds,
        *guard,
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert found.returncode == 0, f"exit code {found.returncode}\n{found.stdout[-500:]}\n{found.stderr[-6000:]}"
    assert "fused: a result" in found.stdout
    assert "integer: our error" in found.stdout

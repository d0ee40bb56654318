"""Odd graphs, in a process of their own where a crash could hide; `tests/odd_graphs.py` says what may come of them.

`DQCONVERT_FUZZ=2000` runs as many instead of a few.
"""

from __future__ import annotations

import os

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
def test_odd_graphs_are_an_error_or_right(seed, kinds, guard, count, spare):
    count = COUNT or str(count)
    found = spare.run_module("tests.odd_graphs", "--count", count, "--seed", seed, "--kinds", *kinds, *guard)
    assert found.returncode == 0, f"exit code {found.returncode}\n{found.stdout[-500:]}\n{found.stderr[-6000:]}"
    assert "fused: a result" in found.stdout
    assert "integer: our error" in found.stdout

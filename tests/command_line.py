"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dqconvert


def dqconvert_command(*args: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m dqconvert`` as a process of its own."""
    root = Path(dqconvert.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "dqconvert", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)

"""Machine, versions and date of a measurement, recorded with every result."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numba
import torch
import torch_geometric

from dqconvert import __version__

_WAIT_POLICY = "OMP_WAIT_POLICY"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Processor, threads, versions and date of a measurement.

    Attributes:
        cpu: The processor's model.
        cores: Cores that this process may run on.
        threads: Threads that were used.
        omp_wait_policy: The environment variable; ``None``: not set.
        date: When, in UTC.
    """

    cpu: str
    cores: int
    threads: int
    torch: str
    torch_geometric: str
    numba: str
    dqconvert: str
    python: str
    omp_wait_policy: str | None
    date: str

    def __str__(self) -> str:
        versions = f"torch {self.torch}, PyG {self.torch_geometric}, numba {self.numba}, dqconvert {self.dqconvert}"
        waiting = f"{_WAIT_POLICY}={self.omp_wait_policy or '(not set)'}"
        return f"{self.cpu}, {self.cores} cores, {self.threads} threads; {versions}; {waiting}; {self.date}"


def environment(threads: int) -> Environment:
    """Returns the environment of this process."""
    return Environment(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=threads,
        torch=torch.__version__,
        torch_geometric=torch_geometric.__version__,
        numba=numba.__version__,
        dqconvert=__version__,
        python=platform.python_version(),
        omp_wait_policy=os.environ.get(_WAIT_POLICY),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def spinning() -> str | None:
    """Returns a warning if waiting threads keep a core busy, which blurs every measurement; ``None`` if they do not."""
    value = os.environ.get(_WAIT_POLICY)
    if (value or "").lower() == "passive":
        return None
    state = "is not set" if value is None else f"is {value!r}"
    return f"{_WAIT_POLICY} {state}: threads that wait may spin and blur the times: set it to passive."


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()

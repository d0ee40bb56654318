"""Peak memory of a training step, measured in a process of its own: ``python -m dqconvert.bench.memory``.

What is measured is how far the process's resident memory rises above what it was before the first step: activations,
gradients, the optimizer's state, buffers, and whatever a kernel keeps for the next step. Model, data, and libraries
that a step loads or compiles are not in it: a whole step on copies of model and data comes first.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import typer

import dqconvert
from dqconvert.bench.case import Case, build
from dqconvert.bench.variants import Variant, step_of
from dqconvert.errors import CommandError, DQConvertError
from dqconvert.kernels import release_memory

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_MIB = 1 << 20


@dataclass(frozen=True)
class Peak:
    """Resident memory of a process, in MiB.

    Attributes:
        before: Before the first step: interpreter, libraries, model and data.
        rise: How far above that the highest point of the steps was.
    """

    before: float
    rise: float


def why_not_measurable() -> str | None:
    """Why this system does not say how much memory a step takes; ``None``: it does.

    Example:
        >>> why_not_measurable() is None or "Linux" in why_not_measurable()
        True
    """
    if _STATUS.exists() and "VmHWM" in _STATUS.read_text() and os.access(_RESET, os.W_OK):
        return None
    return "it is read from Linux's /proc/self/status and reset by /proc/self/clear_refs, which is missing here"


def peak_of(step: Callable[[], object], repeats: int = 2) -> Peak:
    """Peak memory of this process while it takes a step, over that before.

    Args:
        step: What to do.
        repeats: How many times. The second training step has the optimizer's state as well.

    Raises:
        CommandError: If this system does not tell.

    Example:
        >>> peak_of(lambda: torch.ones(16 << 18)).rise >= 15.5  # 16 MiB
        True
    """
    if (reason := why_not_measurable()) is not None:
        raise CommandError(reason)
    gc.collect()
    release_memory()
    _return_freed_memory()
    _RESET.write_text("5")  # VmHWM, the highest resident memory so far, becomes the present one
    before = _status("VmRSS")
    for _ in range(repeats):
        step()
    return Peak(before, max(0.0, _status("VmHWM") - before))


def measure(case: Case, variant: Variant, threads: int) -> Peak:
    """Peak memory of a variant's training step, in a fresh process.

    Raises:
        CommandError: If that process fails; the message has its last line.
    """
    request = json.dumps({"case": asdict(case), "variant": asdict(variant), "threads": threads})
    package = Path(dqconvert.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, request],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CommandError(f"the memory of a step of {variant.name!r} could not be measured: {last}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _main(request: str) -> None:
    wanted = json.loads(request)
    torch.set_num_threads(wanted["threads"])
    step = step_of(Variant(**wanted["variant"]), build(Case(**wanted["case"])))
    step.copy()()  # loads libraries and compiled kernels
    typer.echo(json.dumps(asdict(peak_of(step))))


def _status(field: str) -> float:
    """A field of the process's status, in MiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / _MIB


def _return_freed_memory() -> None:
    """To the system: what glibc keeps would else be taken again unseen. Other C libraries keep little."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except DQConvertError as error:
        sys.exit(str(error))

"""What a forward costs besides time: peak memory of this process, and the bytes of a module's file."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

from dqconvert.checkpoint import save
from dqconvert.errors import CommandError
from dqconvert.kernels import release_memory
from dqconvert.trace.doors import DoorModule

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_MIB = 1 << 20


def file_bytes(module: nn.Module) -> int:
    """Returns the size of a module's file: :func:`dqconvert.save`'s, or a float model's tensors in safetensors.

    Raises:
        CheckpointError: If it cannot be saved.
    """
    if not isinstance(module, DoorModule):
        return len(safetensors.torch.save(dict(module.state_dict())))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(module, path)
        return path.stat().st_size


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
    """Returns why memory cannot be measured on this system; ``None`` if it can."""
    if _STATUS.exists() and "VmHWM" in _STATUS.read_text() and os.access(_RESET, os.W_OK):
        return None
    return "it is read from Linux's /proc/self/status and reset by /proc/self/clear_refs, which is missing here"


def peak_of(step: Callable[[], object], repeats: int = 2) -> Peak:
    """Returns the peak memory of this process during a step, above that before.

    Args:
        repeats: How many times. The second training step has the optimizer's state as well.

    Raises:
        CommandError: If this system does not tell.
    """
    if (reason := why_not_measurable()) is not None:
        raise CommandError(reason)
    gc.collect()
    release_memory()
    _RESET.write_text("5")  # VmHWM, the highest resident memory so far, becomes the present one
    before = _status("VmRSS")
    for _ in range(repeats):
        step()
    return Peak(before, max(0.0, _status("VmHWM") - before))


def _status(field: str) -> float:
    """Returns a field of the process's status, in MiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / _MIB

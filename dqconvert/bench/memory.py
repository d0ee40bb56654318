"""Peak memory of a training step or a forward, measured in a process of its own: ``python -m dqconvert.bench.memory``.

What is measured is how far the process's resident memory rises above what it was before the first step: activations,
gradients, the optimizer's state, buffers, and whatever a kernel keeps for the next step. Model, data, and libraries
that a step loads or compiles are not in it: a whole step on copies of model and data comes first, before a forward one
on a small part of the data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import typer

import dqconvert
from dqconvert.bench.case import Case, build
from dqconvert.bench.costs import Peak, peak_of
from dqconvert.bench.engines import Engine, forward_of
from dqconvert.bench.variants import Variant, step_of
from dqconvert.errors import CommandError, DQConvertError


def measure(case: Case, variant: Variant, threads: int) -> Peak:
    """Returns the peak memory of a variant's training step, in a fresh process.

    Raises:
        CommandError: If that process fails; the message has its last line.
    """
    return _in_a_process(case, variant, threads)["step"]


def measure_forward(case: Case, engine: Engine, threads: int) -> tuple[Peak, Peak]:
    """Returns the peak memory of an engine's forward in a fresh process: on the known graph, and on a new one.

    Before the one on the known graph lies what the first forward made of that graph; the one on a new graph has the
    known one's beside it.

    Raises:
        CommandError: If that process fails; the message has its last line.
    """
    found = _in_a_process(case, engine, threads)
    return found["warm"], found["cold"]


def _in_a_process(case: Case, measured: Variant | Engine, threads: int) -> dict[str, Peak]:
    request = {"case": asdict(case), type(measured).__name__: asdict(measured), "threads": threads}
    package = Path(dqconvert.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CommandError(f"the memory of a step of {measured.name!r} could not be measured: {last}")
    return {name: Peak(**peak) for name, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def _main(request: str) -> None:
    wanted = json.loads(request)
    torch.set_num_threads(wanted["threads"])
    case = Case(**wanted["case"])
    if "Engine" in wanted:
        peaks = _forward_peaks(Engine(**wanted["Engine"]), case)
    else:
        step = step_of(Variant(**wanted["Variant"]), build(case))
        step.copy()()  # loads libraries and compiled kernels
        peaks = {"step": peak_of(step)}
    typer.echo(json.dumps({name: asdict(peak) for name, peak in peaks.items()}))


def _forward_peaks(engine: Engine, case: Case) -> dict[str, Peak]:
    subject = build(case)
    forward = forward_of(engine, subject)
    forward_of(engine, subject, example=True).warm()
    forward.warm()
    warm = peak_of(forward.warm, repeats=1)
    forward.renew()
    return {"warm": warm, "cold": peak_of(forward.cold, repeats=1)}


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except DQConvertError as error:
        sys.exit(str(error))

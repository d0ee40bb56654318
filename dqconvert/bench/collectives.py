"""What ranks say to each other in a training step, measured by two processes of ``dqconvert.bench.collectives``.

Counted are all collectives of a settled step: those by which ranks observe together, and those by which
``DistributedDataParallel`` averages gradients.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import dqconvert
from dqconvert.bench.plan import TRAINING, Between, Wanted
from dqconvert.bench.plan_subject import subject_of
from dqconvert.bench.workloads import Size
from dqconvert.errors import CommandError, DQConvertError
from dqconvert.prepare import prepare

_SETTLED = 12
"""Training steps after which ranges of the small graphs hardly grow."""
_LARGE = 1 << 22
"""Values of the all-reduce by which the bandwidth is measured: 16 MiB."""


def collectives_of(step: Callable[[], object]) -> int:
    """Returns how many collectives of ``torch.distributed`` a call makes, ours and all others."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("c10d::"))


def measure(wanted: Wanted) -> Between:
    """Returns what two ranks of this model say to each other, over gloo.

    Raises:
        CommandError: If a process fails; the message has its last line.
    """
    package = Path(dqconvert.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    environment = {"KINETO_LOG_LEVEL": "6", **os.environ, "PYTHONPATH": path}  # notes of the profiler
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        requests = [{"wanted": asdict(wanted), "rank": rank, "place": f"file://{folder}/group"} for rank in range(2)]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, json.dumps(request)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for request in requests
        ]
        try:
            ended = [process.communicate(timeout=300) for process in started]
        except subprocess.TimeoutExpired as error:
            raise CommandError("two processes of this machine could not speak to each other over gloo") from error
        finally:
            for process in started:
                process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        if process.returncode != 0:
            last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise CommandError(f"what two ranks say to each other could not be measured: {last}")
    return Between(**json.loads(ended[0][0].splitlines()[-1]))


def _main(request: str) -> None:
    given = json.loads(request)
    size, fanout = Size(**given["wanted"].pop("size")), tuple(given["wanted"].pop("fanout"))
    wanted, rank = Wanted(size=size, fanout=fanout, **given["wanted"]), given["rank"]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=given["place"], rank=rank, world_size=2)
    torch.manual_seed(0)
    subject = subject_of(wanted, 1_000, 4_000)
    args, kwargs = subject.inputs.call()

    def step_of(module: Any) -> Callable[[], object]:
        ddp = DistributedDataParallel(module.train())

        def step() -> None:
            ddp(*args, **kwargs).square().mean().backward()

        return step

    modules = {"float": subject.model, wanted.qconfig: prepare(subject.model, wanted.qconfig, subject.example).module}
    calls = {}
    for name, module in modules.items():
        step = step_of(module)
        for _ in range(_SETTLED):
            step()
        calls[f"{TRAINING}{name}"] = collectives_of(step)
    parameters = sum(parameter.nbytes for parameter in subject.model.parameters())
    small, large = torch.zeros(18, dtype=torch.int64), torch.zeros(_LARGE)
    latency = statistics.median(_seconds(small) for _ in range(50))
    seconds = min(_seconds(large) for _ in range(5))
    found = Between(calls=calls, parameters=parameters, latency=latency, bandwidth=large.nbytes / seconds)
    distributed.destroy_process_group()
    typer.echo(json.dumps(asdict(found)))


def _seconds(values: torch.Tensor) -> float:
    start = time.perf_counter()
    distributed.all_reduce(values)
    return time.perf_counter() - start


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except DQConvertError as error:
        sys.exit(str(error))

"""What ``dqconvert bench plan`` measures: training steps and forwards on small generated graphs, and the machine."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dqconvert.bench import collectives
from dqconvert.bench.bandwidth import copy_bandwidth
from dqconvert.bench.case import Subject
from dqconvert.bench.costs import peak_of, why_not_measurable
from dqconvert.bench.engines import EDGE_INDEX, forward_of, forward_with, mirrored
from dqconvert.bench.environment import environment
from dqconvert.bench.laws import FLOAT_BYTES, Machine, fit
from dqconvert.bench.operations import moved_bytes
from dqconvert.bench.plan import TRAINING, Checked, Laws, Plan, Wanted, rows_of
from dqconvert.bench.plan_subject import subject_of
from dqconvert.bench.timing import interleave, threads, ticker
from dqconvert.bench.variants import Step
from dqconvert.convert import convert
from dqconvert.prepare import prepare

_VALUES = 1 << 22
"""Of the features of the largest graph that is measured, and of its messages over four: below a second in float."""
_PARTS = ((1, 1), (1, 4), (4, 1), (4, 4), (16, 4))
"""By how much nodes and edges of the graphs measured are fewer than those of the largest."""
_CHECKED = ((1, 2), (2, 2), (4, 4))
"""How many times as many nodes and edges the graphs have on which a plan is checked."""
_SETTLED = 8
"""Training steps after which ranges hardly grow."""
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A training step or a forward, measured.

    Attributes:
        seconds: The shortest time.
        memory: Bytes at its highest point above those before it; ``None``: this system does not tell.
        traffic: Bytes of what operations took and made.
    """

    seconds: float
    memory: float | None
    traffic: int


def run(wanted: Wanted, *, link: float | None = None, check: bool = False, progress: Progress | None = None) -> Plan:
    """Measures this machine, and plans.

    Args:
        link: Bytes per second between ranks; ``None``: those between two processes of this machine.
        check: Whether to measure at three larger sizes, too, and compare.

    Raises:
        DQConvertError: If the model cannot be prepared so.
    """
    start = time.perf_counter()
    with threads(wanted.threads), torch.random.fork_rng(devices=[]):
        between = None
        if wanted.ranks > 1:
            between = collectives.measure(wanted)
            between = between if link is None else replace(between, bandwidth=link)
        here, models = machine(wanted), Models(wanted)
        laws = laws_of(models, here, progress)
        checked = tuple(_checks(models, here, laws, progress)) if check else ()
    return Plan(
        wanted=wanted,
        environment=environment(wanted.threads),
        machine=here,
        laws=laws,
        between=between,
        rows=rows_of(wanted, here, laws, between),
        checked=checked,
        seconds=time.perf_counter() - start,
    )


def machine(wanted: Wanted) -> Machine:
    """Measures this machine, on as many threads as torch uses."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    row = FLOAT_BYTES * wanted.size.hidden
    tables, clock = [mib << 20 for mib in (1, 4, 16, 64, 256, 1024) if 16 * (mib << 20) < memory], _clock(wanted)
    return Machine(
        bandwidth=copy_bandwidth(), gather=tuple((table, _gather(table, row, clock)) for table in tables), memory=memory
    )


def _clock(wanted: Wanted) -> Callable[[], float]:
    """Returns what to measure by: on one thread the processor's time, which other work does not stretch."""
    return time.process_time if wanted.threads == 1 else time.perf_counter


def _gather(
    table_bytes: int, row_bytes: int, clock: Callable[[], float], rows: int = 1 << 16, repeats: int = 3
) -> float:
    """Returns the seconds per byte of rows read at random from a table, into a buffer that stays in the cache."""
    table = torch.zeros(max(1, table_bytes // row_bytes), row_bytes, dtype=torch.uint8)
    draw, few = torch.Generator().manual_seed(0), max(1, (1 << 18) // row_bytes)
    target = torch.empty(few, row_bytes, dtype=torch.uint8)
    best = float("inf")
    for _ in range(repeats):
        chosen = torch.randint(len(table), (rows,), generator=draw).split(few)
        start = clock()
        for some in chosen:
            torch.index_select(table, 0, some, out=target[: len(some)])
        best = min(best, clock() - start)
    return best / (rows * row_bytes)


def sizes(nodes: int, edges: int, width: int) -> list[tuple[int, int]]:
    """Returns the nodes and edges to measure at: none larger than the wanted ones, nor than take a second.

    Example:
        >>> sizes(111_000_000, 1_600_000_000, 128)
        [(32768, 131072), (32768, 32768), (8192, 131072), (8192, 32768), (2048, 32768)]
    """
    most_nodes, most_edges = min(nodes, max(64, _VALUES // width)), min(edges, max(64, 4 * _VALUES // width))
    found = ((max(8, most_nodes // a), max(1, most_edges // b)) for a, b in _PARTS)
    return list(dict.fromkeys((nodes, min(edges, nodes**2 // 8)) for nodes, edges in found))  # zipf_edges' densest


class Models:
    """The models that a plan is for, made once: copies of them are measured."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        subject = subject_of(wanted, 64, 256)
        self.prepared = prepare(subject.model, wanted.qconfig, subject.example).module
        observing, (args, kwargs) = copy.deepcopy(self.prepared).train(), subject.inputs.call()
        with torch.no_grad():
            observing(*args, **kwargs)
        self.integer = convert(observing)


def laws_of(models: Models, here: Machine, progress: Progress | None = None) -> dict[str, Laws]:
    """Measures, and fits a law to each quantity of each training step and forward."""
    wanted = models.wanted
    width, found = max(wanted.size.features, wanted.size.hidden), {}
    for training in (True, False):
        largest = wanted.step_size if training else (wanted.size.nodes, wanted.size.edges)
        at = sizes(*largest, width)
        for name, measured in measure(models, at, training=training, progress=progress).items():
            integers = name.startswith(f"inference, {wanted.qconfig}")

            def points(values: Sequence[float], at: Sequence[tuple[int, int]] = at) -> list[tuple[int, int, float]]:
                return [(*size, value) for size, value in zip(at, values, strict=True)]

            memory = [one.memory for one in measured if one.memory is not None]
            found[name] = Laws(
                time=fit(points([one.seconds for one in measured]), here, width * (1 if integers else FLOAT_BYTES)),
                memory=fit(points(memory), here) if memory else None,
                traffic=fit(points([one.traffic for one in measured]), here),
            )
    return found


def _checks(models: Models, here: Machine, laws: dict[str, Laws], progress: Progress | None) -> Iterator[Checked]:
    """Yields what is planned and what is measured where it is neither fitted nor too large to be measured."""
    wanted = models.wanted
    width = max(wanted.size.features, wanted.size.hidden)
    for training in (True, False):
        nodes, edges = sizes(*(wanted.step_size if training else (wanted.size.nodes, wanted.size.edges)), width)[0]
        at = [(a * nodes, b * edges) for a, b in _CHECKED]
        for name, measured in measure(models, at, training=training, progress=progress).items():
            for size, one in zip(at, measured, strict=True):
                law = laws[name]
                yield Checked(
                    name=name,
                    nodes=size[0],
                    edges=size[1],
                    seconds=(law.time.at(*size, here), one.seconds),
                    memory=None
                    if law.memory is None or one.memory is None
                    else (law.memory.at(*size, here), one.memory),
                    traffic=(law.traffic.at(*size, here), float(one.traffic)),
                )


def measure(
    models: Models,
    at: Sequence[tuple[int, int]],
    *,
    training: bool,
    rounds: int = 3,
    progress: Progress | None = None,
) -> dict[str, list[Measured]]:
    """Measures training steps, or forwards, in float and with the config, at these sizes, all in turns.

    Where training is sampled, the graph of each step is one that was not seen before.
    """
    what = "training" if training else "inference"
    tick = ticker(progress, f"{what}, {len(at)} sizes", len(at) * (2 if training else 3) * (4 + rounds))
    memory, works = why_not_measurable() is None, dict[tuple[str, int], _Work]()
    peaks, traffic = {}, {}
    for place, (nodes, edges) in enumerate(at):
        for name, work in (_trained if training else _inferred)(models, subject_of(models.wanted, nodes, edges)):
            works[name, place] = work
            work.renew()
            work.run()
            tick()
            peaks[name, place] = _peak(work) if memory else None
            tick()
    for key, work in works.items():
        for _ in range(_SETTLED if training and key[0] != f"{TRAINING}float" else 0):
            work.renew()
            work.run()
        work.renew()
        with _Traffic() as counter:
            work.run()
        traffic[key] = counter.moved
        tick()
    named = {f"{name} {place}": work for (name, place), work in works.items()}
    runs = {name: work.run for name, work in named.items()}
    clock = _clock(models.wanted)
    found = interleave(runs, rounds, tick=tick, before=lambda name: named[name].renew(), clock=clock)
    result: dict[str, list[Measured]] = {}
    for name, place in works:
        seconds = found[f"{name} {place}"].minimum
        one = Measured(seconds=seconds, memory=peaks[name, place], traffic=traffic[name, place])
        result.setdefault(name, []).append(one)
    return result


@dataclass(frozen=True)
class _Work:
    """What to run, and what to do before each time."""

    run: Callable[[], object]
    renew: Callable[[], object] = lambda: None
    fresh: Callable[[], object] | None = None
    """The same with nothing in its memory yet."""


def _peak(work: _Work) -> float:
    work.renew()
    # Once: the C library may put what a second step allocates beside what the first one freed.
    return _MIB * peak_of(work.fresh or work.run, repeats=1).rise


def _trained(models: Models, subject: Subject) -> Iterator[tuple[str, _Work]]:
    for name, module in (("float", subject.model), (models.wanted.qconfig, models.prepared)):
        step = Step(copy.deepcopy(module), subject.inputs, subject.target)
        renew = (lambda: None) if models.wanted.batch is None else _Renewal(step)
        yield f"{TRAINING}{name}", _Work(step, renew, step.copy())


class _Renewal:
    """Gives a training step another graph each time, as those of sampled batches are."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graphs = step.inputs, mirrored(step.inputs)
        memory: Any = getattr(step.module, "graph_memory", None)
        if memory is not None:
            memory.results = 1  # two graphs take turns

    def __call__(self) -> None:
        self._graphs = self._graphs[1], self._graphs[0]
        self._step.take(self._graphs[0].map(Tensor.clone))


def _inferred(models: Models, subject: Subject) -> Iterator[tuple[str, _Work]]:
    yield "inference, float", _Work(forward_of(EDGE_INDEX, subject).warm)
    known, new = (forward_with(copy.deepcopy(models.integer), subject.inputs) for _ in range(2))
    yield f"inference, {models.wanted.qconfig}", _Work(known.warm)
    yield f"inference, {models.wanted.qconfig}, new graph", _Work(new.cold, new.renew)


class _Traffic(TorchDispatchMode):
    """Counts the bytes of what operations take and make."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.moved += moved_bytes((args, kwargs), result)
        return result

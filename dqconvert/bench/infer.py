"""``dqconvert bench infer``: the integer module's forward against the float model's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.progress import Progress

from dqconvert.bench import memory
from dqconvert.bench.bandwidth import copy_bandwidth
from dqconvert.bench.case import Case, build
from dqconvert.bench.costs import file_bytes, why_not_measurable
from dqconvert.bench.engines import CSR, EDGE_INDEX, Engine, Forward, forward_of, why_not
from dqconvert.bench.environment import Environment, environment
from dqconvert.bench.operations import Operation, operations
from dqconvert.bench.timing import Tick, Times, interleave, threads, ticker
from dqconvert.trace.inputs import Inputs

_MOST_ROUNDS = 20
"""Most rounds, as a multiple of the rounds asked for: what takes microseconds is not repeated for ever."""


@dataclass(frozen=True, kw_only=True)
class InferSettings:
    """The settings of a measurement.

    Attributes:
        rounds: Timed forwards of each engine at least, on the known graph and on new ones.
        seconds: Where all rounds together take less, there are more of them, up to 20 times as many.
        threads: Of torch and of our kernels.
        cold: If true, measure new graphs, too.
        memory: If true, measure memory, in a process per engine.
        phases: If true, count the time of each operation of the integer modules.
        seed: Of weights and protection.
    """

    rounds: int = 5
    seconds: float = 2.0
    threads: int = 2
    cold: bool = True
    memory: bool = True
    phases: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Times of an engine's forward, and the float model's over them.

    Attributes:
        rounds: How often it was timed.
        median_ms: Of its times.
        min_ms: Likewise.
        over_edge_index: The float forward's median with an ``edge_index`` over this one's: above 1, this is faster.
        over_csr: That with a CSR adjacency; ``None`` where the model takes none.
        min_over_edge_index: Of minima.
        min_over_csr: Likewise.
    """

    rounds: int
    median_ms: float
    min_ms: float
    over_edge_index: float
    over_csr: float | None
    min_over_edge_index: float
    min_over_csr: float | None


@dataclass(frozen=True, kw_only=True)
class InferRow:
    """One engine's measurements.

    Attributes:
        engine: What was measured.
        warm: On a graph that it knows, right behind another of its own forwards, which is not timed.
        cold: On new graphs, from the ``edge_index`` on; ``None``: not measured.
        nodes_per_second: Warm, by the median.
        build_s: Seconds that it took to get from the float model to this.
        file_bytes: Size of the model's file.
        peak_warm_mib: How far memory rises in a forward, see :mod:`dqconvert.bench.memory`; ``None``: not measured.
        peak_cold_mib: Likewise, on a new graph.
        phases: Operations of a forward on the known graph; ``None``: not counted.
        phases_cold: On new graphs, likewise.
    """

    engine: Engine
    warm: Speed
    cold: Speed | None
    nodes_per_second: float
    build_s: float
    file_bytes: int
    peak_warm_mib: float | None
    peak_cold_mib: float | None
    phases: tuple[Operation, ...] | None
    phases_cold: tuple[Operation, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; the engine's name, preset and form among the rest."""
        plain = asdict(self)
        return {**plain.pop("engine"), **plain}


@dataclass(frozen=True, kw_only=True)
class InferCase:
    """The measurements of one workload.

    Attributes:
        subject: Its names and sizes, see :meth:`Subject.to_dict`.
        left_out: Why an engine is not among the rows, by its name.
        rows: Float first.
    """

    subject: dict[str, Any]
    left_out: dict[str, str]
    rows: tuple[InferRow, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**self.subject, "left_out": self.left_out, "engines": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """Everything that a run of the benchmark found.

    Attributes:
        environment: Where it ran.
        settings: How it measured.
        bandwidth: Bytes per second of a copy, see :func:`dqconvert.bench.bandwidth.copy_bandwidth`.
        no_memory: Why there is no memory in it; ``None``: there is, or none was wanted.
        cases: One per workload.
        seconds: What the run took.
    """

    environment: Environment
    settings: InferSettings
    bandwidth: float
    no_memory: str | None
    cases: tuple[InferCase, ...]
    seconds: float = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with stable keys."""
        return {
            "environment": asdict(self.environment),
            "settings": asdict(self.settings),
            "bandwidth": self.bandwidth,
            "no_memory": self.no_memory,
            "cases": [case.to_dict() for case in self.cases],
            "seconds": self.seconds,
        }


def run(
    cases: Sequence[Case],
    engines: Sequence[Engine],
    settings: InferSettings | None = None,
    progress: Progress | None = None,
) -> InferResult:
    """Measures each case's forward by each engine that works.

    Args:
        engines: By what, from :func:`dqconvert.bench.engines.engines_of`.
        settings: How to measure; ``None``: the defaults.
        progress: Where to show progress; ``None``: nowhere.

    Raises:
        DQConvertError: If a case cannot be built, or its model not prepared or converted.
    """
    start = time.perf_counter()
    settings = settings or InferSettings()
    no_memory = why_not_measurable() if settings.memory else None
    found = []
    with threads(settings.threads), torch.random.fork_rng(devices=[]):
        bandwidth = copy_bandwidth()
        for case in cases:
            torch.manual_seed(settings.seed)
            found.append(_measure(case, engines, settings, bandwidth, no_memory is None, progress))
    return InferResult(
        environment=environment(settings.threads),
        settings=settings,
        bandwidth=bandwidth,
        no_memory=no_memory,
        cases=tuple(found),
        seconds=time.perf_counter() - start,
    )


def _measure(
    case: Case,
    engines: Sequence[Engine],
    settings: InferSettings,
    bandwidth: float,
    measurable: bool,
    progress: Progress | None,
) -> InferCase:
    subject = build(case, seed=settings.seed)
    reasons = {engine.name: why_not(engine, subject) for engine in engines}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    compared = {engine.name: engine for engine in engines if engine.name not in left_out}
    sizes = subject.to_dict()
    measures_memory = settings.memory and measurable
    each = 1 + 3 * (1 + settings.cold) + measures_memory
    tick = ticker(progress, f"{sizes['name']}, {sizes['edges']} edges", each * len(compared))
    forwards, build_s = {}, {}
    for name, engine in compared.items():
        began = time.perf_counter()
        forwards[name] = forward_of(engine, subject)
        build_s[name] = time.perf_counter() - began
        tick()
    known = {name: forward.warm for name, forward in forwards.items()}
    # Each behind one of its own: the caches hold what it left there, not gigabytes of another engine's messages.
    warm = _times(known, settings, tick, before=lambda name: known[name]())
    counted = [name for name, engine in compared.items() if settings.phases and engine.preset is not None]
    phases = {name: _phases(forwards[name], bandwidth) for name in counted}
    cold = None
    if settings.cold:
        steps = {name: forward.cold for name, forward in forwards.items()}
        cold = _times(steps, settings, tick, before=lambda name: forwards[name].renew())
    rows = []
    for name, engine in compared.items():
        forward = forwards[name]
        peaks = None
        if measures_memory:
            peaks = memory.measure_forward(case, engine, settings.threads)
            tick()
        rows.append(
            InferRow(
                engine=engine,
                warm=_speed(name, warm),
                cold=None if cold is None else _speed(name, cold),
                nodes_per_second=sizes["nodes"] / warm[name].median,
                build_s=build_s[name],
                file_bytes=file_bytes(forward.module),
                peak_warm_mib=None if peaks is None else peaks[0].rise,
                peak_cold_mib=None if peaks is None else peaks[1].rise,
                phases=phases.get(name),
                phases_cold=_cold_phases(forward, bandwidth) if name in phases and settings.cold else None,
            )
        )
    return InferCase(subject=sizes, left_out=left_out, rows=tuple(rows))


def _times(
    steps: Mapping[str, Callable[[], object]],
    settings: InferSettings,
    tick: Tick,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, Times]:
    """Times as many rounds as were asked for, or as fit into the time asked for, judged by the first."""
    first = interleave(steps, rounds=1, warmup=1, tick=tick, before=before)
    wanted = settings.seconds / sum(times.minimum for times in first.values())
    rounds = max(settings.rounds, min(round(wanted), _MOST_ROUNDS * settings.rounds))
    others = interleave(steps, rounds - 1, warmup=0, before=before)
    for _ in steps:
        tick()
    return {name: Times(times.seconds + others[name].seconds) for name, times in first.items()}


def _speed(name: str, times: Mapping[str, Times]) -> Speed:
    own, edge_index, csr = times[name], times[EDGE_INDEX.name], times.get(CSR.name)
    return Speed(
        rounds=len(own.seconds),
        median_ms=1e3 * own.median,
        min_ms=1e3 * own.minimum,
        over_edge_index=edge_index.median / own.median,
        over_csr=None if csr is None else csr.median / own.median,
        min_over_edge_index=edge_index.minimum / own.minimum,
        min_over_csr=None if csr is None else csr.minimum / own.minimum,
    )


def _phases(forward: Forward, bandwidth: float) -> tuple[Operation, ...]:
    """Counts operations on the known graph; before any new one, after which it is recognized by its values alone."""
    module: Any = forward.module
    return operations(module, lambda: forward.known, bandwidth, known=True)


def _cold_phases(forward: Forward, bandwidth: float) -> tuple[Operation, ...]:
    module: Any = forward.module

    def fresh() -> Inputs:
        forward.renew()
        return forward.new

    return operations(module, fresh, bandwidth, known=False)

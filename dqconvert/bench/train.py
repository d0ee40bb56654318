"""``dqconvert bench train``: the prepared model's training step against the float one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.progress import Progress

from dqconvert.bench import memory
from dqconvert.bench.case import Case, Subject, build
from dqconvert.bench.costs import Peak, why_not_measurable
from dqconvert.bench.environment import Environment, environment
from dqconvert.bench.phases import phases
from dqconvert.bench.timing import Tick, Times, interleave, threads, ticker
from dqconvert.bench.variants import CSR, FLOAT, Variant, timed_step_of, why_not_csr


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of a measurement.

    Attributes:
        steps: Timed steps of each variant.
        warmup: Steps of each before. While ranges grow, a step goes through the rows more than once: the first one of
            a prepared model took up to five times as long as later ones, and it took up to seven until that was over.
        threads: Of torch and of our kernels.
        memory: If true, measure memory, in a process per variant.
        phases: If true, profile.
        seed: Of weights, dropout and protection.
    """

    steps: int = 9
    warmup: int = 10
    threads: int = 2
    memory: bool = True
    phases: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainRow:
    """One variant's measurements; times in milliseconds, memory in MiB.

    Attributes:
        variant: The variant.
        median_ms: Of a step.
        min_ms: Likewise.
        ratio_to_edge_index: Of medians, to the float model's with an ``edge_index``.
        ratio_to_csr: To that with a CSR adjacency; ``None`` where it takes none.
        ratio_to_faster: To the faster of both.
        build_s: Seconds that it took to prepare the model, or to copy it.
        peak_mib: How far memory rises in a step, see :mod:`dqconvert.bench.memory`; ``None``: not measured.
        before_mib: Resident memory before the first step; likewise.
        phases_ms: Of a profiled step, see :func:`dqconvert.bench.phases.phases`; ``None``: not profiled.
    """

    variant: Variant
    median_ms: float
    min_ms: float
    ratio_to_edge_index: float
    ratio_to_csr: float | None
    ratio_to_faster: float
    build_s: float
    peak_mib: float | None
    before_mib: float | None
    phases_ms: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; the variant's name, preset and form among the rest."""
        plain = asdict(self)
        return {**plain.pop("variant"), **plain}


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """The measurements of one workload or model.

    Attributes:
        subject: Its names and sizes, see :meth:`Subject.to_dict`.
        no_csr: Why the float model has no row with a CSR adjacency; ``None``: it has.
        rows: Float first.
    """

    subject: dict[str, Any]
    no_csr: str | None
    rows: tuple[TrainRow, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**self.subject, "no_csr": self.no_csr, "variants": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Everything that a run of the benchmark found.

    Attributes:
        environment: Where it ran.
        settings: How it measured.
        no_memory: Why there is no memory in it; ``None``: there is, or none was wanted.
        cases: One per workload and size.
        seconds: What the run took.
    """

    environment: Environment
    settings: TrainSettings
    no_memory: str | None
    cases: tuple[TrainCase, ...]
    seconds: float = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with stable keys."""
        return {
            "environment": asdict(self.environment),
            "settings": asdict(self.settings),
            "no_memory": self.no_memory,
            "cases": [case.to_dict() for case in self.cases],
            "seconds": self.seconds,
        }


def run(
    cases: Sequence[Case],
    variants: Sequence[Variant],
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Measures each case: the float step, with a CSR adjacency where the model takes one, and the variants' steps.

    Args:
        variants: What to compare with the float model.
        settings: How to measure; ``None``: the defaults.
        progress: Where to show progress; ``None``: nowhere.

    Raises:
        DQConvertError: If a case cannot be built, or its model not prepared.
    """
    start = time.perf_counter()
    settings = settings or TrainSettings()
    no_memory = why_not_measurable() if settings.memory else None
    found = []
    for case in cases:
        build(case)  # a case that cannot be built shows now, not after the others are measured
    with threads(settings.threads), torch.random.fork_rng(devices=[]):
        for case in cases:
            torch.manual_seed(settings.seed)
            found.append(_measure(case, variants, settings, no_memory is None, progress))
    return TrainResult(
        environment=environment(settings.threads),
        settings=settings,
        no_memory=no_memory,
        cases=tuple(found),
        seconds=time.perf_counter() - start,
    )


def _measure(
    case: Case, variants: Sequence[Variant], settings: TrainSettings, measurable: bool, progress: Progress | None
) -> TrainCase:
    subject = build(case, seed=settings.seed)
    no_csr = why_not_csr(subject)
    compared = [FLOAT, *([CSR] if no_csr is None else []), *variants]
    measures_memory = settings.memory and measurable
    each = 1 + settings.warmup + settings.steps + settings.phases + measures_memory
    sizes = subject.to_dict()
    tick = ticker(progress, f"{sizes['name']}, {sizes['edges']} edges", each * len(compared))
    timed = _timed(subject, compared, settings, tick)
    rows = []
    for variant, found in timed.items():
        peak = None
        if measures_memory:
            peak = memory.measure(case, variant, settings.threads)
            tick()
        rows.append(_row(variant, found, timed, peak))
    return TrainCase(subject=sizes, no_csr=no_csr, rows=tuple(rows))


@dataclass(frozen=True)
class _Timed:
    """The measurements of a variant in this process."""

    times: Times
    build_s: float
    phases_s: dict[str, float] | None


def _timed(subject: Subject, compared: Sequence[Variant], settings: TrainSettings, tick: Tick) -> dict[Variant, _Timed]:
    steps, build_s = {}, {}
    for variant in compared:
        steps[variant.name], build_s[variant.name] = timed_step_of(variant, subject)
        tick()
    times = interleave(steps, settings.steps, settings.warmup, tick)
    found = {}
    for variant in compared:
        step, phases_s = steps[variant.name], None
        if settings.phases:
            phases_s = phases(step, step.module)
            tick()
        found[variant] = _Timed(times[variant.name], build_s[variant.name], phases_s)
    return found


def _row(variant: Variant, found: _Timed, timed: Mapping[Variant, _Timed], peak: Peak | None) -> TrainRow:
    median = found.times.median
    edge_index = timed[FLOAT].times.median
    csr = timed[CSR].times.median if CSR in timed else None
    return TrainRow(
        variant=variant,
        median_ms=1e3 * median,
        min_ms=1e3 * found.times.minimum,
        ratio_to_edge_index=median / edge_index,
        ratio_to_csr=None if csr is None else median / csr,
        ratio_to_faster=median / (edge_index if csr is None else min(edge_index, csr)),
        build_s=found.build_s,
        peak_mib=None if peak is None else peak.rise,
        before_mib=None if peak is None else peak.before,
        phases_ms=None if found.phases_s is None else {name: 1e3 * part for name, part in found.phases_s.items()},
    )

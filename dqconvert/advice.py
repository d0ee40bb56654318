"""Advice: which quantizers of a calibrated or trained module lose much, and the rule that mends each."""

from __future__ import annotations

import logging
import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dqconvert import notebook
from dqconvert.qconfig import QConfig, QSpec
from dqconvert.quant import FakeQuantize
from dqconvert.samples import Sample, samples_of
from dqconvert.words import count, listed

LOG = logging.getLogger("dqconvert")

CLIPPED = 0.01
"""The share of values beyond the ends of the grid that is worth a word."""

FAR = 8.0
"""How many times as far as 99.9 % of the values a range may reach: it costs three bits."""

SPARSE = 0.1
"""Below this share of numbers that are not 0, an input is taken for a bag of words."""

LOW, BELOW = 20.0, 10.0
"""The signal-to-noise ratio, in dB, of a rounding that stands out, and how far below the median it is then."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that costs accuracy, and what mends it.

    Attributes:
        kind: ``"empty range"``, ``"clipped"``, ``"outlier"``, ``"bag of words"`` or ``"noise"``.
        paths: Of the quantizers.
        why: What is wrong, in words.
        rule: An entry of a config's ``rules``.
    """

    kind: str
    paths: tuple[str, ...]
    why: str
    rule: dict[str, Any]

    @property
    def option(self) -> str:
        """The rule as an option of the command line."""
        spec = ",".join(f"{key}={_word(value)}" for key, value in self.rule["spec"].items())
        text = f"{self.rule.get('module', '')}@{self.rule['role']}={spec}"
        return f"--rule {shlex.quote(text)}"

    def __str__(self) -> str:
        return f"{listed(self.paths, most=3)}: {self.why}\n    {self.rule}\n    {self.option}"


class Advice(tuple[Finding, ...]):
    """What :meth:`dqconvert.Report.advice` returns: findings, the worst kinds first. ``print`` shows rules to paste.

    Attributes:
        note: What was not looked at, and why; empty: all was.
    """

    note: str = ""

    @property
    def rules(self) -> list[dict[str, Any]]:
        """The rules of all findings, for ``{**config, "rules": [*advice.rules, …]}``."""
        return [finding.rule for finding in self]

    def to_list(self) -> list[dict[str, Any]]:
        """Returns the findings as plain data for JSON."""
        return [{**asdict(finding), "option": finding.option} for finding in self]

    def __str__(self) -> str:
        found = [str(finding) for finding in self] or ["no quantizer stands out"]
        return "\n".join([*found, *([f"note: {self.note}"] if self.note else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(listed(f.paths, most=3), f.why, str(f.rule), f.option) for f in self]
        table = notebook.table("advice", ["quantizers", "what", "rule", "on the command line"], rows) if rows else ""
        return table + notebook.lines([] if rows and not self.note else [self.note or "no quantizer stands out"])


_LOOKS: Any = WeakIdKeyDictionary()
"""By module, at how many of its first evaluations after training ranges are yet to be looked at."""


# -- findings ----------------------------------------------------------------------------------------------------


def advice_on(module: Any) -> Advice:
    """Returns the findings about a prepared module, by its present ranges and the values that were last seen."""
    samples, stale = samples_of(module)
    quantizers = dict(module.quantizers())
    found = list(_findings(quantizers, samples, module.qconfig, module.report.entries))
    advice = Advice(found)
    if not samples:
        why = "parameters changed since values were last looked at" if stale else "no values were looked at yet"
        advice.note = f"{why}: ranges alone are judged; calibrate, or dqconvert.evaluate(module, data), looks at them"
    return advice


def log_empty_ranges(module: Any) -> None:
    """Warns of ranges that training left empty, at the first evaluations; through the logger ``dqconvert``."""
    left = _LOOKS.get(module, 2)  # at the first, training may have gone on for a step or two
    if not left:
        return
    empty = {path: quantizer for path, quantizer in module.quantizers() if _is_empty(quantizer)}
    _LOOKS[module] = 0 if empty else left - 1
    for finding in _findings(empty, {}, module.qconfig, module.report.entries) if empty else ():
        LOG.warning("%s", finding)


def log_advice(module: Any) -> Advice:
    """Returns the advice on a module, and warns of all of it; through the logger ``dqconvert``."""
    found = advice_on(module)
    for finding in found:
        LOG.warning("%s", finding)
    return found


class _Judged(NamedTuple):
    """A finding about one quantizer, and the spec that mends it."""

    kind: str
    why: str
    spec: QSpec


def _findings(
    quantizers: Mapping[str, FakeQuantize],
    samples: Mapping[str, Sequence[Sample]],
    config: QConfig,
    entries: Sequence[Any],
) -> Iterator[Finding]:
    """Yields findings, those alike as one."""
    losses = {path: _loss(quantizers[path], kept) for path, kept in samples.items() if path in quantizers and kept}
    usual = _usual({quantizers[path]: loss for path, loss in losses.items() if loss is not None})
    judged = {}
    for entry in entries:
        if (quantizer := quantizers.get(entry.path)) is not None and quantizer.is_observed():
            judged[entry.path] = _judge(entry.role, quantizer, losses.get(entry.path), usual(quantizer.spec.bits))
    alike: dict[tuple[str, str, QSpec], list[Any]] = {}
    for entry in entries:
        if (one := judged.get(entry.path)) is not None:
            alike.setdefault((one.kind, entry.role, one.spec), []).append(entry)
    for (kind, role, spec), some in sorted(alike.items(), key=lambda item: _KINDS.index(item[0][0])):
        every = {entry.path for entry in entries if entry.role == role}
        paths = tuple(entry.path for entry in some)
        module = "|".join(dict.fromkeys(re.escape(entry.module) or "()" for entry in some))
        rule = {} if len(some) > 1 and every <= set(paths) else {"module": module}
        base = getattr(config, some[0].kind)
        whys = [judged[path].why for path in paths]  # type: ignore[union-attr]
        why = whys[0] + (f" (and alike, {count(len(whys), 'quantizer')})" if len(whys) > 1 else "")
        yield Finding(kind=kind, paths=paths, why=why, rule={**rule, "role": role, "spec": _changes(base, spec)})


def _usual(losses: Mapping[FakeQuantize, _Loss]) -> Callable[[int], float]:
    """Returns a function: the median ratio of quantizers of so many bits, or of all where there are fewer than 3."""
    known = [(quantizer.spec.bits, loss.ratio) for quantizer, loss in losses.items() if math.isfinite(loss.ratio)]

    def usual(bits: int) -> float:
        alike = [ratio for width, ratio in known if width == bits]
        some = alike if len(alike) > 2 else [ratio for _, ratio in known]
        return statistics.median(some) if some else -math.inf

    return usual


_KINDS = ("bag of words", "empty range", "outlier", "clipped", "noise")


def _judge(role: str, quantizer: FakeQuantize, loss: _Loss | None, median: float) -> _Judged | None:
    """Returns what is wrong with one quantizer; ``None``: nothing that stands out."""
    spec = quantizer.spec
    fixed = spec.range in ("mse", "relative", "learned")
    widest = _with_range(spec, "minmax")
    if loss is None:
        reach = "its range is empty: values are rounded to whole numbers"
        return _Judged("empty range", reach, widest) if _is_empty(quantizer) else None
    ratio = f"{loss.ratio:.0f} dB signal to noise"
    if role == "input" and spec.bits <= 4 and loss.positive and loss.nonzero < SPARSE and loss.ratio < LOW:
        what = f"a bag of words ({100 * (1 - loss.nonzero):.0f} % zeros) in {spec.bits} bits, {ratio}"
        return _Judged("bag of words", what, replace(widest, bits=8))
    if _is_empty(quantizer) and loss.ratio < LOW:
        what = f"its range is empty, though {100 * loss.nonzero:.2g} % of the values are not 0, {ratio}"
        return _Judged("empty range", what, widest)
    if loss.reach > FAR and not fixed:
        what = f"a few values set the range: it reaches {loss.reach:.0f} times as far as 99.9 % of the values"
        return _Judged("outlier", what, replace(_with_range(spec, "percentile"), percentile=0.001))
    if loss.clipped > CLIPPED and not fixed:
        what = f"{100 * loss.clipped:.1f} % of the values lie beyond its range, {ratio}"
        return _Judged("clipped", what, _with_range(spec, "mse"))
    if loss.ratio < min(LOW, median - BELOW):
        better = (
            replace(spec, bits=8) if spec.bits < 8 else spec if spec.range == "relative" else _with_range(spec, "mse")
        )
        return None if better == spec else _Judged("noise", f"{ratio}, where others have {median:.0f}", better)
    return None


class _Loss(NamedTuple):
    """What a quantizer's grid does to the values of a sample.

    Attributes:
        ratio: Of signal to noise, in dB.
        clipped: The share beyond the ends of the grid.
        reach: How many times as far as 99.9 % of the values that are not 0 the range reaches.
        nonzero: The share that is not 0.
        positive: Whether none lies below 0.
    """

    ratio: float
    clipped: float
    reach: float
    nonzero: float
    positive: bool


@torch.no_grad()
def _loss(quantizer: FakeQuantize, samples: Sequence[Sample]) -> _Loss | None:
    """Returns it; ``None`` where there is no range yet, or no value."""
    if not quantizer.is_observed():
        return None
    values = torch.cat([sample.values.double().flatten() for sample in samples])
    scales, zeros, reaches = (torch.cat(parts) for parts in zip(*(_grids(quantizer, s) for s in samples), strict=True))
    finite = values.isfinite()
    values, scales, zeros, reaches = (part[finite] for part in (values, scales, zeros, reaches))
    if not len(values):
        return None
    positive = bool((values >= 0).all())
    values = values.clamp(min=0) if quantizer.from_zero else values
    codes = (values / scales + zeros).round()
    held = codes.clamp(quantizer.quant_min, quantizer.quant_max)
    noise, signal = float(((held - zeros) * scales - values).square().sum()), float(values.square().sum())
    some = values != 0
    sizes = values[some].abs() / reaches[some].clamp(min=1e-30)
    most = float(sizes.sort().values[min(len(sizes) - 1, int(0.999 * len(sizes)))]) if len(sizes) else 1.0
    return _Loss(
        ratio=10 * math.log10(signal / noise) if signal and noise else math.inf,
        clipped=float((codes != held).double().mean()),
        reach=1 / most if len(sizes) >= 100 and most > 0 else 1.0,
        nonzero=float(some.double().mean()),
        positive=positive,
    )


def _grids(quantizer: FakeQuantize, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Returns step, zero point and the farthest end of the range for each number of a sample, flat."""
    low, high = quantizer.range
    parts = quantizer.scale, quantizer.zero_point, torch.maximum(low.abs(), high.abs())
    rows, columns = sample.values.shape
    each = (part.double()[sample.grid] if sample.grid is not None else part.double().expand(rows) for part in parts)
    step, zero, reach = (part[:, None].expand(rows, columns).flatten() for part in each)
    return step, zero, reach


def _is_empty(quantizer: FakeQuantize) -> bool:
    """True if a range that was observed holds nothing but 0."""
    low, high = quantizer.range
    return quantizer.is_observed() and not bool(((low < 0) | (high > 0)).any())


def _with_range(spec: QSpec, name: Any) -> QSpec:
    """Returns a spec with another kind of range, without the numbers that only the old one has."""
    return replace(spec, range=name, percentile=None, momentum=None, sample=None)


def _changes(base: QSpec | None, spec: QSpec) -> dict[str, Any]:
    """Returns the fields that a rule has to give, where the config says ``base``."""
    base = base or QSpec()
    changed = {f.name: getattr(spec, f.name) for f in fields(QSpec) if getattr(spec, f.name) != getattr(base, f.name)}
    return {key: "auto" if value is None else value for key, value in (changed or {"bits": spec.bits}).items()}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

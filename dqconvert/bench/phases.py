"""The time of a training step by phase: every operator of it, forward and backward, belongs to one phase."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import cache
from statistics import mean, median
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from dqconvert.ops import Moves, op_named
from dqconvert.quant import FakeQuantize, Protection

PHASES = ("protection", "observe", "quantize", "message passing", "linear", "rest")

PHASE_OF: Mapping[str, str] = MappingProxyType(
    {
        # Ours. One that does several of these things counts as what makes its rows, as that is most of it: a linear
        # layer with two quantizers and a ReLU behind it is to 70 % a product of matrices where both have 128 features
        # (forward by half, backward by 90 %). One that only observes and quantizes is "quantize". How much of each is
        # observing is found out by steps that do not observe, see phases().
        "dqconvert::Protection": "protection",
        "dqconvert::FakeQuantize": "quantize",
        "dqconvert::protect*": "protection",
        "dqconvert::in_degree*": "protection",
        "dqconvert::percentile_pair*": "observe",
        "dqconvert::minmax_pair*": "observe",
        "dqconvert::quantize_linear*": "linear",
        "dqconvert::*batch_norm*": "rest",
        "dqconvert::*quantize*": "quantize",
        "dqconvert::learned_chain*": "quantize",
        "dqconvert::mix*": "quantize",
        "dqconvert::learned_linear*": "linear",
        "dqconvert::learned_propagate*": "message passing",
        "dqconvert::observe*": "observe",
        "dqconvert::propagate*": "message passing",
        "dqconvert::csr*": "message passing",
        "dqconvert::scale_rows*": "message passing",
        "dqconvert::edge_order*": "message passing",
        "dqconvert::linear*": "linear",
        "dqconvert::matmul*": "linear",
        "dqconvert::dropout*": "rest",
        "dqconvert::own_size*": "rest",
        # Autograd functions go by their class's name.
        "*FakeQuantize*Backward*": "quantize",
        "*Propagate*Backward*": "message passing",
    }
)
"""Operator of ours (a pattern, the first that matches) to phase; torch's follow from their records. What an operator
calls belongs to it; what is called from none of these is ``rest``."""

_ENGINE = re.compile(r"^autograd::engine::evaluate_function: ")
_OURS = re.compile(r"^(?:GeneratedBackwardFor_)?dqconvert(?:::|_)")
_LABELLED: Mapping[type[nn.Module], str] = MappingProxyType(
    {Protection: "dqconvert::Protection", FakeQuantize: "dqconvert::FakeQuantize"}
)
_BACKWARD = re.compile(r"(?:Backward\d*|_grad)$")  # "GeneratedBackwardFor_dqconvert_x_default" is of the forward
_STEP, _KEPT = "dqconvert bench step", "dqconvert bench step, ranges kept"
_OBSERVING = ("quantize", "message passing", "linear", "rest")
"""Phases of the operators that also observe."""


@cache
def phase_of(name: str) -> str | None:
    """Returns the phase of an operator by its name alone; a backward function's is that of its operator.

    Example:
        >>> phase_of("autograd::engine::evaluate_function: GeneratedBackwardFor_dqconvert_fake_quantize_ste_default")
        'quantize'
        >>> phase_of("aten::mm"), phase_of("aten::relu")
        ('linear', None)
    """
    name = _OURS.sub("dqconvert::", _ENGINE.sub("", name))
    own = next((phase for pattern, phase in PHASE_OF.items() if fnmatchcase(name, pattern)), None)
    return own or _phase_of_torch(name)


def _phase_of_torch(name: str) -> str | None:
    """Returns the phase of ``aten::index_add_`` or ``IndexAddBackward0``, by what the operation's record says."""
    space, _, last = name.rpartition("::")
    if "::" not in name:
        last, found = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(), re.search(r"Backward\d*$", name)
        last = re.sub(r"_?backward\d*$", "", last) if found else ""
    if space not in ("", "aten", "mkldnn") or not last:
        return None
    op = op_named(last)
    if "sparse" in last or op.scatters or op.moves in (Moves.PICK, Moves.GATHER):
        return "message passing"
    return "linear" if op.product and not op.row_by_row else None


def phases(step: Callable[[], object], module: nn.Module, repeats: int = 3) -> dict[str, float]:
    """Returns the seconds that a step spends in each phase, means over a few steps.

    Times are of the processor's operators under the profiler, each without those it calls. What Python takes between
    them is ``rest``. Gathering the protection of edges from that of nodes counts as message passing: it is the same
    operator.

    Operators that quantize observe in the same pass, where no profiler sees it: those that do nothing else, and those
    of message passing, linear layers and batch norms with quantizers behind them, whose rounding counts as theirs.
    Their part of ``observe`` is what they save in steps taken in turns with the others, in which every quantizer keeps
    the range that it has: of medians, so it is rough where a machine is not quiet.

    Args:
        module: What it trains; its quantizers and its protection are labelled for the time of the profile.
        repeats: How many steps to profile; as many again if it has quantizers that observe.

    Returns:
        Every one of :data:`PHASES`; the sum is the duration of a step that observes.
    """
    with _labels(module), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with record_function(_STEP):
                step()
            with _ranges_kept(module) as kept:
                if kept:
                    with record_function(_KEPT):
                        step()
    steps = _steps(profiler.events())
    found = {phase: mean(taken[phase, True] + taken[phase, False] for taken in steps[_STEP]) for phase in PHASES}
    for phase in _OBSERVING if steps[_KEPT] else ():
        before, after = (median(taken[phase, True] for taken in steps[label]) for label in (_STEP, _KEPT))
        saved = max(0.0, 1 - after / before) if before else 0.0
        observing = saved * mean(taken[phase, True] for taken in steps[_STEP])
        found[phase] -= observing
        found["observe"] += observing
    return found


_Taken: TypeAlias = Counter[tuple[str, bool]]
"""Seconds of one step, by phase and whether in a forward operator of ours."""


def _steps(events: Iterable[Any]) -> dict[str, list[_Taken]]:
    """Returns the time of each step by phase, by the step's label."""
    steps: dict[int, _Taken] = {}
    found: dict[str, list[_Taken]] = {_STEP: [], _KEPT: []}
    for event in events:
        callers = list(_callers(event))
        top = callers[-1]
        if top.name not in found:
            continue
        if id(top) not in steps:
            steps[id(top)] = Counter()
            found[top.name].append(steps[id(top)])
        steps[id(top)][_phase_within(callers)] += event.self_cpu_time_total * 1e-6
    return found


@contextmanager
def _ranges_kept(module: nn.Module) -> Iterator[list[FakeQuantize]]:
    """Disables the observers of quantizers that have a range, and yields those quantizers."""
    quantizers = [part for part in module.modules() if isinstance(part, FakeQuantize)]
    observing = [quantizer for quantizer in quantizers if quantizer.observer_enabled and quantizer.is_observed()]
    for quantizer in observing:
        quantizer.observer_enabled = False
    try:
        yield observing
    finally:
        for quantizer in observing:
            quantizer.observer_enabled = True


def _callers(event: Any) -> Iterator[Any]:
    """Yields the event and its callers, innermost first."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _phase_within(callers: list[Any]) -> tuple[str, bool]:
    """Returns the phase of the innermost operator of ours, whatever it calls; else of the outermost of torch's.

    That is the one that the model called: a product with a sparse matrix ends in the ``addmm`` of linear layers.

    Returns:
        The phase, and whether the time is of a forward operator of ours.
    """
    names = [event.name for event in callers]
    ours = [name for name in names if _OURS.match(_ENGINE.sub("", name))]
    phase = next((phase for name in [*ours, *reversed(names)] if (phase := phase_of(name)) is not None), "rest")
    return phase, bool(ours) and not any(map(_BACKWARD.search, ours))


@contextmanager
def _labels(module: nn.Module) -> Iterator[None]:
    """Puts the calls of quantizers and of the protection under a label."""
    with ExitStack() as stack:
        for part in module.modules():
            for kind, label in _LABELLED.items():
                if isinstance(part, kind):
                    _label(part, label, stack)
        yield


def _label(module: nn.Module, label: str, stack: ExitStack) -> None:
    running: list[Any] = []

    def enter(*_: Any) -> None:
        running.append(record_function(label))
        running[-1].__enter__()

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)

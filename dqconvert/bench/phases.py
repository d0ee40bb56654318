"""Where the time of a training step goes: every operator of it, forward and backward, belongs to one phase."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from dqconvert.quant import FakeQuantize, Protection

PHASES = ("protection", "observe", "quantize", "message passing", "linear", "rest")

PHASE_OF: Mapping[str, str] = MappingProxyType(
    {
        # Ours. One that does several of these things in one pass counts as the last of them: a fused operator that
        # observes and quantizes is "quantize", one that also reduces by node is "message passing".
        "dqconvert::Protection": "protection",
        "dqconvert::FakeQuantize": "quantize",
        "dqconvert::protect*": "protection",
        "dqconvert::in_degree*": "protection",
        "dqconvert::percentile_pair*": "observe",
        "dqconvert::minmax_pair*": "observe",
        "dqconvert::*quantize*": "quantize",
        "dqconvert::observe*": "observe",
        "dqconvert::propagate*": "message passing",
        "dqconvert::csr*": "message passing",
        "dqconvert::edge_order*": "message passing",
        "dqconvert::linear*": "linear",
        "dqconvert::matmul*": "linear",
        "dqconvert::dropout*": "rest",
        # Autograd functions go by their class's name.
        "*FakeQuantize*Backward*": "quantize",
        "*Propagate*Backward*": "message passing",
        # torch's: gather and reduce by edge, the product with a sparse adjacency, and the products with weights.
        "aten::index_select*": "message passing",
        "aten::gather*": "message passing",
        "aten::scatter*": "message passing",
        "aten::index_add*": "message passing",
        "aten::_sparse*": "message passing",
        "aten::sparse*": "message passing",
        "aten::segment_reduce*": "message passing",
        "IndexSelectBackward*": "message passing",
        "GatherBackward*": "message passing",
        "Scatter*Backward*": "message passing",
        "IndexAddBackward*": "message passing",
        "SparseMm*Backward*": "message passing",
        "SparseAddmm*Backward*": "message passing",
        "aten::addmm*": "linear",
        "aten::mm*": "linear",
        "aten::bmm*": "linear",
        "aten::matmul*": "linear",
        "aten::linear*": "linear",
        "aten::mkldnn_linear*": "linear",
        "mkldnn::_linear_pointwise*": "linear",
        "AddmmBackward*": "linear",
        "MmBackward*": "linear",
        "BmmBackward*": "linear",
        "LinearBackward*": "linear",
    }
)
"""Operator (a pattern, the first that matches) to phase. What an operator calls belongs to it; what is called from none
of these is ``rest``."""

_ENGINE = re.compile(r"^autograd::engine::evaluate_function: ")
_OURS = re.compile(r"^(?:GeneratedBackwardFor_)?dqconvert(?:::|_)")
_LABELLED: Mapping[type[nn.Module], str] = MappingProxyType(
    {Protection: "dqconvert::Protection", FakeQuantize: "dqconvert::FakeQuantize"}
)
_STEP = "dqconvert bench step"


@cache
def phase_of(name: str) -> str | None:
    """The phase of an operator by its name alone; a backward function's is that of its operator.

    Example:
        >>> phase_of("autograd::engine::evaluate_function: GeneratedBackwardFor_dqconvert_fake_quantize_ste_default")
        'quantize'
        >>> phase_of("aten::mm"), phase_of("aten::relu")
        ('linear', None)
    """
    name = _OURS.sub("dqconvert::", _ENGINE.sub("", name))
    return next((phase for pattern, phase in PHASE_OF.items() if fnmatchcase(name, pattern)), None)


def phases(step: Callable[[], object], module: nn.Module, repeats: int = 3) -> dict[str, float]:
    """Seconds that a step spends in each phase, means over a few steps.

    Times are of the processor's operators under the profiler, each without those it calls. What Python takes between
    them is ``rest``. Gathering the protection of edges from that of nodes counts as message passing: it is the same
    operator.

    Args:
        step: Takes a training step.
        module: What it trains; its quantizers and its protection are labelled for the time of the profile.
        repeats: How many steps to profile.

    Returns:
        Every one of :data:`PHASES`; the sum is the duration of the step.

    Example:
        >>> import torch
        >>> layer = nn.Linear(64, 64)
        >>> times = phases(lambda: layer(torch.ones(1000, 64)).sum().backward(), layer)
        >>> list(times) == list(PHASES), times["linear"] > times["quantize"] == 0
        (True, True)
    """
    with _labels(module), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with record_function(_STEP):
                step()
    seconds = dict.fromkeys(PHASES, 0.0)
    for event in profiler.events():
        callers = list(_callers(event))
        if callers[-1].name == _STEP:
            seconds[_phase_within(callers)] += event.self_cpu_time_total * 1e-6 / repeats
    return seconds


def _callers(event: Any) -> Iterator[Any]:
    """The event and what it is called from, innermost first."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _phase_within(callers: list[Any]) -> str:
    """The phase of the innermost operator of ours, whatever it calls; else of the outermost of torch's.

    That is the one that the model called: a product with a sparse matrix ends in the ``addmm`` of linear layers.
    """
    names = [event.name for event in callers]
    ours = [name for name in names if _OURS.match(_ENGINE.sub("", name))]
    return next((phase for name in [*ours, *reversed(names)] if (phase := phase_of(name)) is not None), "rest")


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

"""``dqconvert bench prepare``: how the time of :func:`dqconvert.prepare` grows with layers and with parameters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch_geometric.nn import GCN

from dqconvert.bench.environment import Environment, environment
from dqconvert.bench.graphs import zipf_edges
from dqconvert.bench.timing import interleave, threads, ticker
from dqconvert.prepare import prepare

LAYERS = (2, 4, 8, 16, 32, 64)
WIDTHS = (32, 64, 128, 256, 512, 1024)
_NODES, _EDGES = 200, 1_000
_LAYERS, _WIDTH = 2, 32
"""The depth, and the width, while the other grows."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model's measurement.

    Attributes:
        layers: Of the GCN.
        width: Of each layer, and of the node features.
        parameters: In all.
        median_s: Seconds that ``prepare`` took.
        min_s: Likewise.
        growth: Time over that of the point before; ``None`` for the first of a series.
        size_growth: Layers, or parameters, over those of the point before; likewise.
    """

    layers: int
    width: int
    parameters: int
    median_s: float
    min_s: float
    growth: float | None = None
    size_growth: float | None = None


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """Results of :func:`run`.

    Attributes:
        environment: Where it ran.
        preset: The models' preset.
        repeats: How many times each.
        by_layers: Growing number of layers.
        by_parameters: Growing width.
        seconds: What the run took.
    """

    environment: Environment
    preset: str
    repeats: int
    by_layers: tuple[Point, ...]
    by_parameters: tuple[Point, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with stable keys."""
        return asdict(self)


def run(
    *,
    layers: Sequence[int] = LAYERS,
    widths: Sequence[int] = WIDTHS,
    preset: str = "int8-dq",
    repeats: int = 3,
    num_threads: int = 2,
    progress: Progress | None = None,
) -> PrepareResult:
    """Prepares GCNs of growing depth, and of growing width, on a small graph.

    Args:
        layers: Of the deep ones, which are narrow.
        widths: Of the wide ones, which have two layers.
        preset: What to prepare them with.
        repeats: How many times to prepare each, in turns.
        progress: Where to show progress; ``None``: nowhere.

    Raises:
        ConfigError: If there is no such preset.
    """
    start = time.perf_counter()
    with threads(num_threads), torch.random.fork_rng(devices=[]):
        _prepare(_model(_LAYERS, _WIDTH), preset)  # whatever is loaded or compiled the first time
        by_layers = _series("layers", [(number, _WIDTH) for number in layers], preset, repeats, progress)
        by_parameters = _series("parameters", [(_LAYERS, width) for width in widths], preset, repeats, progress)
    return PrepareResult(
        environment=environment(num_threads),
        preset=preset,
        repeats=repeats,
        by_layers=by_layers,
        by_parameters=by_parameters,
        seconds=time.perf_counter() - start,
    )


def _series(
    what: str, sizes: Sequence[tuple[int, int]], preset: str, repeats: int, progress: Progress | None
) -> tuple[Point, ...]:
    models = {size: _model(*size) for size in sizes}
    steps = {f"{size}": lambda model=model: _prepare(model, preset) for size, model in models.items()}
    times = interleave(steps, repeats, warmup=0, tick=ticker(progress, what, repeats * len(sizes)))
    points: list[Point] = []
    for (layers, width), model in models.items():
        found = times[f"{(layers, width)}"]
        point = Point(
            layers=layers,
            width=width,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            median_s=found.median,
            min_s=found.minimum,
        )
        points.append(_compared(point, points[-1], what) if points else point)
    return tuple(points)


def _compared(point: Point, before: Point, what: str) -> Point:
    grown = getattr(point, what) / getattr(before, what)
    return replace(point, growth=point.median_s / before.median_s, size_growth=grown)


def _model(layers: int, width: int) -> GCN:
    torch.manual_seed(0)
    return GCN(width, width, num_layers=layers)


def _prepare(model: GCN, preset: str) -> None:
    prepare(model, preset, _inputs(model.in_channels))


def _inputs(width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(_NODES, width), zipf_edges(_NODES, _EDGES)

"""``dqconvert bench sweep``: looks for shapes at which something of ours is slower than what it replaces.

A cliff lies between the sizes of the usual workloads: where a kernel leaves the cache, a loop has too few rows, or a
wide matrix of features is mostly zero. A random sample of a grid of shapes is measured, as many as time allows.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

from dqconvert.bench.environment import Environment, environment
from dqconvert.bench.timing import Times, interleave, threads
from dqconvert.convert import convert
from dqconvert.prepare import prepare

LAYERS: Mapping[str, Callable[..., nn.Module]] = {"GCN": GCN, "GIN": GIN, "SAGE": GraphSAGE, "GAT": GAT}
NODES = (100, 1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (1, 16, 128, 512, 1433, 4096)
DENSITIES = (1.0, 0.01)
HIDDEN = (4, 16, 64, 128, 512)
PRESETS = ("int8-dq", "int4-dq", "int8-qat", "int4-qat")
_DEGREE, _CLASSES = 5, 7


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The settings of a sweep.

    Attributes:
        seconds: Time after which no other shape is begun.
        largest: Values of the features, or of a hidden layer, at most.
        rounds: Timed steps of each.
        warmup: Steps of each before.
        threads: Of torch and of our kernels. With one, the processor's time is measured, which other work on the
            machine does not stretch.
        seed: Of the sample.
    """

    seconds: float = 600
    largest: int = 1 << 26
    rounds: int = 6
    warmup: int = 4
    threads: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One point of the grid: two layers on a random graph with five edges for each node."""

    layer: str
    preset: str
    nodes: int
    width: int
    density: float
    hidden: int

    def __str__(self) -> str:
        zeros = "" if self.density == 1 else f" ({self.density:.0%} not zero)"
        return f"{self.layer} {self.width:,}{zeros} -> {self.hidden} on {self.nodes:,} nodes, {self.preset}"


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """The measurements of a shape: medians in milliseconds, and ratios of them.

    Attributes:
        fused_ratio: A training step of the fused module, over one of the module that is not.
        train_ratio: The same over a step of the float model.
        infer_ratio: A forward of the integer module on a graph that it knows, over the float model's.
    """

    shape: Shape
    float_ms: float
    unfused_ms: float
    fused_ms: float
    float_forward_ms: float
    integer_forward_ms: float
    fused_ratio: float
    train_ratio: float
    infer_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; the shape among the rest."""
        plain = asdict(self)
        return {**plain.pop("shape"), **plain}


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Everything that a sweep found, in the order of the sample."""

    environment: Environment
    settings: SweepSettings
    rows: tuple[SweepRow, ...]
    seconds: float = field(compare=False)

    def worst(self, ratio: str, number: int = 10) -> list[SweepRow]:
        """Returns the rows whose ratio, ``"fused_ratio"`` or ``"infer_ratio"``, is the largest."""
        return sorted(self.rows, key=lambda row: float(getattr(row, ratio)), reverse=True)[:number]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with stable keys."""
        return {
            "environment": asdict(self.environment),
            "settings": asdict(self.settings),
            "worst_training": [row.to_dict() for row in self.worst("fused_ratio")],
            "worst_inference": [row.to_dict() for row in self.worst("infer_ratio")],
            "rows": [row.to_dict() for row in self.rows],
            "seconds": self.seconds,
        }


def shapes(settings: SweepSettings) -> list[Shape]:
    """Returns the shapes that are small enough, in an order that depends on the seed alone."""
    grid = itertools.product(LAYERS, PRESETS, NODES, WIDTHS, DENSITIES, HIDDEN)
    found = [
        Shape(layer=layer, preset=preset, nodes=nodes, width=width, density=density, hidden=hidden)
        for layer, preset, nodes, width, density, hidden in grid
        if nodes * max(width, hidden, _DEGREE * hidden // 4) <= settings.largest and (width >= 16 or density == 1)
    ]
    random.Random(settings.seed).shuffle(found)
    return found


def run(settings: SweepSettings, progress: Progress | None = None) -> SweepResult:
    """Measures as many shapes as time allows."""
    start, rows = time.perf_counter(), list[SweepRow]()
    task = None if progress is None else progress.add_task("sweep", total=settings.seconds)
    with threads(settings.threads), torch.random.fork_rng(devices=[]):
        for shape in shapes(settings):
            rows.append(measure(shape, settings))
            if progress is not None and task is not None:
                progress.update(task, completed=time.perf_counter() - start)
            if time.perf_counter() - start > settings.seconds:
                break
    return SweepResult(
        environment=environment(settings.threads),
        settings=settings,
        rows=tuple(rows),
        seconds=time.perf_counter() - start,
    )


def measure(shape: Shape, settings: SweepSettings) -> SweepRow:
    """Measures a shape: three training steps in turns, then two forwards."""
    torch.manual_seed(settings.seed)
    x = torch.randn(shape.nodes, shape.width)
    if shape.density < 1:
        x *= torch.rand_like(x) < shape.density
    edge_index = torch.randint(shape.nodes, (2, _DEGREE * shape.nodes))
    target = torch.randint(_CLASSES, (shape.nodes,))
    model = LAYERS[shape.layer](shape.width, shape.hidden, 2, _CLASSES)
    small = (x[:50], edge_index[:, :200] % 50)
    fused = prepare(model, shape.preset, small).module
    unfused = prepare(model, shape.preset, small, fuse=False).module
    models = {"float": model, "unfused": unfused, "fused": fused}
    clock = time.process_time if settings.threads == 1 else time.perf_counter
    trained = {name: _training(module, x, edge_index, target) for name, module in models.items()}
    step = interleave(trained, settings.rounds, settings.warmup, clock=clock)
    integer = convert(fused.eval())
    forwards = {name: _forward(module.eval(), x, edge_index) for name, module in (("float", model), ("int", integer))}
    forward = interleave(forwards, max(settings.rounds, 10), settings.warmup, clock=clock)
    return SweepRow(
        shape=shape,
        float_ms=_ms(step["float"]),
        unfused_ms=_ms(step["unfused"]),
        fused_ms=_ms(step["fused"]),
        float_forward_ms=_ms(forward["float"]),
        integer_forward_ms=_ms(forward["int"]),
        fused_ratio=step["fused"].median / step["unfused"].median,
        train_ratio=step["fused"].median / step["float"].median,
        infer_ratio=forward["int"].median / forward["float"].median,
    )


def _training(module: nn.Module, x: Tensor, edge_index: Tensor, target: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam(module.train().parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(x, edge_index), target).backward()
        optimizer.step()

    return step


def _forward(module: nn.Module, x: Tensor, edge_index: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def forward() -> Any:
        return module(x, edge_index)

    return forward


def _ms(times: Times) -> float:
    return times.median * 1e3

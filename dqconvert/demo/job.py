"""The main job on a generated graph: train in float, prepare, load the checkpoint, fine-tune, compare."""

from __future__ import annotations

import copy
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from torch_geometric.utils import degree

from dqconvert.demo.graph import GraphSpec, make_graph
from dqconvert.errors import CheckpointError
from dqconvert.files import write_file
from dqconvert.prepare import prepare
from dqconvert.report import Report

PRESETS = ("int8-dq", "int8-qat", "int4-dq", "int4-qat")

# Called after each epoch.
Tick: TypeAlias = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One preset's result.

    Attributes:
        preset: Name of the preset.
        quantizers: Number of quantizers inserted.
        accuracy: Percent of the test nodes labeled right in evaluation mode, where everything is quantized.
        step_time_ratio: Time of a training step over that of the float model's, medians of interleaved steps.
    """

    preset: str
    quantizers: int
    accuracy: float
    step_time_ratio: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of :func:`run`; accuracies in percent of the test nodes, times in seconds."""

    seed: int
    epochs: int
    nodes: int
    edges: int
    mean_in_degree: float
    max_in_degree: int
    checkpoint: str | None
    float_accuracy: float
    rows: tuple[DemoRow, ...]
    seconds: float
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON, with stable keys; ``report`` is that of the first preset."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "report": self.report.to_dict()}


def run(
    *,
    seed: int = 0,
    epochs: int = 50,
    presets: Sequence[str] = PRESETS,
    spec: GraphSpec | None = None,
    out: Path | None = None,
    timing_rounds: int = 5,
    progress: Progress | None = None,
) -> DemoResult:
    """Runs the whole job; the accuracies are the same for the same arguments on the same machine.

    Every preset is fine-tuned alike: from the float checkpoint, for as many epochs as the float model was
    trained, by the same loop. Each model is the one of its best validation epoch.

    Args:
        seed: Seed of the graph, the first weights, dropout and protection.
        epochs: Of the float training and of each fine-tuning.
        presets: Names of the presets to compare.
        spec: The graph to generate; ``None``: the defaults.
        out: Folder that keeps the checkpoint, created where it is missing; ``None``: a temporary one.
        timing_rounds: Rounds of float, prepared, prepared, float steps behind each time ratio.
        progress: Where to show progress; ``None``: nowhere.

    Raises:
        ConfigError: If there is no such preset.
        CheckpointError: If the checkpoint cannot be written to ``out``.
    """
    start = time.perf_counter()
    data = make_graph(seed, spec)
    with _checkpoint_path(out) as path, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model(data)
        with _bar(progress, "float", epochs) as tick:
            float_accuracy = fit(model, data, epochs, tick)
        save_state(model.state_dict(), path)

        rows, reports = [], []
        for preset in presets:
            trained = _new_model(data)
            trained.load_state_dict(torch.load(path, weights_only=True))
            prepared, report = prepare(trained, preset, (data.x, data.edge_index))
            torch.manual_seed(seed)
            with _bar(progress, preset, epochs) as tick:
                accuracy = fit(prepared, data, epochs, tick)
            ratio = step_time_ratio(prepared, model, data, timing_rounds)
            count = len(report.entries)
            rows.append(DemoRow(preset=preset, quantizers=count, accuracy=accuracy, step_time_ratio=ratio))
            reports.append(report)

    in_degree = degree(data.edge_index[1], data.num_nodes)
    return DemoResult(
        seed=seed,
        epochs=epochs,
        nodes=data.num_nodes,
        edges=data.num_edges,
        mean_in_degree=float(in_degree.mean()),
        max_in_degree=int(in_degree.max()),
        checkpoint=None if out is None else str(path),
        float_accuracy=float_accuracy,
        rows=tuple(rows),
        seconds=time.perf_counter() - start,
        report=reports[0],
    )


def fit(model: nn.Module, data: Data, epochs: int, tick: Tick = lambda: None) -> float:
    """Trains `model` in place, float or prepared alike, and returns its test accuracy in percent.

    The model is the one of its best validation epoch, the latest of equals, and stays in that state. The
    first fifth of the epochs does not stand for election: there, a prepared model's ranges still move.
    """
    optimizer = _optimizer(model)
    best, state = -1.0, model.state_dict()
    for epoch in range(epochs):
        train_step(model, optimizer, data)
        if epoch >= epochs // 5 and (found := accuracy(model, data, data.val_mask)) >= best:
            best, state = found, copy.deepcopy(model.state_dict())
        tick()
    model.load_state_dict(state)
    return accuracy(model, data, data.test_mask)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data) -> None:
    """Takes one training step on the whole graph."""
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, mask: Tensor) -> float:
    """Returns the percentage of the nodes in `mask` (bool ``[num_nodes]``) that `model` labels right in evaluation."""
    predicted = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((predicted == data.y)[mask].double().mean())


def step_time_ratio(prepared: nn.Module, model: nn.Module, data: Data, rounds: int) -> float:
    """Returns the median time of a prepared training step over that of a float one, on copies of the modules.

    The steps alternate as float, prepared, prepared, float, so that a machine that slows down slows both.
    """
    pair = [copy.deepcopy(module) for module in (model, prepared)]
    optimizers = [_optimizer(module) for module in pair]
    times: tuple[list[float], list[float]] = ([], [])
    for index in (0, 1, *(0, 1, 1, 0) * rounds):  # the first two warm up
        start = time.perf_counter()
        train_step(pair[index], optimizers[index], data)
        times[index].append(time.perf_counter() - start)
    float_time, prepared_time = (statistics.median(found[1:]) for found in times)
    return prepared_time / float_time


def save_state(state: dict[str, Any], path: Path) -> None:
    """Saves a ``state_dict``, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written.
    """
    contents = io.BytesIO()
    torch.save(state, contents)
    write_file(path, [contents.getbuffer()])


def show(result: DemoResult, console: Console, *, report: bool = True) -> None:
    """Prints the report of the first preset, unless told not to, and the table of results."""
    if report:
        console.print(result.report)
        console.print()
    table = Table(title="Test accuracy and training time", title_justify="left")
    table.add_column("")
    for name in ("quantizers", "accuracy, %", "against float", "step time, x float"):
        table.add_column(name, justify="right")
    table.add_row("float", "0", f"{result.float_accuracy:.1f}", "", "1.0")
    for row in result.rows:
        change = f"{row.accuracy - result.float_accuracy:+.1f}"
        ratio = f"{row.step_time_ratio:.1f}"
        table.add_row(row.preset, str(row.quantizers), f"{row.accuracy:.1f}", change, ratio)
    console.print(table)
    console.print(
        f"Generated graph (seed {result.seed}): {result.nodes:,} nodes, {result.edges:,} edges, in-degree "
        f"{result.mean_in_degree:.1f} on average and {result.max_in_degree} at most. Each preset was prepared "
        f"from the float checkpoint and fine-tuned for {result.epochs} epochs; accuracy is that of the "
        "quantized model on the test nodes. Step time is a ratio: medians of alternating steps. "
        f"{result.seconds:.0f} s in all.",
        highlight=False,
    )
    if result.checkpoint is not None:
        console.print(f"Float checkpoint: {result.checkpoint}", soft_wrap=True)


def _new_model(data: Data) -> GCN:
    num_classes = int(data.y.max()) + 1
    return GCN(data.num_features, hidden_channels=32, num_layers=2, out_channels=num_classes, dropout=0.5)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)


@contextmanager
def _checkpoint_path(out: Path | None) -> Iterator[Path]:
    """Yields the float checkpoint's path: in `out`, or in a folder that is removed in the end."""
    if out is None:
        with TemporaryDirectory(prefix="dqconvert-demo-") as folder:
            yield Path(folder) / "float.pt"
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{out}: cannot create this folder: {error.strerror or error}") from error
        yield out / "float.pt"


@contextmanager
def _bar(progress: Progress | None, name: str, epochs: int) -> Iterator[Tick]:
    """Shows a progress bar for one training."""
    if progress is None:
        yield lambda: None
    else:
        task = progress.add_task(name, total=epochs)
        yield lambda: progress.advance(task)

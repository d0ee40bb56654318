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
from torch_geometric.utils import coalesce, degree, remove_self_loops, to_undirected

from dqconvert.errors import CheckpointError
from dqconvert.files import write_file
from dqconvert.prepare import prepare
from dqconvert.report import Report

PRESETS = ("int8-dq", "int8-qat", "int4-dq", "int4-qat")

# Called after each epoch.
Tick: TypeAlias = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The size and the probabilities of the graph that :func:`make_graph` generates.

    Attributes:
        num_nodes: Number of nodes.
        num_classes: Number of classes, all of about the same size.
        num_words: Number of features, which are word counts over their sum.
        mean_degree: Edges drawn per node, in either direction; a few coincide and count once.
        exponent: Tail exponent of the degrees: the share of nodes with more than d neighbors falls like
            ``d ** -exponent``. Citation and social networks have 1 to 2.
        homophily: Share of edges drawn within a class; the others are drawn without regard to class.
        words_per_node: Length of each node's text.
        on_topic: Share of a text's words drawn from its class's vocabulary; the others are any words.
        num_train: Training nodes per class.
        num_val: Validation nodes per class. All other nodes are test nodes.
    """

    num_nodes: int = 2500
    num_classes: int = 6
    num_words: int = 120
    mean_degree: float = 6.0
    exponent: float = 1.5
    homophily: float = 0.75
    words_per_node: int = 12
    on_topic: float = 0.3
    num_train: int = 30
    num_val: int = 50


@dataclass(frozen=True, kw_only=True)
class Row:
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
class Result:
    """Results of :func:`run`; accuracies in percent of the test nodes, times in seconds."""

    seed: int
    epochs: int
    nodes: int
    edges: int
    mean_in_degree: float
    max_in_degree: int
    checkpoint: str | None
    float_accuracy: float
    rows: tuple[Row, ...]
    seconds: float
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON, with stable keys; ``report`` is that of the first preset."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "report": self.report.to_dict()}


def make_graph(seed: int = 0, spec: GraphSpec | None = None) -> Data:
    """Generates a graph with hubs, whose labels show in its edges and, faintly, in its features.

    A degree-corrected stochastic block model (Karrer and Newman, 2011): the ends of an edge are drawn in
    proportion to the nodes' weights, which are Pareto distributed. Features are a text's word frequencies.

    Args:
        seed: Seed of the graph; the global random state is left alone.
        spec: Sizes and probabilities; ``None``: the defaults.

    Returns:
        ``x`` float ``[num_nodes, num_words]``, rows summing to 1; ``edge_index`` ``[2, num_edges]``,
        undirected, without self-loops; ``y`` ``[num_nodes]``; ``train_mask``, ``val_mask`` and ``test_mask``
        bool ``[num_nodes]``.

    Example:
        >>> data = make_graph(seed=0)
        >>> data.x.shape, int(data.train_mask.sum())
        (torch.Size([2500, 120]), 180)
    """
    spec = spec or GraphSpec()
    rng = torch.Generator().manual_seed(seed)
    n, k = spec.num_nodes, spec.num_classes
    y = torch.arange(n) % k
    return Data(x=_texts(y, spec, rng), edge_index=_edges(y, spec, rng), y=y, **_split(y, spec, rng))


def _edges(y: Tensor, spec: GraphSpec, rng: torch.Generator) -> Tensor:
    """Draws undirected edges; no node is drawn more often than every 20th time, so that none is linked to all."""
    n = y.numel()
    weight = (1 - torch.rand(n, generator=rng)).pow(-1 / spec.exponent)
    weight = weight.clamp(max=0.05 * float(weight.sum()))
    source = torch.multinomial(weight, round(n * spec.mean_degree / 2), replacement=True, generator=rng)
    target = torch.multinomial(weight, source.numel(), replacement=True, generator=rng)
    within = torch.rand(source.numel(), generator=rng) < spec.homophily
    for label in range(spec.num_classes):
        here = within & (y[source] == label)
        own = weight * (y == label)
        target[here] = torch.multinomial(own, int(here.sum()), replacement=True, generator=rng)
    edge_index, _ = remove_self_loops(to_undirected(torch.stack([source, target]), num_nodes=n))
    return coalesce(edge_index, num_nodes=n)


def _texts(y: Tensor, spec: GraphSpec, rng: torch.Generator) -> Tensor:
    """Draws word frequencies; word w belongs to the vocabulary of class ``w % num_classes``."""
    shape = (y.numel(), spec.words_per_node)
    any_word = torch.randint(spec.num_words, shape, generator=rng)
    own_word = torch.randint(spec.num_words // spec.num_classes, shape, generator=rng)
    own_word = own_word * spec.num_classes + y[:, None]
    word = torch.where(torch.rand(shape, generator=rng) < spec.on_topic, own_word, any_word)
    counts = torch.zeros(y.numel(), spec.num_words).scatter_add_(1, word, torch.ones(shape))
    return counts / spec.words_per_node


def _split(y: Tensor, spec: GraphSpec, rng: torch.Generator) -> dict[str, Tensor]:
    masks = {name: torch.zeros_like(y, dtype=torch.bool) for name in ("train_mask", "val_mask", "test_mask")}
    for label in range(spec.num_classes):
        nodes = (y == label).nonzero().flatten()
        nodes = nodes[torch.randperm(nodes.numel(), generator=rng)]
        ends = (spec.num_train, spec.num_train + spec.num_val)
        for mask, part in zip(masks.values(), nodes.tensor_split(ends), strict=True):
            mask[part] = True
    return masks


def run(
    *,
    seed: int = 0,
    epochs: int = 50,
    presets: Sequence[str] = PRESETS,
    spec: GraphSpec | None = None,
    out: Path | None = None,
    timing_rounds: int = 5,
    progress: Progress | None = None,
) -> Result:
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
            rows.append(Row(preset=preset, quantizers=count, accuracy=accuracy, step_time_ratio=ratio))
            reports.append(report)

    in_degree = degree(data.edge_index[1], data.num_nodes)
    return Result(
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


def show(result: Result, console: Console, *, report: bool = True) -> None:
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

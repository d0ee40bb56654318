"""Training on many graphs, float and prepared models alike, for the experiments of this folder."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

import dqconvert
from dqconvert import QConfig
from study import Job, Log, Row, name_of, parameters_of, write_state


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: How often to go through the graphs.
        lr: The rate of Adam at the start.
        weight_decay: Of Adam.
        halve: Halve the rate every so many epochs; ``None``: let it fall to a hundredth by a cosine.
        distil: The weight of the float model's predictions, beside the labels; 0: labels alone.
        start: ``"float"``: from the float model's weights, calibrated; ``"scratch"``: from new ones.
        batch_size: Graphs per step.
    """

    epochs: int
    lr: float
    weight_decay: float = 0.0
    halve: int | None = None
    distil: float = 0.0
    start: str = "float"
    batch_size: int = 128

    def rate(self, epoch: int) -> float:
        """Returns the rate in an epoch, from 0 on."""
        if self.halve is not None:
            return self.lr * 0.5 ** (epoch // self.halve)
        return self.lr * max(0.01, 0.5 * (1 + math.cos(math.pi * epoch / self.epochs)))


class Task(NamedTuple):
    """What is learned of graphs, and how it is measured.

    Attributes:
        fields: Names of a batch's fields that forward takes, in order.
        loss: Of outputs and ``y``, the mean over the graphs.
        score: Likewise; what is reported.
        distance: Of outputs and the float model's, the mean over the graphs: what distilling minimizes.
    """

    fields: tuple[str, ...]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        return tuple(batch[name] for name in self.fields)


def classification(*fields: str) -> Task:
    """Returns the task of naming a graph's class: cross-entropy, accuracy in percent, and divergence."""

    def score(out: Tensor, y: Tensor) -> Tensor:
        return 100 * (out.argmax(-1) == y).float().mean()

    def distance(out: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(out, -1), F.log_softmax(target, -1), reduction="batchmean", log_target=True)

    return Task(fields, F.cross_entropy, score, distance)


def regression(*fields: str) -> Task:
    """Returns the task of telling a number: squared error, absolute error, and squared distance."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out.view(-1), y.view(-1))

    def score(out: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(out.view(-1), y.view(-1))

    return Task(fields, loss, score, F.mse_loss)


@torch.no_grad()
def evaluate(model: nn.Module, graphs: Sequence[Data], task: Task, batch_size: int = 128) -> tuple[float, float]:
    """Returns loss and score of a model on graphs, in evaluation mode."""
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for batch in DataLoader(graphs, batch_size):
        out = model(*task.inputs(batch))
        total += len(batch.y) * torch.stack([task.loss(out, batch.y), task.score(out, batch.y)]).double()
    loss, score = (total / len(graphs)).tolist()
    return loss, score


def train(
    model: nn.Module,
    graphs: Sequence[Data],
    validation: Sequence[Data],
    task: Task,
    recipe: Recipe,
    log: Log,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    state: Path | None = None,
) -> None:
    """Trains a model in place, float or prepared alike.

    It ends as it was after the epoch of the lowest validation loss, the latest of equals. ``teacher`` is the float
    model, whose predictions count as the recipe says. ``state`` is a file that holds the training after each epoch, and
    from which it goes on; every epoch seeds its own draws, so that it goes on exactly.
    """
    distils = teacher is not None and recipe.distil > 0
    if teacher is not None and distils:
        graphs = taught(graphs, teacher, task, recipe.batch_size)
    optimizer = torch.optim.Adam(parameters_of(model, recipe.weight_decay), lr=recipe.lr)
    best, done = {"loss": math.inf, "model": copy.deepcopy(model.state_dict())}, 0
    if state is not None and state.exists():
        held = torch.load(state, weights_only=True)
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        best, done = held["best"], held["done"]
    for epoch in range(done, recipe.epochs):
        torch.manual_seed(1_000_003 * seed + epoch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch)
        model.train()
        losses = []
        for batch in DataLoader(graphs, recipe.batch_size, shuffle=True):
            optimizer.zero_grad()
            out = model(*task.inputs(batch))
            loss = task.loss(out, batch.y)
            if distils:
                loss = loss + recipe.distil * task.distance(out, batch.target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        val_loss, val = evaluate(model, validation, task, recipe.batch_size)
        if val_loss <= best["loss"]:
            best = {"loss": val_loss, "model": copy.deepcopy(model.state_dict())}
        if state is not None:
            held = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            write_state(state, {**held, "best": best, "done": epoch + 1})
        log(epoch + 1, loss=float(torch.stack(losses).mean()), val_loss=val_loss, val=val)
    model.load_state_dict(best["model"])


@torch.no_grad()
def taught(graphs: Sequence[Data], teacher: nn.Module, task: Task, batch_size: int = 128) -> list[Data]:
    """Returns copies of the graphs, each with what a teacher, in evaluation mode, makes of it: ``target`` [1, ...]."""
    outs = torch.cat([teacher(*task.inputs(batch)) for batch in DataLoader(graphs, batch_size)])
    found = [copy.copy(graph) for graph in graphs]
    for graph, out in zip(found, outs.split(1), strict=True):
        graph.target = out
    return found


@dataclass(frozen=True, kw_only=True)
class Split:
    """Graphs to train on, to choose by, and to test on, the last looked at once, when a model is done."""

    train: Sequence[Data]
    validation: Sequence[Data]
    test: Sequence[Data]


def jobs(
    new_model: Callable[[], nn.Module],
    split: Split,
    task: Task,
    recipes: Mapping[str, Recipe],
    configs: Mapping[str, QConfig],
    key: Row,
    *,
    seed: int,
    out: Path | None,
) -> Iterator[Job]:
    """Yields a job for the float model, for that trained on by each recipe of a preset, and for each preset.

    Args:
        new_model: Makes the float model, with seeded weights.
        split: The graphs.
        task: What to learn of them.
        recipes: Of ``"float"``, and of each config.
        configs: By name.
        key: What the runs have in common.
        seed: Of draws.
        out: Where states are kept.
    """

    floats: list[nn.Module] = []

    def keyed(preset: str, recipe: Recipe, **more: str) -> Row:
        return {**key, "preset": preset, "recipe": str(recipe), **more}

    def fit(model: nn.Module, row: Row, recipe: Recipe, log: Log, teacher: nn.Module | None = None) -> None:
        state = None if out is None else out / "states" / f"{name_of(row)}.pt"
        train(model, split.train, split.validation, task, recipe, log, seed=seed, teacher=teacher, state=state)

    def float_model(log: Log = _silent) -> nn.Module:
        if not floats:
            model = new_model()
            fit(model, keyed("float", recipes["float"]), recipes["float"], log)
            floats.append(model.eval())
        return copy.deepcopy(floats[0])

    def tested(model: nn.Module) -> Row:
        val = evaluate(model, split.validation, task)[1]
        return {"val": val, "test": evaluate(model, split.test, task)[1]}

    def trained_on(row: Row, recipe: Recipe, log: Log) -> Row:
        model = float_model()
        fit(model, row, recipe, log, float_model())
        return tested(model)

    def quantized(row: Row, config: QConfig, recipe: Recipe, log: Log) -> Row:
        teacher = float_model() if recipe.start == "float" else None
        batches = [task.inputs(batch) for batch in itertools.islice(DataLoader(split.train, recipe.batch_size), 8)]
        model = dqconvert.prepare(new_model() if teacher is None else teacher, config, batches[0]).module
        if teacher is not None:
            dqconvert.calibrate(model, batches)
        fit(model, row, recipe, log, teacher)
        return tested(model) | {"integer": evaluate(dqconvert.convert(model), split.test, task)[1]}

    recipe = recipes["float"]
    yield Job(keyed("float", recipe), lambda log: tested(float_model(log)), recipe.epochs)
    for recipe in dict.fromkeys(recipes[name] for name in configs):
        if recipe.start == "float" and recipe.epochs:
            row = keyed(f"float + {recipe.epochs} epochs", recipe)
            yield Job(row, partial(trained_on, row, recipe), recipe.epochs)
    for name, config in configs.items():
        row = keyed(name, recipes[name], config=str(config))
        yield Job(row, partial(quantized, row, config, recipes[name]), recipes[name].epochs)


def _silent(epoch: int, **values: float) -> None:
    """Logs nothing."""

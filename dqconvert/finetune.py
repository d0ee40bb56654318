"""``finetune``: float model and data → trained prepared module, in one call: prepare, calibrate, distil."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from dqconvert.advice import log_advice
from dqconvert.calibrate import calibrate
from dqconvert.distil import Fields, Lessons
from dqconvert.distributed import by_itself
from dqconvert.errors import CheckpointError, ConfigError
from dqconvert.expect import expect_float
from dqconvert.files import check_target, write_file
from dqconvert.labels import Rows, is_pair
from dqconvert.optimizers import parameter_groups
from dqconvert.prepare import Prepared, prepare
from dqconvert.prepared.switches import rounding
from dqconvert.qconfig import QConfig, presets
from dqconvert.samples import looking, watching
from dqconvert.store import digest
from dqconvert.trace.copies import working_copy
from dqconvert.weights.archive import load_archive
from dqconvert.words import kind_of, shortened


class Epoch(NamedTuple):
    """One epoch of a fine-tuning.

    Attributes:
        number: From 1 on.
        loss: The mean of its steps' losses.
        score: What the best epoch is chosen by, larger is better; ``None`` where this epoch was not looked at.
        best: The best score so far, that of the calibrated module included.
    """

    number: int
    loss: float
    score: float | None
    best: float


@by_itself
def finetune(
    model: nn.Module,
    data: Any,
    qconfig: QConfig | Mapping[str, Any] | str | os.PathLike[str] | None = "int8-dq+",
    *,
    epochs: int = 150,
    lr: float = 0.01,
    labels: Rows = None,
    mask: Rows = None,
    validation: Rows = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    temperature: float = 2.0,
    distil: float = 5.0,
    weight_decay: float = 5e-4,
    example_inputs: Any = None,
    resume: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = True,
) -> Prepared:
    """Prepares a trained float model, calibrates it, and trains it to predict as the float model does.

    The loss is ``distil * T^2 * KL(float || quantized)`` over all rows of the output, of softmaxes at temperature
    ``T``; where there are labels, theirs is added. Outputs of one column (or of none), and those whose labels are
    floats, count as numbers: squared error over the variance of the float model's (where these are all alike, as in a
    batch of one, over their mean square), in place of the divergence. Adam, with a rate that falls to a hundredth by a
    cosine. The module ends with the best of what it was after calibration
    and after each epoch of the second half: by its accuracy on the rows of ``validation``, or else by the share of its
    predictions that are the float model's. What then still costs accuracy is logged as warnings of the logger
    ``dqconvert``, see :meth:`dqconvert.Report.advice`. It trains in one process:
    of several ranks, each by itself.

    Args:
        model: The float model, trained; it is not changed.
        data: What to train on: one call's worth of inputs (a graph), or several: a list or a ``DataLoader``, which is
            gone through once per epoch. Inputs are as for :func:`dqconvert.calibrate`.
        qconfig: As for :func:`dqconvert.prepare`.
        epochs: How often to go through the data.
        lr: The rate of Adam at the start.
        labels: The name of a field of the data objects (``"y"``), or for a single call a tensor with a row for each row
            of the output: classes (int64) or numbers. ``None``: no label is used.
        mask: The rows whose labels count: the name of a field (``"train_mask"``), or a bool tensor. ``None``: all.
        validation: The rows that choose the best epoch, likewise; needs ``labels``.
        loss: Of an output's rows and their labels. ``None``: cross-entropy for classes, squared error for numbers.
        temperature: ``T``.
        distil: The weight of the float model's predictions; 0 trains on the labels alone.
        weight_decay: Of Adam; steps that are learned have none.
        example_inputs: As for :func:`dqconvert.prepare`; ``None``: the first call's of the data.
        resume: A file that holds the state of the training after each epoch; if it exists, training goes on from it:
            with the same config, float model and arguments.
        on_epoch: Called after each epoch.
        progress: Show a progress bar, where stderr is a terminal.

    Returns:
        The module, trained and in evaluation mode, and its report.

    Raises:
        ConfigError: If an argument is wrong, a field is not in the data, or rows do not fit the output.
        TraceError: If the model cannot be traced.
        CheckpointError: If ``resume`` cannot be read or written, or is of another training.

    Source:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015, section 2.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(16, 32, num_layers=2, out_channels=7)  # trained, say
        >>> x, edge_index = torch.randn(20, 16), torch.randint(20, (2, 60))
        >>> module, report = dqconvert.finetune(model, (x, edge_index), "int4-dq", epochs=2, progress=False)
        >>> dqconvert.convert(module)(x, edge_index).shape
        torch.Size([20, 7])
    """
    expect_float(model, "finetune")
    _check_numbers(epochs=epochs, lr=lr, temperature=temperature, distil=distil, weight_decay=weight_decay)
    if labels is None and (mask is not None or validation is not None):
        raise ConfigError("finetune: mask and validation say which labels to use: pass labels, or neither.")
    if labels is None and distil == 0:
        raise ConfigError("finetune: distil=0 leaves nothing to learn from without labels: pass labels, or distil > 0.")
    if isinstance(data, Iterator):
        data = list(data)  # gone through once per epoch
    teacher = working_copy(model, caller="finetune()", error=ConfigError).eval()
    module, _ = prepare(model, qconfig, first_inputs(data, "finetune") if example_inputs is None else example_inputs)
    calibrate(module, data)
    given = Fields(labels, mask, validation)
    lessons = Lessons(module, teacher, data, given, loss, temperature, distil)
    optimizer = torch.optim.Adam(parameter_groups(module, weight_decay=weight_decay), lr=lr)
    fields = {name: value if isinstance(value, str) else value is not None for name, value in given._asdict().items()}
    numbers = {"epochs": epochs, "lr": lr, "temperature": temperature, "distil": distil, "weight_decay": weight_decay}
    of = {"qconfig": _config_name(module.qconfig), "weights": _checksum(teacher)}
    run = _Run(module, optimizer, {**of, **numbers, **fields, "loss": loss is not None})
    if resume is not None:
        run.read(check_target(resume))
    with Progress(
        console=(console := Console(stderr=True)), transient=True, disable=not progress or not console.is_terminal
    ) as bar:
        task = bar.add_task("fine-tuning", total=epochs, completed=run.done)
        run.start(lessons)
        while run.done < epochs:
            found = run.epoch(lessons)
            if resume is not None:
                run.write(resume)
            if on_epoch is not None:
                on_epoch(found)
            bar.update(task, completed=run.done)
    run.finish()
    with rounding(module), watching(module.quantizers(), looking(module)), torch.no_grad():
        for lesson in itertools.islice(lessons, 1):
            module(*lesson.args, **lesson.kwargs)
    log_advice(module)
    return Prepared(module, module.report)


def _check_numbers(*, epochs: int, lr: float, **others: float) -> None:
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ConfigError(f"finetune takes as epochs a whole number from 1 on, got {shortened(epochs)}.")
    for name, value in {"lr": lr, **others}.items():
        least = 0 if name in ("distil", "weight_decay") else math.ulp(0)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value < math.inf:
            above = "a number from 0 on" if least == 0 else "a number above 0"
            raise ConfigError(f"finetune takes as {name} {above}, got {shortened(value)}.")


def _config_name(qconfig: QConfig) -> str:
    """Returns what tells a config from others: a preset's name, or all that it says."""
    known = next((name for name, preset in presets.items() if preset == qconfig), None)
    return known or re.sub(r" at 0x[0-9a-f]+", "", repr(qconfig))  # where a factory of a rule lies differs by process


def _checksum(model: nn.Module) -> str:
    """Returns a hash of a model's parameters and buffers; sparse ones are left out."""
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.layout is torch.strided)
    return hashlib.sha256("".join(digest(tensor.cpu(), False) for tensor in tensors).encode()).hexdigest()[:8]


def first_inputs(data: Any, door: str) -> Any:
    """Returns the inputs of the first call, as ``prepare`` takes them; ``door``: the function that was given them."""
    if isinstance(data, BaseData | Tensor | Mapping | tuple):
        return data
    if not isinstance(data, Iterable):
        raise ConfigError(f"{door} takes as data a graph's inputs or several, got {kind_of(data)}.")
    first = next(iter(data), None)
    if first is None:
        raise ConfigError(f"{door}: there is no data; pass at least one batch.")
    return first[0] if is_pair(first) else first


# -- the training ------------------------------------------------------------------------------------------------


class _Run:
    """The epochs, and what they have come to."""

    def __init__(self, module: Any, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        self._module, self._optimizer, self._settings = module, optimizer, settings
        self._epochs, self._lr = settings["epochs"], settings["lr"]
        self.done = 0
        self._best: float | None = None
        self._state: dict[str, Any] | None = None

    def start(self, lessons: Lessons) -> None:
        """Lets the calibrated module stand for election, unless the training goes on from a file."""
        if self.done == 0:
            self._elect(self._scored(lessons))

    def _elect(self, score: float) -> None:
        if self._best is None or score >= self._best:  # the latest of equals
            self._best, self._state = score, copy.deepcopy(self._module.state_dict())

    def epoch(self, lessons: Lessons) -> Epoch:
        share = 0.5 * (1 + math.cos(math.pi * self.done / self._epochs))
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * max(0.01, share)
        self._module.train()
        losses = []
        for lesson in lessons:
            self._optimizer.zero_grad()
            loss = lessons.loss(lesson, self._module(*lesson.args, **lesson.kwargs))
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
        if not losses:
            raise ConfigError("finetune: the data gave no batch in this epoch: pass a list or a loader, no iterator.")
        self.done += 1
        score = self._scored(lessons) if 2 * self.done > self._epochs else None
        if score is not None:
            self._elect(score)
        assert self._best is not None
        return Epoch(self.done, float(torch.stack(losses).mean()), score, self._best)

    @torch.no_grad()
    def _scored(self, lessons: Lessons) -> float:
        self._module.eval()
        found = [lessons.score(lesson, self._module(*lesson.args, **lesson.kwargs)) for lesson in lessons]
        return sum(total for total, _ in found) / max(sum(number for _, number in found), 1)

    def finish(self) -> None:
        """Gives the module the state of its best epoch."""
        if self._state is not None:
            self._module.load_state_dict(self._state)
        self._module.eval()

    # -- a file to go on from ------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike[str]) -> None:
        held = io.BytesIO()
        torch.save(
            {
                "dqconvert_finetune": 1,
                "done": self.done,
                "settings": self._settings,
                "module": self._module.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "best": self._best,
                "state": self._state,
                "rng": torch.get_rng_state(),
            },
            held,
        )
        write_file(path, [held.getbuffer()])

    def read(self, path: os.PathLike[str]) -> None:
        """Goes on from a file, if it is there."""
        if not os.path.exists(path):
            return
        found = load_archive(path, classes=(), advice="it is no state of a fine-tuning")
        keys = {"settings", "module", "optimizer", "done", "best", "state", "rng"}
        if not isinstance(found, dict) or found.get("dqconvert_finetune") != 1 or not keys <= found.keys():
            raise CheckpointError(f"{path}: is no state of a fine-tuning: give another file as resume, or delete it.")
        then = found["settings"]
        changed = [
            f"{name} {value if isinstance(value := then.get(name), str) else repr(value)}"[:80]
            for name, now in self._settings.items()
            if then.get(name) != now
        ]
        if changed or set(found["module"]) != set(self._module.state_dict()):
            what = f" ({', '.join(changed)})" if changed else ", of another model or config"
            raise CheckpointError(
                f"{path}: is the state of another fine-tuning{what}: give the same arguments, or another file as "
                f"resume."
            )
        self._module.load_state_dict(found["module"])
        self._optimizer.load_state_dict(found["optimizer"])
        self.done, self._best, self._state = found["done"], found["best"], found["state"]
        torch.set_rng_state(found["rng"])

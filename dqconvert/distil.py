"""The loss of fine-tuning: the distance to the float model's predictions, and that to labels where there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqconvert.calibrate import callee_of
from dqconvert.errors import ConfigError
from dqconvert.labels import Rows, as_classes, as_labels, chosen, holders_of, outputs_of, rows_of
from dqconvert.trace.callee import Callee
from dqconvert.trace.given import is_single

_NUMBERS = "for one column pass labels as floats, and loss= if it is not the squared error"


class Fields(NamedTuple):
    """Which rows have which labels.

    Attributes:
        labels: The labels; ``None``: there are none.
        mask: The rows whose labels are learned; ``None``: all.
        validation: The rows whose labels choose the best epoch; ``None``: the float model's predictions do.
    """

    labels: Rows
    mask: Rows
    validation: Rows


@dataclass(frozen=True)
class Lesson:
    """One call, and what its output is compared with.

    Attributes:
        args: Of the call.
        kwargs: Of the call.
        targets: What the float model returns, its floating tensors.
        labels: A row for each row of the first of them; ``None``: there are none.
        mask: The rows whose labels are learned.
        validation: The rows whose labels choose the best epoch.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: tuple[Tensor, ...]
    labels: Tensor | None
    mask: Tensor | None
    validation: Tensor | None


class Lessons:
    """The calls that data stands for, with the float model's outputs and the labels.

    A single call's outputs are computed once; those of several calls, which a loader may shuffle, in every epoch.

    Args:
        module: The prepared module.
        teacher: The float model, in evaluation mode.
        data: One call's worth of inputs, or several.
        fields: Where the labels are.
        loss: Of rows and labels, if it is the user's.
        temperature: Of the softmaxes.
        distil: The weight of the float model's predictions.
    """

    def __init__(
        self,
        module: Any,
        teacher: nn.Module,
        data: Any,
        fields: Fields,
        loss: Callable[[Tensor, Tensor], Tensor] | None,
        temperature: float,
        distil: float,
    ) -> None:
        self._callee: Callee = callee_of(module)
        self._teacher, self._data, self._fields = teacher, data, fields
        self._loss, self._temperature, self._distil = loss, temperature, distil
        single = is_single(self._callee, data)
        self._known = list(self._made()) if single else None
        if not single and any(isinstance(rows, Tensor) for rows in fields):
            raise ConfigError(
                "finetune takes labels, mask and validation as names of fields where data is several calls, got a "
                "tensor."
            )

    def __iter__(self) -> Iterator[Lesson]:
        return iter(self._known) if self._known is not None else self._made()

    def _made(self) -> Iterator[Lesson]:
        for call, holder in holders_of(self._callee, self._data):
            with torch.no_grad():
                outputs = outputs_of(self._teacher(*call.args, **call.kwargs), "finetune")
            fields = self._fields._asdict().items()
            yield Lesson(
                call.args, call.kwargs, outputs, *(rows_of(holder, *f, outputs[0], "finetune") for f in fields)
            )

    def loss(self, lesson: Lesson, result: Any) -> Tensor:
        """Returns the loss of what the prepared module computed."""
        outputs = outputs_of(result, "finetune")
        total = outputs[0].new_zeros(())
        if self._distil:
            pairs = zip(outputs, lesson.targets, strict=True)
            distances = (_distance(out, target, self._temperature, _is_scores(lesson, target)) for out, target in pairs)
            total = total + self._distil * sum(distances)
        if lesson.labels is not None:
            total = total + self._of_labels(*chosen(outputs[0], lesson.labels, lesson.mask))
        return total

    def _of_labels(self, output: Tensor, labels: Tensor) -> Tensor:
        if not len(labels):  # no row of this batch has a label that counts
            return output.new_zeros(())
        if self._loss is not None:
            return self._loss(output, labels)
        if labels.is_floating_point():
            return F.mse_loss(as_labels(output, labels, "finetune"), labels)
        return F.cross_entropy(as_classes(output, labels, "finetune", _NUMBERS), labels)

    def score(self, lesson: Lesson, result: Any) -> tuple[float, int]:
        """Returns the sum of the rows' scores, and the number of rows."""
        outputs = outputs_of(result, "finetune")
        if lesson.validation is not None and lesson.labels is not None:
            output, labels = chosen(outputs[0], lesson.labels, lesson.validation)
            if not labels.is_floating_point():
                return float((as_classes(output, labels, "finetune", _NUMBERS).argmax(-1) == labels).sum()), len(labels)
            return -float((as_labels(output, labels, "finetune") - labels).square().sum()), labels.numel()
        output, target = outputs[0], lesson.targets[0]
        if _is_scores(lesson, target):
            same = output.argmax(-1) == target.argmax(-1)
            return float(same.sum()), same.numel()
        return -float((output - target).square().sum()), target.numel()


def _is_scores(lesson: Lesson, target: Tensor) -> bool:
    """True if an output's rows are scores of classes; False if they are numbers, as labels that are numbers say."""
    numbers = lesson.labels is not None and lesson.labels.is_floating_point()
    return target.dim() >= 2 and target.size(-1) >= 2 and not numbers


def _distance(output: Tensor, target: Tensor, temperature: float, scores: bool) -> Tensor:
    if not scores:
        return F.mse_loss(output, target) / _spread(target) if target.numel() else output.sum()
    log_p, q = F.log_softmax(output / temperature, -1), F.softmax(target / temperature, -1)
    rows = max(target.numel() // target.size(-1), 1)
    return temperature**2 * F.kl_div(log_p, q, reduction="sum") / rows


def _spread(target: Tensor) -> Tensor:
    """Returns the variance of numbers; where they are all alike their mean square, and 1 where they are zero."""
    variance, square = target.var(correction=0), target.square().mean()
    spread = torch.where(variance > 1e-6 * square, variance, square)
    return spread.masked_fill(spread < 1e-30, 1)

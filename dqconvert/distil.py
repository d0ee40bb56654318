"""The loss of fine-tuning: the distance to the float model's predictions, and that to labels where there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch_geometric.data.data import BaseData

from dqconvert.calibrate import callee_of
from dqconvert.errors import ConfigError
from dqconvert.trace.callee import Callee
from dqconvert.trace.given import calls_of, is_single
from dqconvert.words import did_you_mean, kind_of, listed

Rows: TypeAlias = Tensor | str | None
"""Labels or a mask: a tensor, or the name of a field of the data objects."""


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
        self._known = list(self._made([data], batched=False)) if single else None
        if not single and any(isinstance(rows, Tensor) for rows in fields):
            raise ConfigError(
                "finetune takes labels, mask and validation as names of fields where data is several calls, got a "
                "tensor."
            )

    def __iter__(self) -> Iterator[Lesson]:
        return iter(self._known) if self._known is not None else self._made(self._data, batched=True)

    def _made(self, data: Iterable[Any], *, batched: bool) -> Iterator[Lesson]:
        for item in data:
            for call in calls_of(self._callee, [item] if batched else item):
                with torch.no_grad():
                    outputs = _outputs(self._teacher(*call.args, **call.kwargs))
                holder = item[0] if is_pair(item) else item
                rows = [_rows(holder, name, value, outputs[0]) for name, value in self._fields._asdict().items()]
                yield Lesson(call.args, call.kwargs, outputs, *rows)

    def loss(self, lesson: Lesson, result: Any) -> Tensor:
        """Returns the loss of what the prepared module computed."""
        outputs = _outputs(result)
        total = outputs[0].new_zeros(())
        if self._distil:
            pairs = zip(outputs, lesson.targets, strict=True)
            distances = (_distance(out, target, self._temperature, _is_scores(lesson, target)) for out, target in pairs)
            total = total + self._distil * sum(distances)
        if lesson.labels is not None:
            total = total + self._of_labels(*_chosen(outputs[0], lesson.labels, lesson.mask))
        return total

    def _of_labels(self, output: Tensor, labels: Tensor) -> Tensor:
        if not len(labels):  # no row of this batch has a label that counts
            return output.new_zeros(())
        if self._loss is not None:
            return self._loss(output, labels)
        if labels.is_floating_point():
            return F.mse_loss(_as_labels(output, labels), labels)
        return F.cross_entropy(_as_classes(output, labels), labels)

    def score(self, lesson: Lesson, result: Any) -> tuple[float, int]:
        """Returns the sum of the rows' scores, and the number of rows."""
        outputs = _outputs(result)
        if lesson.validation is not None and lesson.labels is not None:
            output, labels = _chosen(outputs[0], lesson.labels, lesson.validation)
            if not labels.is_floating_point():
                return float((_as_classes(output, labels).argmax(-1) == labels).sum()), len(labels)
            return -float((_as_labels(output, labels) - labels).square().sum()), labels.numel()
        output, target = outputs[0], lesson.targets[0]
        if _is_scores(lesson, target):
            same = output.argmax(-1) == target.argmax(-1)
            return float(same.sum()), same.numel()
        return -float((output - target).square().sum()), target.numel()


def is_pair(item: Any) -> bool:
    """True if an item of a loader is a data object and something else, such as its target."""
    return isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], BaseData)


def _outputs(result: Any) -> tuple[Tensor, ...]:
    found = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    if not found:
        raise ConfigError(
            f"finetune needs a model that returns a floating tensor, and this one returns {kind_of(result)}."
        )
    return found


def _is_scores(lesson: Lesson, target: Tensor) -> bool:
    """True if an output's rows are scores of classes; False if they are numbers, as labels that are numbers say."""
    numbers = lesson.labels is not None and lesson.labels.is_floating_point()
    return target.dim() >= 2 and target.size(-1) >= 2 and not numbers


def _as_labels(output: Tensor, labels: Tensor) -> Tensor:
    """Returns an output in the shape of labels that are numbers."""
    if output.numel() != labels.numel():
        raise ConfigError(
            f"finetune: labels that are numbers need one for each number of the output: the output's rows have shape "
            f"{list(output.shape)}, the labels {list(labels.shape)}."
        )
    return output.reshape(labels.shape)


def _as_classes(output: Tensor, labels: Tensor) -> Tensor:
    """Returns an output whose columns are the classes that integer labels name."""
    columns = output.size(-1) if output.dim() == 2 else 1
    if columns < 2 or labels.dim() != 1 or labels.dtype == torch.bool:
        raise ConfigError(
            f"finetune: labels of {str(labels.dtype)[6:]} {list(labels.shape)} for an output of {list(output.shape)}: "
            f"classes are one whole number per row, for an output with a column for each class; for one column pass "
            f"labels as floats, and loss= if it is not the squared error."
        )
    on_cpu = labels.device.type == "cpu"  # elsewhere it would have to be waited for, and torch checks by itself
    if on_cpu and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < columns:
        raise ConfigError(
            f"finetune: labels from {int(labels.min())} to {int(labels.max())}, and the output has {columns} columns, "
            f"for classes 0 to {columns - 1}."
        )
    return output


def _distance(output: Tensor, target: Tensor, temperature: float, scores: bool) -> Tensor:
    if not scores:
        return F.mse_loss(output, target) / target.var(correction=0).clamp(min=1e-12)
    log_p, q = F.log_softmax(output / temperature, -1), F.softmax(target / temperature, -1)
    rows = max(target.numel() // target.size(-1), 1)
    return temperature**2 * F.kl_div(log_p, q, reduction="sum") / rows


def _rows(item: Any, name: str, value: Rows, output: Tensor) -> Tensor | None:
    """Returns the labels or the mask of one call."""
    if isinstance(value, str):
        if not isinstance(item, BaseData):
            raise ConfigError(
                f"finetune: {name}={value!r} is a field of data objects, and the data is {kind_of(item)}."
            )
        if value not in item:
            there = sorted(item.keys())
            raise ConfigError(
                f"finetune: {name}={value!r} is not in the {type(item).__name__}, which has {listed(there)}"
                f"{did_you_mean(value, there)}"
            )
        value = item[value]
    if value is None:
        return None
    is_mask = name != "labels"
    fits = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(output)
    if not isinstance(value, Tensor) or not fits or (is_mask and value.dtype != torch.bool):
        wanted = f"a {'bool ' if is_mask else ''}tensor of {len(output)} rows, as the output has"
        got = f"{str(value.dtype)[6:]} {list(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
        raise ConfigError(f"finetune takes as {name} {wanted}, got {got}.")
    return value


def _chosen(output: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return (output, labels) if mask is None else (output[mask], labels[mask])

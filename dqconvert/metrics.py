"""Metrics of a model's predictions on labels: by name, as a function, or an object of torchmetrics or PyG."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqconvert.errors import ConfigError, DQConvertError
from dqconvert.labels import as_classes, as_labels
from dqconvert.words import did_you_mean, kind_of, listed, raised


class _Named(NamedTuple):
    """A metric that has a name.

    Attributes:
        unit: Of its value, in a table.
        items: Returns a number for each label, whose mean it is a function of.
        value: That function.
    """

    unit: str
    items: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[float], float]


def _hits(rows: Tensor, labels: Tensor) -> Tensor:
    return as_classes(rows, labels, "evaluate", "pass metric= for other labels").argmax(-1) == labels


def _errors(rows: Tensor, labels: Tensor) -> Tensor:
    return as_labels(rows, labels, "evaluate").double() - labels


NAMED: dict[str, _Named] = {
    "accuracy": _Named("%", _hits, lambda mean: 100 * mean),
    "mae": _Named("", lambda rows, labels: _errors(rows, labels).abs(), lambda mean: mean),
    "rmse": _Named("", lambda rows, labels: _errors(rows, labels).square(), math.sqrt),
}
"""Metrics by name: the share of labels that are the column of the largest score; the mean absolute error; the root of
the mean squared error."""


@contextmanager
def of_users(what: str) -> Iterator[None]:
    """Names the model or metric whose own code raises."""
    try:
        yield
    except DQConvertError:
        raise
    except Exception as error:
        raise ConfigError(f"evaluate: {what} raised {raised(error)}") from error


class Gauge:
    """One metric of one model, over several batches.

    Args:
        name: Of the metric.
        metric: A name of :data:`NAMED`, a function of rows and labels, or an object with ``update`` and ``compute``,
            of which a copy is used.

    Example:
        >>> gauge = Gauge("accuracy", "accuracy")
        >>> gauge.add(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        >>> gauge.value()
        50.0
    """

    def __init__(self, name: str, metric: Any) -> None:
        self.name = name
        self._named = NAMED[metric] if isinstance(metric, str) else None
        self._object = copy.deepcopy(metric) if _keeps_state(metric) else None
        if self._object is not None and hasattr(self._object, "reset"):
            self._object.reset()
        self._function = metric
        self._total, self._count = 0.0, 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    @property
    def unit(self) -> str:
        """The unit of the value, as a table shows it; empty: a plain number."""
        return "" if self._named is None else self._named.unit

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Takes the rows of an output, and the label of each."""
        if self._named is not None:
            items = self._named.items(rows, labels)
            self._total += float(items.double().sum())
            self._count += items.numel()
        elif self._object is not None:
            with of_users(f"the metric {self.name}"):
                self._object.update(rows, labels)
        else:
            self._kept.append((rows, labels))

    def value(self) -> float:
        """Returns the metric of all that was added; NaN of nothing.

        Raises:
            ConfigError: If a metric of the user's raises, or returns no number.
        """
        if self._named is not None:
            return self._named.value(self._total / self._count) if self._count else math.nan
        with of_users(f"the metric {self.name}"):
            if self._object is not None:
                found = self._object.compute()
            else:
                found = self._function(*(torch.cat(part) for part in zip(*self._kept, strict=True)))
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"evaluate: the metric {self.name} returned {kind_of(found)}, and one number is expected: with "
                f"torchmetrics, average='micro' or 'macro' makes one of several."
            ) from error


def metrics_of(given: Any) -> dict[str, Any]:
    """Returns metrics by name, as ``evaluate(metric=…)`` takes them: one, or a dict of such.

    Raises:
        ConfigError: If one is no metric.

    Example:
        >>> metrics_of("accuracy")
        {'accuracy': 'accuracy'}
    """
    found = dict(given) if isinstance(given, Mapping) else {_name_of(given): given}
    for metric in found.values():
        if isinstance(metric, str) and metric not in NAMED:
            near = did_you_mean(metric, NAMED) or f"; there are {listed(NAMED)}"
            others = "for others pass a function of predictions and labels, or an object of torchmetrics"
            raise ConfigError(f"evaluate: there is no metric {metric!r}{near}; {others}.")
        if isinstance(metric, type) or not (isinstance(metric, str) or callable(metric) or _keeps_state(metric)):
            what = f"the class {metric.__name__}: make an instance" if isinstance(metric, type) else kind_of(metric)
            raise ConfigError(
                f"evaluate takes as metric a name ({listed(NAMED)}), a function of predictions and labels, an object "
                f"of torchmetrics, or a dict of such, got {what}."
            )
    return found


def default_metric(rows: Tensor, labels: Tensor) -> str | None:
    """Returns the name of the metric that labels ask for; ``None`` if that cannot be told from them.

    Example:
        >>> default_metric(torch.zeros(2, 3), torch.tensor([0, 2])), default_metric(torch.zeros(2), torch.zeros(2))
        ('accuracy', 'mae')
    """
    if labels.is_floating_point():
        return "mae" if rows.numel() == labels.numel() else None
    classes = labels.dtype not in (torch.bool,) and labels.dim() == 1 and rows.dim() == 2 and rows.size(-1) > 1
    return "accuracy" if classes else None


def _keeps_state(metric: Any) -> bool:
    return not isinstance(metric, type) and hasattr(metric, "update") and hasattr(metric, "compute")


def _name_of(metric: Any) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)

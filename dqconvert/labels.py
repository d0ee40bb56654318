"""Labels beside calls: which rows of an output have which, wherever data objects or tensors hold them."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import BoundArguments
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch_geometric.data.data import BaseData

from dqconvert.errors import ConfigError
from dqconvert.trace.callee import Callee
from dqconvert.trace.given import calls_of, is_single
from dqconvert.words import did_you_mean, kind_of, listed

Rows: TypeAlias = Tensor | str | None
"""Labels or a mask: a tensor, or the name of a field of the data objects."""


def is_pair(item: Any) -> bool:
    """True if an item of a loader is a data object and something else, such as its target."""
    return isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], BaseData)


def holders_of(callee: Callee, data: Any) -> Iterator[tuple[BoundArguments, Any]]:
    """Yields each call that data stands for, and what it was made of: the data object whose fields labels are."""
    if isinstance(data, BoundArguments):
        yield data, data
        return
    single = is_single(callee, data)
    for item in [data] if single else data:
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], BoundArguments):
            yield item
            continue
        for call in calls_of(callee, item if single else [item]):
            yield call, item[0] if is_pair(item) else item


def outputs_of(result: Any, door: str) -> tuple[Tensor, ...]:
    """Returns the floating tensors among a model's outputs; there is one at least.

    Args:
        door: The public function that runs the model, for the message.

    Raises:
        ConfigError: If there is none.
    """
    found = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    if not found:
        raise ConfigError(
            f"{door} needs a model that returns a floating tensor, and this one returns {kind_of(result)}."
        )
    return found


def rows_of(item: Any, name: str, value: Rows, output: Tensor, door: str) -> Tensor | None:
    """Returns the labels or the mask of one call.

    Args:
        item: What the call was made of.
        name: The argument that ``value`` was given as: ``"labels"``, or a mask's.
        value: The field's name, or the tensor itself.
        output: What the model returns; each row needs an entry.
        door: The public function that was given it.

    Raises:
        ConfigError: If there is no such field, or it does not fit.
    """
    if isinstance(value, str):
        if not isinstance(item, BaseData):
            raise ConfigError(f"{door}: {name}={value!r} is a field of data objects, and the data is {kind_of(item)}.")
        if value not in item:
            there = sorted(item.keys())
            raise ConfigError(
                f"{door}: {name}={value!r} is not in the {type(item).__name__}, which has {listed(there)}"
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
        raise ConfigError(f"{door} takes as {name} {wanted}, got {got}.")
    return value


def chosen(output: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the rows of an output whose labels count, and these."""
    return (output, labels) if mask is None else (output[mask], labels[mask])


def as_labels(output: Tensor, labels: Tensor, door: str) -> Tensor:
    """Returns an output in the shape of labels that are numbers.

    Raises:
        ConfigError: If there are more or fewer.
    """
    if output.numel() != labels.numel():
        raise ConfigError(
            f"{door}: labels that are numbers need one for each number of the output: the output's rows have shape "
            f"{list(output.shape)}, the labels {list(labels.shape)}."
        )
    return output.reshape(labels.shape)


def as_classes(output: Tensor, labels: Tensor, door: str, otherwise: str) -> Tensor:
    """Returns an output whose columns are the classes that integer labels name.

    Args:
        otherwise: What to do where labels are no classes.

    Raises:
        ConfigError: If they are not.
    """
    columns = output.size(-1) if output.dim() == 2 else 1
    if columns < 2 or labels.dim() != 1 or labels.dtype == torch.bool:
        raise ConfigError(
            f"{door}: labels of {str(labels.dtype)[6:]} {list(labels.shape)} for an output of {list(output.shape)}: "
            f"classes are one whole number per row, for an output with a column for each class; {otherwise}."
        )
    on_cpu = labels.device.type == "cpu"  # elsewhere it would have to be waited for, and torch checks by itself
    if on_cpu and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < columns:
        raise ConfigError(
            f"{door}: labels from {int(labels.min())} to {int(labels.max())}, and the output has {columns} columns, "
            f"for classes 0 to {columns - 1}."
        )
    return output

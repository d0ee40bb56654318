"""Setting the ranges of a prepared module from data, without training it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import note_of
from dqconvert.trace.runtime import pinned
from dqconvert.words import shortened


def calibrate(module: nn.Module, data: Any, batches: int | None = None) -> None:
    """Runs data through a prepared module in evaluation mode, so that its quantizers see their ranges.

    Nothing is protected, nothing is trained, and values pass unrounded while ranges are observed. Modes and flags are
    as before at the end, also when a batch raises.

    Args:
        module: A prepared module.
        data: One call's worth of inputs, or an iterable of them (a ``DataLoader``). Inputs are a tuple of forward's
            arguments, a dict of them, or a PyG data object; a data object serves a forward that takes tensors by the
            names of its arguments (``x``, ``edge_index``, ``batch`` …).
        batches: How many to use at most; ``None`` uses all.

    Raises:
        ConfigError: If ``data`` holds nothing, or has no value for one of forward's arguments.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4), "int8-ptq")
        >>> x, edge_index = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> dqconvert.calibrate(module, (x, edge_index))
        >>> module.eval()(x, edge_index).shape
        torch.Size([5, 4])
    """
    expect_prepared(module, "calibrate")
    if batches is not None and (not isinstance(batches, int) or isinstance(batches, bool) or batches < 1):
        raise ConfigError(
            f"calibrate takes as batches a whole number from 1 on, or None for all, got {shortened(batches)}."
        )
    used = 0
    with _observing(module), torch.no_grad():
        for inputs in itertools.islice(calls_of(data), batches):
            args, kwargs = arguments_of(module, inputs)
            module(*args, **kwargs)
            used += 1
    if not used:
        raise ConfigError("calibrate: there was no data to calibrate with; pass at least one batch.")


@contextmanager
def _observing(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, with every quantizer watching and none rounding."""
    modes = {child: child.training for child in module.modules()}
    quantizers = [child for child in module.modules() if isinstance(child, FakeQuantize)]
    rounding = {quantizer: quantizer.fake_quant_enabled for quantizer in quantizers}
    module.eval()
    for quantizer in quantizers:
        quantizer.calibrating, quantizer.fake_quant_enabled = True, False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.calibrating, quantizer.fake_quant_enabled = False, rounding[quantizer]
        for child, mode in modes.items():
            child.training = mode
        for quantizer in quantizers:
            quantizer.is_observed()


def calls_of(data: Any) -> Iterator[Any]:
    """``data`` as a sequence of inputs."""
    single = isinstance(data, Tensor | BaseData | Mapping) or (
        isinstance(data, tuple) and any(isinstance(item, Tensor | Mapping) for item in data)
    )
    if not single and not isinstance(data, Iterable):
        raise ConfigError(f"expected inputs or an iterable of them, got a {type(data).__name__}.")
    yield from [data] if single else data


def arguments_of(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call ``module`` with for one batch of inputs."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]  # type: ignore[union-attr]
    names = [str(node.target) for node in placeholders]
    if isinstance(inputs, Mapping) and set(inputs) <= set(names):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, BaseData) and not _takes_data(placeholders[0]):
        missing = [n.target for n in placeholders if not n.args and getattr(inputs, str(n.target), None) is None]
        if missing:
            raise ConfigError(
                f"forward's argument {missing[0]!r} is not in the data ({inputs}); pass tuples of forward's "
                f"arguments instead."
            )
        found = {name: getattr(inputs, name, None) for name in names if not name.startswith("*")}
        return (), {name: value for name, value in found.items() if value is not None and _wanted(module, name)}
    return (inputs,), {}


def _takes_data(placeholder: torch.fx.Node) -> bool:
    return not note_of(placeholder).is_tensor and any(user.target is getattr for user in placeholder.users)


def _wanted(module: nn.Module, name: str) -> bool:
    """Whether the graph has a place for an argument: those that were absent at tracing must stay absent."""
    return not any(n.target is pinned and n.args[2] == name for n in module.graph.nodes)  # type: ignore[union-attr]

"""``search_bits`` and ``bit_sensitivity``: measuring each value at each width, on data."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import BoundArguments
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from dqconvert.bits import on_arguments
from dqconvert.calibrate import calibrate, callee_of
from dqconvert.distributed import by_itself
from dqconvert.errors import ConfigError
from dqconvert.expect import expect_float
from dqconvert.finetune import first_inputs
from dqconvert.mixed.average import average_bits
from dqconvert.mixed.sensitivity import BitSensitivity, Count, SiteSensitivity, check_budget
from dqconvert.mixed.sites import config_with, keys_of, rules_kept, sites_of
from dqconvert.prepare import prepare
from dqconvert.prepared import PreparedModule
from dqconvert.prepared.switches import rounding
from dqconvert.qconfig import QConfig, as_qconfig
from dqconvert.trace.given import calls_of
from dqconvert.trace.inputs import map_tensors
from dqconvert.trace.randomness import preserved_random_state
from dqconvert.words import shortened

BASE = "int4-dq+"
"""What bits are chosen for where no config is given: searched ranges, which few bits need."""


@by_itself
def search_bits(
    model: nn.Module,
    data: Any,
    budget: float,
    qconfig: QConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    weights: float | None = None,
    count: Count = "elements",
    bits: Iterable[int] = (2, 3, 4, 8),
    batches: int | None = None,
    example_inputs: Any = None,
    scores: bool | None = None,
    seed: int = 0,
    progress: bool = True,
) -> QConfig:
    """Returns a config with a width for each value of a trained model, within a budget of average bits.

    Each value is rounded alone at each width, all others in float; the widths chosen are those whose distances to the
    float model's outputs have the least sum. :func:`bit_sensitivity` returns the distances, of which configs for other
    budgets can be made without measuring again.

    Args:
        model: The float model, or a prepared module; it is not changed.
        data: What to measure on: inputs of one call or of several, as for :func:`dqconvert.calibrate`. They are held in
            memory, and gone through once for each value and width.
        budget: The most average bits of activations, and of weights, each by itself.
        qconfig: As for :func:`dqconvert.prepare`: all but the bits. Values that it leaves in float stay in float.
            ``None``: the config of a prepared module; of a float model, ``int4-dq+``.
        weights: The most average bits of weights, if it is another.
        count: What averages count: ``"elements"``; ``"hidden"``, without the model's inputs; or ``"quantizers"``, each
            once.
        bits: The widths to choose from, 2 to 8.
        batches: How many calls to measure on at most; ``None``: all.
        example_inputs: As for :func:`dqconvert.prepare`; ``None``: the first call's of the data.
        scores: Whether the rows of outputs are scores of classes, compared by the divergence of their softmax;
            ``None``: where they have two columns or more. Others are compared by their squared error.
        seed: Of all that the model, or a loader, draws.
        progress: Show a progress bar, where stderr is a terminal.

    Raises:
        ConfigError: If an argument is wrong, the budget is less than the fewest bits, there is no data, or nothing to
            choose.
        TraceError: If the model cannot be traced.

    Source:
        Cai et al., *ZeroQ*, CVPR 2020, section 3.2; Yao et al., *HAWQ-V3*, ICML 2021, section 3.4.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(16, 32, num_layers=2, out_channels=7)  # trained, say
        >>> x, edge_index = torch.randn(20, 16), torch.randint(20, (2, 60))
        >>> qconfig = dqconvert.search_bits(model, (x, edge_index), budget=4.0)
        >>> module, _ = dqconvert.prepare(model, qconfig, (x, edge_index))
        >>> dqconvert.average_bits(module, (x, edge_index)).activations <= 4.0
        True
    """
    expect_float(model, "search_bits", prepared=True)
    widths = _widths(bits)
    check_budget(budget, weights, count, widths)
    found = bit_sensitivity(
        model,
        data,
        qconfig,
        bits=widths,
        batches=batches,
        example_inputs=example_inputs,
        scores=scores,
        seed=seed,
        progress=progress,
    )
    return found.search(budget, weights=weights, count=count)


@by_itself
def bit_sensitivity(
    model: nn.Module,
    data: Any,
    qconfig: QConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    bits: Iterable[int] = (2, 3, 4, 8),
    batches: int | None = None,
    example_inputs: Any = None,
    scores: bool | None = None,
    seed: int = 0,
    progress: bool = True,
) -> BitSensitivity:
    """Returns how far each value of a trained model, rounded alone at each width, takes its outputs from float.

    Ranges are calibrated on the data for each width. Arguments and errors are those of :func:`search_bits`.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCNConv
        >>> model, x, edge_index = GCNConv(16, 7), torch.randn(20, 16), torch.randint(20, (2, 60))
        >>> found = dqconvert.bit_sensitivity(model, (x, edge_index), bits=(2, 8))
        >>> found
        <BitSensitivity of GCNConv: 5 values at [2, 8] bits; print it>
        >>> all(site.loss[2] > site.loss[8] for site in found.sites)
        True
        >>> set(found.choose(8).values()), set(found.choose(2).values())
        ({8}, {2})
    """
    expect_float(model, "bit_sensitivity", prepared=True)
    widths = _widths(bits)
    _check_whole("batches", batches, 1, none="None for all")
    _check_whole("seed", seed, 0, below=1 << 32)
    if isinstance(data, Iterator):
        data = list(data)
    if qconfig is None:
        qconfig = model.qconfig if isinstance(model, PreparedModule) else BASE
    with preserved_random_state():
        _seed(seed)
        example = first_inputs(data, "search_bits") if example_inputs is None else example_inputs
        module, _ = prepare(model, as_qconfig(qconfig), example)
        calls = list(islice(calls_of(callee_of(module), data), batches))
        return _measured(module, calls, widths, scores, seed, progress)


def _widths(bits: Iterable[int]) -> tuple[int, ...]:
    widths = list(bits) if isinstance(bits, Iterable) and not isinstance(bits, str) else []
    if not widths or not all(isinstance(b, int) and not isinstance(b, bool) and 2 <= b <= 8 for b in widths):
        raise ConfigError(f"bits={shortened(bits)}: must be whole numbers from 2 to 8, one or more")
    return tuple(sorted(set(widths)))


def _check_whole(name: str, value: int | None, least: int, *, below: int | None = None, none: str = "") -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (value is None and none) or (whole and least <= value and (below is None or value < below)):  # type: ignore[operator]
        return
    bound = f"from {least} on" if below is None else f"from {least} to {below - 1}"
    raise ConfigError(f"{name}={shortened(value)}: must be a whole number {bound}{f', or {none}' if none else ''}")


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def _measured(
    module: PreparedModule,
    calls: list[BoundArguments],
    widths: tuple[int, ...],
    scores: bool | None,
    seed: int,
    progress: bool,
) -> BitSensitivity:
    if not calls:
        raise ConfigError("search_bits: there was no data to measure on; pass at least one batch.")
    every = sites_of(module)
    if not every:
        raise ConfigError("search_bits: the config quantizes nothing whose bits could be chosen.")
    elements = average_bits(module, calls).elements
    named = keys_of(module)
    paths = {site.name: [path for path, key in named.items() if key in site.keys] for site in every}
    sites = [site for site in every if any(path in elements for path in paths[site.name])]
    keys = [key for site in sites for key in site.keys]
    kept, given = rules_kept(module, keys), on_arguments(module)
    losses: dict[str, dict[int, float]] = {site.name: {} for site in sites}
    runs = _Runs(calls, scores, seed)
    with _bar(progress, len(widths) * (len(sites) + 1)) as advance:
        for width in widths:
            rounded = prepare(module, config_with(module.qconfig, dict.fromkeys(keys, width), kept)).module
            for _, quantizer in rounded.quantizers():
                quantizer.reset()
            calibrate(rounded, calls)
            advance()
            for site in sites:
                losses[site.name][width] = runs.distance(rounded, paths[site.name])
                advance()
    return BitSensitivity(
        model=module.report.model,
        qconfig=module.qconfig,
        bits=widths,
        sites=tuple(
            SiteSensitivity(
                name=site.name,
                role=site.keys[0].role,
                keys=site.keys,
                quantizers=sum(path in elements for path in paths[site.name]),
                elements=sum(elements.get(path, 0) for path in paths[site.name]),
                given=all(path in given for path in paths[site.name] if path in elements),
                loss=losses[site.name],
            )
            for site in sites
        ),
        measure=runs.measure,
        batches=len(calls),
        unreached=tuple(path for path in named if path not in elements),
        kept=kept,
    )


@contextmanager
def _bar(progress: bool, total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not progress or not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=total)
        yield lambda: bar.advance(task)


class _Runs:
    """Runs a module on the same calls, with the same random numbers, again and again.

    Attributes:
        measure: How outputs are compared, once they were.
    """

    def __init__(self, calls: list[BoundArguments], scores: bool | None, seed: int) -> None:
        self._calls, self._scores, self._seed = calls, scores, seed
        self._wanted: list[list[Tensor]] = []
        self.measure = ""

    def distance(self, module: PreparedModule, paths: Collection[str]) -> float:
        """Returns how far the outputs with some quantizers rounding are from those with none."""
        if not self._wanted:
            self._wanted = list(self._outputs(module, ()))
            first = self._wanted[0][0]
            scored = first.dim() >= 2 and first.size(-1) >= 2 if self._scores is None else self._scores
            self.measure = "KL" if scored else "error"
        total = size = 0.0
        for wanted, found in zip(self._wanted, self._outputs(module, paths), strict=True):
            for target, output in zip(wanted, found, strict=True):
                lost, of = _divergence(output, target) if self.measure == "KL" else _error(output, target)
                total, size = total + lost, size + of
        return total / size if size else 0.0

    @torch.no_grad()
    def _outputs(self, module: PreparedModule, paths: Collection[str]) -> Iterator[list[Tensor]]:
        with rounding(module, paths):
            _seed(self._seed)
            for call in self._calls:
                tensors: list[Tensor] = []
                map_tensors(module(*call.args, **call.kwargs), tensors.append)
                floats = [tensor.double() for tensor in tensors if tensor.is_floating_point()]
                if not floats:
                    raise ConfigError("search_bits needs a model that returns a floating tensor, to compare it.")
                if not all(bool(tensor.isfinite().all()) for tensor in floats):
                    what = "NaN or infinite values" + (f" with {', '.join(paths)} rounded" if paths else " in float")
                    raise ConfigError(f"search_bits: the model returns {what} on this data, which has no distance.")
                yield floats


def _divergence(output: Tensor, target: Tensor) -> tuple[float, int]:
    """Returns the sum over rows of the divergence of their softmax, and the number of rows."""
    p, q = target.log_softmax(-1), output.log_softmax(-1)
    return float((p.exp() * (p - q)).sum().clamp(min=0)), target.numel() // max(target.size(-1), 1)


def _error(output: Tensor, target: Tensor) -> tuple[float, float]:
    """Returns the sum of squares of the error, and of the target."""
    return float((output - target).square().sum()), float(target.square().sum())

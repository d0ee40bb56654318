"""Setting the ranges of a prepared module from data, without training it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from dqconvert.bits import Elements, averages, words_of
from dqconvert.distributed import in_step
from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.prepared.base import note_agreement, note_bits
from dqconvert.prepared.switches import rounding
from dqconvert.rewrite.protect import ARGUMENT
from dqconvert.samples import looking, watching
from dqconvert.trace.callee import Callee, callee_of_graph
from dqconvert.trace.given import calls_of
from dqconvert.trace.inputs import method_of
from dqconvert.words import count, shortened


def calibrate(module: nn.Module, data: Any, batches: int | None = None, *, method: str | None = None) -> None:
    """Runs data through a prepared module in evaluation mode, so that its quantizers see their ranges.

    Nothing is protected, nothing is trained, and values pass unrounded while ranges are observed. Modes and flags are
    as before at the end, also when a batch raises. ``module.report`` says from then on that ranges were calibrated, and
    how wide codes are on average on this data, but not how near the result is to float: :func:`dqconvert.compare`
    measures that. ``module.report.advice()`` says which ranges cost much, and what mends them.

    Where several ranks train together, each calls it with as many batches, and ranges are those of all their data (see
    :class:`dqconvert.sync_ranges`).

    Args:
        module: A prepared module.
        data: One call's worth of inputs, or several: a list of such, a ``DataLoader``, a data set, a generator. Inputs
            are a tensor, a tuple or dict of forward's arguments, or a PyG data object; a data object serves a forward
            that takes tensors by the names of its arguments (``x``, ``edge_index``, ``batch`` …). Of a loader's
            ``(inputs, target)`` the target is left out.
        batches: How many to use at most; ``None`` uses all.
        method: The method to run, if it is not the one that calling the module runs: ``"decode"``, or
            ``"encoder.forward"`` of a part. It has to have a graph: by ``prepare``'s ``method=``, or by a first call.

    Raises:
        ConfigError: If ``data`` holds nothing, or has no value for one of forward's arguments.
        DistributedError: If another rank has fewer batches.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4), "int8-ptq")
        >>> x, edge_index = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> dqconvert.calibrate(module, (x, edge_index))
        >>> module.eval()(x, edge_index).shape
        torch.Size([5, 4])
    """
    prepared = expect_prepared(module, "calibrate")
    if batches is not None and (not isinstance(batches, int) or isinstance(batches, bool) or batches < 1):
        raise ConfigError(
            f"calibrate takes as batches a whole number from 1 on, or None for all, got {shortened(batches)}."
        )
    run = module if method is None else method_of(module, method)
    used = 0
    elements, look = Elements(), looking(prepared)
    with rounding(prepared, observing=True), watching(prepared.quantizers(), elements.see, look), torch.no_grad():
        calls = itertools.islice(calls_of(callee_of(module, method), data), batches)
        for call in in_step(calls, "dqconvert.calibrate"):
            run(*call.args, **call.kwargs)
            used += 1
    if not used:
        raise ConfigError("calibrate: there was no data to calibrate with; pass at least one batch.")
    note_bits(prepared, words_of(averages(prepared, elements), used))
    batches_seen = count(used, "batch", "batches")
    note_agreement(
        prepared,
        f"not known; ranges were calibrated on {batches_seen}. dqconvert.compare(model, module, data) measures it",
    )


def callee_of(module: Any, method: str | None = None) -> Callee:
    """Returns the method that inputs of a prepared or integer module are for; ``method``: not the one calling it runs.

    Raises:
        ConfigError: If that has no graph.
    """
    if isinstance(known := getattr(module, "callee", None), Callee):  # an exported file says what it takes
        return known
    name = module.called_method if method is None else method
    graphs = {known.name: known.graph for known in reversed(list(module.all_methods()))}
    if name not in graphs and method is not None:
        raise ConfigError(
            f"calibrate: {method!r} has no graph yet: name it in prepare's method=, or call it once. There are graphs "
            f"of {', '.join(graphs)}."
        )
    shown = "forward" if method is None else method
    return callee_of_graph(graphs.get(name, module.graph), f"{module.report.model}.{shown}", keyword=ARGUMENT)

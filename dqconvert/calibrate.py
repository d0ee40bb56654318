"""Setting the ranges of a prepared module from data, without training it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, map_arg

from dqconvert.bits import Elements, averages, words_of
from dqconvert.distributed import in_step
from dqconvert.errors import ConfigError
from dqconvert.expect import expect_prepared
from dqconvert.prepared import PreparedModule
from dqconvert.prepared.base import note_agreement, note_bits
from dqconvert.prepared.switches import rounding
from dqconvert.quant import FakeQuantize
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


def observe_weights(module: PreparedModule) -> None:
    """Gives the quantizers of weights, of a prepared module, the ranges of the weights as they are now.

    For weights that training did not reach step by step: averages of others, or those of another checkpoint. Steps that
    are learned stay, and so does what was never observed.

    Args:
        module: The prepared module.

    Raises:
        ConfigError: If it is none.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4), "int8-ptq")
        >>> dqconvert.calibrate(module, (torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])))
        >>> with torch.no_grad():
        ...     _ = module.lin_r.weight.mul_(0.5)
        >>> observe_weights(module)
        >>> quantizer = dict(module.quantizers())["lin_r.quant.weight"]
        >>> torch.equal(quantizer.max_val, module.lin_r.weight.max().detach())
        True
    """
    expect_prepared(module, "observe_weights")
    quantizers, done = dict(module.quantizers()), set[str]()
    for method in module.all_methods():
        for graph in method.graphs():
            for path, value in _weights(graph, module, quantizers.keys() - done):
                done.add(path)
                _observe(quantizers[path], value)


def _observe(quantizer: FakeQuantize, value: Tensor) -> None:
    if quantizer.log_scale is not None or not quantizer.is_observed():
        return
    was = quantizer.observer_enabled, quantizer.calibrating, quantizer.fake_quant_enabled
    quantizer.reset()
    quantizer.observer_enabled, quantizer.calibrating, quantizer.fake_quant_enabled = True, True, False
    try:
        quantizer(value)
    finally:
        quantizer.observer_enabled, quantizer.calibrating, quantizer.fake_quant_enabled = was
    quantizer.is_observed()


@torch.no_grad()
def _weights(graph: Graph, module: nn.Module, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the wanted quantizers that round parameters, and what they round."""
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = attrgetter(str(node.target))(module)
        elif not node.all_input_nodes or not {*node.all_input_nodes} <= values.keys():
            continue
        elif node.op == "call_module" and str(node.target) in wanted:
            yield str(node.target), values[node.args[0]]
        elif node.op in ("call_function", "call_method"):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            of_tensor = node.op == "call_method"
            call = getattr(args[0], str(node.target)) if of_tensor else node.target
            values[node] = call(*args[of_tensor:], **kwargs)


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

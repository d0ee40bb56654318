"""Checks that a prepared module can become integers: it has ranges, and finite weights."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.errors import LoweringError
from dqconvert.lower.evaluation import refused
from dqconvert.lower.skeleton import lacks_weights
from dqconvert.ops import op_name, writes
from dqconvert.prepared import PreparedModule
from dqconvert.quant import FakeQuantize
from dqconvert.rewrite.connectivity import input_name
from dqconvert.trace.check import Check
from dqconvert.trace.method import Method
from dqconvert.trace.note import note_of
from dqconvert.trace.runtime import store
from dqconvert.trace.unchanged import checks
from dqconvert.words import listed


def check_ready(graph: Graph, root: nn.Module) -> None:
    """Raises :class:`LoweringError`, naming them, for quantizers without a range and for weights that are not finite.

    Args:
        graph: What is evaluated: quantizers that it does not reach need no range.
    """
    for node in graph.nodes:
        if writes(node):
            _refuse_write(node)
    reached = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    modules = {path: root.get_submodule(path) for path in reached}
    quantizers = {path: m for path, m in modules.items() if isinstance(m, FakeQuantize) and m.fake_quant_enabled}
    empty = [path for path, quantizer in quantizers.items() if not quantizer.is_observed()]
    if empty:
        raise LoweringError(
            f"{listed(map(repr, empty))} never observed a value (what is NaN or infinite does not count): "
            "train at least one step, or run dqconvert.calibrate."
        )
    wrong = [path for path, quantizer in quantizers.items() if not _is_finite(quantizer)]
    if wrong:
        raise LoweringError(f"{listed(map(repr, wrong))} has a range that is not finite: the training went astray.")
    tensors = {name: tensor for name, tensor in _tensors(graph, root) if tensor.is_floating_point()}
    bad = [name for name, tensor in tensors.items() if bool(tensor.isnan().any())]
    if bad:
        raise LoweringError(f"{listed(map(repr, bad))} holds NaN: the training went astray.")
    weights = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    endless = [name for name, tensor in weights.items() if bool(tensor.isinf().any())]
    if endless:
        raise LoweringError(f"{listed(map(repr, endless))} holds infinite values: the training went astray.")


def check_plain(method: Method, module: PreparedModule, skeleton: nn.Module) -> None:
    """Checks that a method that has nothing to quantize computes what it did, and without weights that have quantizers.

    Raises:
        GuardError: If what it reads off the modules has changed.
        LoweringError: If it reads such a weight, or refuses its arguments in evaluation.
    """
    Check(module, checks(method.graphs()))(module)
    graph = method.eval_graph or method.graph
    if (refusal := refused(graph)) is not None:
        raise LoweringError(refusal)
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            try:
                found = attrgetter(str(node.target))(skeleton)
            except AttributeError as error:
                raise LoweringError(f"it reads the weight {str(node.target)!r}") from error
            if isinstance(found, nn.Module) and any(map(lacks_weights, found.modules())):
                raise LoweringError(f"it calls {str(node.target)!r}")


def _is_finite(quantizer: FakeQuantize) -> bool:
    """True if all ends are; a group of in-degrees that saw no node has none, and the scale of its neighbour."""
    unseen = quantizer.min_val > quantizer.max_val
    ends = torch.isfinite(quantizer.min_val + quantizer.max_val) | unseen
    return bool(ends.all()) and bool(torch.isfinite(quantizer.scale).all())


def _refuse_write(node: Node) -> NoReturn:
    where, target = note_of(node).source or node.name, node.args[0] if node.args else None
    if node.target is not store:
        raise LoweringError(
            f"{where}: the graph calls {op_name(node)} in place. It is that of an earlier version: prepare the model "
            f"again."
        )
    if isinstance(target, Node) and target.op == "get_attr":
        raise LoweringError(
            f"{where}: the forward writes into {str(target.target)!r} in evaluation, and an integer module keeps no "
            f"state. Write in training only, or compute it anew from the inputs."
        )
    name = input_name(target) if isinstance(target, Node) else "?"
    raise LoweringError(
        f"{where}: the forward writes into its argument {name!r}, which an integer module does not. Let it work on a "
        f"copy: {name} = {name}.clone()."
    )


def _tensors(graph: Graph, root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and buffers that a graph reads, by path."""
    for node in graph.nodes:
        if node.op == "get_attr" and isinstance(value := attrgetter(str(node.target))(root), Tensor):
            yield str(node.target), value
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                yield f"{node.target}.{name}", tensor

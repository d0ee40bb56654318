"""How far rounding moves the values of nodes, and their in-degrees, for :func:`dqconvert.plot.errors_by_degree`."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch_geometric.utils import degree

from dqconvert.calibrate import callee_of
from dqconvert.errors import ConfigError
from dqconvert.lower.evaluation import remove_unused
from dqconvert.lower.replay import FloatRun, QuantizedRun, by_name
from dqconvert.prepared import PreparedModule
from dqconvert.rewrite.connectivity import end_of_edges, input_connectivities, is_input
from dqconvert.rewrite.derive import Size, dimensions, grows
from dqconvert.trace.given import calls_of
from dqconvert.trace.note import Stage, note_of


def errors_of_nodes(module: PreparedModule, data: Any, wanted: set[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns, by quantizer, in-degrees and errors of all nodes."""
    kept: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    degrees: dict[str, Tensor] = {}

    def keep(path: str, expected: Tensor, found: Tensor) -> None:
        if path in wanted:
            if len(degrees[path]) != len(expected):
                raise ConfigError(f"plot.errors_by_degree: the rows of {path} are not those of one type of nodes")
            kept.setdefault(path, []).append((expected.double().flatten(1), found.double().flatten(1), degrees[path]))

    quantized = QuantizedRun(module, keep)
    reference = FloatRun(module, {place.value for place in quantized.places})
    counting = _Counting(module, {place.path: place.value for place in quantized.places if place.path in wanted})
    for call in calls_of(callee_of(module), data):
        given = by_name(call)
        degrees.update(counting.start(given))
        values, _ = reference.values(given)
        quantized.against(values, given)
    if not kept:
        raise ConfigError("plot.errors_by_degree: there was no data to look at; pass at least one batch.")
    found = {}
    for path, parts in kept.items():
        floats, rounded, counted = (torch.cat(part) for part in zip(*parts, strict=True))
        scale = floats.square().mean().sqrt().clamp(min=1e-30)
        found[path] = counted, (floats - rounded).square().mean(1).sqrt() / scale
    return found


class _Counting(FloatRun):
    """A run that counts the in-degrees of nodes, and nothing else.

    Args:
        module: The prepared module.
        values: By the path of a quantizer, the name of the node whose rows are meant.
    """

    def __init__(self, module: PreparedModule, values: Mapping[str, str]) -> None:
        super().__init__(module, set())
        self.garbage_collect_values = False  # which goes by the nodes that were there
        nodes, output = {node.name: node for node in self.graph.nodes}, self.graph.output_node()
        received, found = _received(self.graph), dict[str, Node]()
        for path, name in values.items():
            sizes = dimensions(note_of(nodes[name]))
            dim = next((dim for dim, size in enumerate(sizes) if size in received), None)
            if dim is None:
                raise ConfigError(f"plot.errors_by_degree: no edges are known that reach the nodes of {path}")
            with self.graph.inserting_before(output):
                rows = self.graph.call_method("size", (nodes[name], dim))
                ends = [self.graph.call_function(operator.getitem, end) for end in received[sizes[dim]]]
                found[path] = self.graph.call_function(_in_degree, (rows, *ends))
        output.args = (found,)
        remove_unused(self.graph)


def _received(graph: Graph) -> dict[Size, dict[tuple[Node, int], None]]:
    """Returns, by type of node, the connectivities that reach it, and the row of each that holds who receives.

    Of nodes that the model is given: those that it is given, without self-loops that layers add.
    """
    given = {size for node in graph.nodes if is_input(node) for size in dimensions(note_of(node))}
    found: dict[Size, dict[tuple[Node, int], None]] = {}
    for node in graph.nodes:
        space = next((size for size in dimensions(note_of(node)) if grows(size)), None)
        if note_of(node).stage is not Stage.AGGREGATE or space is None:
            continue
        for edges, row in filter(None, map(end_of_edges, node.all_input_nodes)):
            sources = input_connectivities(edges) if space in given else [edges]
            for source in sources:
                if not {*source.users} & {*sources}:  # not the one that is checked, and what checks it
                    found.setdefault(space, {})[source, row] = None
    return found


def _in_degree(nodes: int, *targets: Tensor) -> Tensor:
    return torch.stack([degree(target, nodes, dtype=torch.long) for target in targets]).sum(0)

"""Plain records of what there is to see of a prepared module, made from its graphs and its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, count
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from dqconvert.ops import OURS, op_named, qualified_name
from dqconvert.report import Entry, Report
from dqconvert.trace.note import note_of


@dataclass(frozen=True, kw_only=True)
class QuantizerView:
    """An inserted quantizer as a reader sees it.

    Attributes:
        entry: Its line in the report.
        range: Smallest and largest observed value; ``None`` before it observed any.
        channels: How many channels have a range of their own; 1 for one range.
    """

    entry: Entry
    range: tuple[float, float] | None = None
    channels: int = 1

    @property
    def bits(self) -> str:
        """The code's type: ``s8`` for 8 bits signed, ``u8`` for unsigned, ``own`` for a user's quantizer."""
        if self.entry.bits is None:
            return "own"
        return f"{'s' if self.entry.signed else 'u'}{self.entry.bits}"

    @property
    def range_text(self) -> str:
        """The range for people; empty before anything was observed."""
        if self.range is None:
            return ""
        low, high = (f"{end:.0f}" if 1000 <= abs(end) < 1e6 else f"{end:.3g}" for end in self.range)
        return f"[{low}, {high}]" + (f" x{self.channels}" if self.channels > 1 else "")

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data for JSON."""
        span = None if self.range is None else list(self.range)
        return {**asdict(self.entry), "range": span, "channels": self.channels}


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """A node of a graph as a reader sees it.

    Attributes:
        name: Its name in the generated code.
        kind: input, parameter, check, op, module, quantizer, protection or output.
        label: What it calls, shortly: ``linear``, ``index_select``; a module's path.
        target: What it calls, in full.
        module: Path of the module that was running; for a quantizer, of the module it belongs to.
        call: Which call of that module, from 0.
        stage: The part of a message-passing layer.
        propagation: Which propagation of the forward; -1 outside of all.
        source: File and line.
        shape: The value's shape on the example inputs.
        dtype: The value's type; empty if it is no tensor.
        inputs: Names of the nodes whose values it takes.
    """

    name: str
    kind: str
    label: str
    target: str
    module: str
    call: int
    stage: str
    propagation: int
    source: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[str, ...]

    @property
    def is_arithmetic(self) -> bool:
        """True if it belongs in a picture of what the model computes."""
        return self.kind in ("op", "module", "quantizer", "protection")


@dataclass(frozen=True, kw_only=True)
class View:
    """A prepared module as a reader sees it.

    Attributes:
        report: What was inserted and what stayed float.
        quantizers: The quantizers by path.
        graphs: ``train``, ``float_train``, and where evaluation differs in structure, ``eval`` and ``float_eval``.
        nodes: The nodes of each graph.
        methods: Those of what else the module computes, by title: of evaluation, other methods, other arguments.
        modules: The class of every module of the model, by path.
        protections: By path of what draws the protected nodes, the smallest and the largest probability.
    """

    report: Report
    quantizers: Mapping[str, QuantizerView]
    graphs: Mapping[str, Graph]
    nodes: Mapping[str, tuple[NodeView, ...]]
    methods: Mapping[str, tuple[NodeView, ...]]
    modules: Mapping[str, str]
    protections: Mapping[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON, with stable keys."""
        return {
            "protections": [{"path": path, "p_min": p[0], "p_max": p[1]} for path, p in self.protections.items()],
            "modules": dict(self.modules),
            "report": self.report.to_dict(),
            "quantizers": [quantizer.to_dict() for quantizer in self.quantizers.values()],
            "graphs": {name: [asdict(node) for node in nodes] for name, nodes in self.nodes.items()},
            "methods": {
                title: [asdict(node) for node in nodes]
                for title, nodes in self.methods.items()
                if nodes not in self.nodes.values()
            },
        }


def view_of(
    graphs: Mapping[str, Graph | None],
    report: Report,
    *,
    modules: Mapping[str, str],
    protections: Mapping[str, tuple[float, float]],
    ranges: Mapping[str, tuple[Tensor, Tensor]],
    methods: Iterable[tuple[str, Graph, Graph | None]],
    name: Callable[[Node], str] = qualified_name,
) -> View:
    """Makes a view of graphs and the report on them.

    Args:
        graphs: The graphs by name, see :class:`View`; ``None``: there is none of the name.
        methods: Every method by name, with its graph and that of evaluation, if it has one; first the one of `graphs`.
        modules: The class of every module of the model, by path.
        protections: By path of what draws the protected nodes, the smallest and the largest probability.
        ranges: The ends of the ranges of quantizers, by path.
        name: Names the function that a node calls.
    """
    quantizers = {entry.path: _quantizer(entry, ranges.get(entry.path)) for entry in report.entries}
    found = {key: graph for key, graph in graphs.items() if graph is not None}

    def views(graph: Graph) -> tuple[NodeView, ...]:
        return tuple(node_view(node, quantizers, report.protection, name) for node in graph.nodes)

    return View(
        report=report,
        quantizers=quantizers,
        graphs=found,
        nodes={key: views(graph) for key, graph in found.items()},
        methods={title: views(graph) for title, graph in titled(methods).items()},
        modules=modules,
        protections=protections,
    )


def titled(methods: Iterable[tuple[str, Graph, Graph | None]]) -> dict[str, Graph]:
    """Returns the graphs of methods by titles, each of which there is once.

    Example:
        >>> list(titled([("forward", Graph(), Graph()), ("encode", Graph(), None), ("forward", Graph(), None)]))
        ['forward', 'forward in evaluation', 'encode', 'forward (2)']
    """
    found: dict[str, Graph] = {}
    for name, graph, evaluation in methods:
        title = next(title for title in chain([name], (f"{name} ({n})" for n in count(2))) if title not in found)
        found[title] = graph
        if evaluation is not None:
            found[f"{title} in evaluation"] = evaluation
    return found


def _quantizer(entry: Entry, ends: tuple[Tensor, Tensor] | None) -> QuantizerView:
    if ends is None or ends[0].is_meta or not bool((ends[0] <= ends[1]).all()):
        return QuantizerView(entry=entry)
    low, high = float(ends[0].min()), float(ends[1].max())
    return QuantizerView(entry=entry, range=(low, high), channels=max(1, ends[0].numel()))


def node_view(
    node: Node,
    quantizers: Mapping[str, QuantizerView] = MappingProxyType({}),
    protection: tuple[str, ...] = (),
    name: Callable[[Node], str] = qualified_name,
) -> NodeView:
    """Returns what there is to see of a node.

    Args:
        node: Of a graph.
        quantizers: The quantizers by path.
        protection: Paths of what draws the protected nodes.
        name: Names the function that a node calls.
    """
    note, target = note_of(node), name(node) if node.op == "call_function" else str(node.target)
    short = target if node.op in ("call_module", "get_attr") else target.rpartition(".")[2]
    inserted = quantizers.get(target) if node.op == "call_module" else None
    kinds = {"placeholder": "input", "get_attr": "parameter", "output": "output"}
    if node.op == "call_module":
        kind = "quantizer" if inserted else "protection" if target in protection else "module"
    else:
        kind = kinds.get(node.op) or ("check" if op_named(short, OURS).bookkeeping else "op")
    return NodeView(
        name=node.name,
        kind=kind,
        label=short,
        target=target,
        module=inserted.entry.module if inserted else note.module,
        call=note.call,
        stage=note.stage.value,
        propagation=note.propagation,
        source=note.source,
        shape=tuple(note.sizes[0]) if note.sizes else (),
        dtype="" if note.dtype is None else str(note.dtype).removeprefix("torch."),
        inputs=tuple(source.name for source in node.all_input_nodes),
    )

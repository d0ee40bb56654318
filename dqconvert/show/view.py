"""What there is to see of a prepared module: plain records, made from a live module or from a file alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dqconvert.checkpoint import container
from dqconvert.checkpoint.document import describe
from dqconvert.checkpoint.graph_data import wellformed
from dqconvert.checkpoint.schema import PreparedData, check_document
from dqconvert.prepared import PreparedModule
from dqconvert.report import Entry, Fusion, LeftFloat, PreparedMethod, Report

# Nodes that check, measure and fetch: the arithmetic reads better without them.
_BOOKKEEPING = {
    *(
        "size",
        "numel",
        "item",
        "getattr",
        "getitem",
        "guard",
        "pinned",
        "present",
        "same_keys",
        "same_layout",
        "still_absent",
        "same_items",
        "by_mode",
        "min",
        "max",
    ),
    *("given_probability", "gather_protected", "stage_output", "_set_grad_enabled"),
}


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
        """``8s`` for 8 bits signed, ``8u`` for unsigned, ``own`` for a user's quantizer."""
        if self.entry.bits is None:
            return "own"
        return f"{self.entry.bits}{'s' if self.entry.signed else 'u'}"

    @property
    def range_text(self) -> str:
        """The range for people; empty before anything was observed."""
        if self.range is None:
            return ""
        low, high = (f"{end:.0f}" if 1000 <= abs(end) < 1e6 else f"{end:.3g}" for end in self.range)
        return f"[{low}, {high}]" + (f" x{self.channels}" if self.channels > 1 else "")

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
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
        """Whether it belongs in a picture of what the model computes."""
        return self.kind in ("op", "module", "quantizer", "protection")


@dataclass(frozen=True, kw_only=True)
class View:
    """A prepared module, or the file of one.

    Attributes:
        document: All that the file says, see :func:`dqconvert.checkpoint.document.describe`.
        report: What was inserted and what stayed float.
        quantizers: By path.
        graphs: ``train``, ``float_train``, and where evaluation differs in structure, ``eval`` and ``float_eval``.
    """

    document: Mapping[str, Any]
    report: Report
    quantizers: Mapping[str, QuantizerView]
    graphs: Mapping[str, tuple[NodeView, ...]]

    @property
    def modules(self) -> Mapping[str, str]:
        """The class of every module of the model, by path."""
        return self.document["modules"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON, with stable keys."""
        kept = ("kind", "model", "method", "factory", "kwargs", "versions", "qconfig", "protections", "modules")
        return {
            **{key: self.document[key] for key in kept},
            "report": self.report.to_dict(),
            "quantizers": [quantizer.to_dict() for quantizer in self.quantizers.values()],
            "graphs": {name: [asdict(node) for node in nodes] for name, nodes in self.graphs.items()},
        }


def view_module(module: PreparedModule) -> View:
    """What there is to see of a live module; nothing in it is refused."""
    ranges = {path: (quantizer.min_val, quantizer.max_val) for path, quantizer in module.quantizers()}
    return _view(describe(module, lenient=True), ranges)


def view_file(path: str | os.PathLike[str]) -> View:
    """What there is to see of a prepared file. Nothing that it names is imported or called.

    Raises:
        CheckpointError: If it is missing, damaged, something else, or of a newer version.
    """
    tensors, document = container.read(path)
    check_document(document, PreparedData, str(path))
    with wellformed(f"{path}: the description of the module"):
        paths = [entry["path"] for entry in document["quantizers"]]
        return _view(document, {path: (tensors[f"{path}.min_val"], tensors[f"{path}.max_val"]) for path in paths})


def _view(document: Mapping[str, Any], ranges: Mapping[str, tuple[Tensor, Tensor]]) -> View:
    data = document["report"]
    entries = tuple(Entry(**entry) for entry in data["entries"])
    report = Report(
        model=data["model"],
        entries=entries,
        left_float=tuple(LeftFloat(**left) for left in data["left_float"]),
        remarks=tuple(data["remarks"]),
        protection=tuple(data["protection"]),
        fusions=tuple(
            Fusion(op=fusion["op"], quantizers=tuple(fusion["quantizers"]), nodes=tuple(fusion["nodes"]))
            for fusion in data["fusions"]
        ),
        methods=tuple(PreparedMethod(**method) for method in data.get("methods", ())),
    )
    quantizers = {entry.path: _quantizer(entry, ranges.get(entry.path)) for entry in entries}
    read = _Reader(quantizers, report.protection)
    graphs = {name: tuple(map(read.node, nodes)) for name, nodes in document["graphs"].items() if nodes is not None}
    return View(document=document, report=report, quantizers=quantizers, graphs=graphs)


def _quantizer(entry: Entry, ends: tuple[Tensor, Tensor] | None) -> QuantizerView:
    if ends is None or ends[0].is_meta or not bool((ends[0] <= ends[1]).all()):
        return QuantizerView(entry=entry)
    low, high = float(ends[0].min()), float(ends[1].max())
    return QuantizerView(entry=entry, range=(low, high), channels=max(1, ends[0].numel()))


class _Reader:
    """Reads the nodes of a graph as a file has them."""

    def __init__(self, quantizers: Mapping[str, QuantizerView], protection: tuple[str, ...]) -> None:
        self.quantizers = quantizers
        self.protection = protection

    def node(self, data: Mapping[str, Any]) -> NodeView:
        note, target = data["note"], str(data["target"])
        inserted = self.quantizers.get(target) if data["op"] == "call_module" else None
        sizes = note.get("sizes") or [[]]
        return NodeView(
            name=str(data["name"]),
            kind=self._kind(data["op"], target, inserted is not None),
            label=target if data["op"] in ("call_module", "get_attr") else target.rpartition(".")[2],
            target=target,
            module=inserted.entry.module if inserted else str(note.get("module", "")),
            call=int(note.get("call", 0)),
            stage=str(note.get("stage", "none")),
            propagation=int(note.get("propagation", -1)),
            source=str(note.get("source", "")),
            shape=tuple(map(int, sizes[0])),
            dtype=str(note.get("dtype") or ""),
            inputs=tuple(dict.fromkeys(_references([data["args"], list(data["kwargs"].values())]))),
        )

    def _kind(self, op: str, target: str, inserted: bool) -> str:
        if op in ("call_function", "call_method"):
            return "check" if target.rpartition(".")[2] in _BOOKKEEPING else "op"
        if op == "call_module":
            return "quantizer" if inserted else "protection" if target in self.protection else "module"
        return {"placeholder": "input", "get_attr": "parameter", "output": "output"}[op]


def _references(value: Any) -> list[str]:
    """Names of the nodes in a node's arguments."""
    if isinstance(value, list):
        return [name for item in value for name in _references(item)]
    if isinstance(value, dict):
        [(word, content)] = value.items()
        return [str(content)] if word == "node" else _references(content)
    return []

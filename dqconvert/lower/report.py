"""The report of ``convert``: what runs on codes, and what stays in float and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch.fx import Graph, Node

from dqconvert import notebook
from dqconvert.lower.places import Place, places_of
from dqconvert.ops import qualified_name
from dqconvert.report import PreparedMethod
from dqconvert.trace.note import note_of
from dqconvert.words import article, count


@dataclass(frozen=True, kw_only=True)
class Float:
    """A node that computes in float.

    Attributes:
        node: Its name in the prepared graph.
        op: What it calls.
        source: File and line.
        reason: Why it stays.
    """

    node: str
    op: str
    source: str
    reason: str

    @classmethod
    def of(cls, node: Node, reason: str) -> Float:
        """Returns the entry of a node of the prepared graph."""
        return cls(node=node.name, op=qualified_name(node), source=note_of(node).source, reason=reason)


@dataclass(frozen=True, kw_only=True, repr=False)
class IntegerReport:
    """The operations of an integer module, and those that stay in float.

    Attributes:
        model: The float model's class.
        ops: How often each operation is called, the graph's own computations included.
        floats: What computes in float, in order.
        places: Where values of the prepared graph are held.
        methods: The methods that it has, and how they came to be prepared; all but the first in ``ops`` and ``floats``,
            too, and not in ``places``.
        remarks: What the prepared module does beside, and the integer module does not.
        settings: Attributes of the model's modules that the forward read, by path: they are as they were.
    """

    model: str
    ops: Mapping[str, int]
    floats: tuple[Float, ...]
    places: tuple[Place, ...] = ()
    methods: tuple[PreparedMethod, ...] = ()
    remarks: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: str, graph: Graph, floats: Mapping[Node, Float]) -> IntegerReport:
        """Returns the report of a finished graph.

        Args:
            floats: What stays in float, by its node in ``graph``.
        """
        called = [node for node in graph.nodes if node.op.startswith("call")]
        ops = Counter(qualified_name(node).rsplit(".", 1)[-1] for node in called)
        left = tuple(floats[node] for node in called if node in floats)
        return cls(model=model, ops=dict(ops), floats=left, places=places_of(graph))

    def and_of(self, other: IntegerReport) -> IntegerReport:
        """Returns the report of this and one more method's graph."""
        ops = Counter(self.ops) + Counter(other.ops)
        return replace(self, ops=dict(ops), floats=tuple(dict.fromkeys((*self.floats, *other.floats))))

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        operations = count(sum(self.ops.values()), "operation")
        return f"<IntegerReport of {article(self.model)}: {operations}, {len(self.floats)} in float; print it>"

    def _repr_html_(self) -> str:
        tables = [notebook.table("", ["operation", "calls"], sorted(self.ops.items()))]
        if self.floats:
            rows = [(f.op, f.source, f.reason) for f in self.floats]
            tables.append(notebook.table("computes in float", ["operation", "where", "why"], rows))
        return notebook.folded(f"integer module of {article(self.model)}", "".join(tables))

    def __str__(self) -> str:
        """Returns a line for each operation, then a line for each that stays in float."""
        lines = [f"{count:5} {name}" for name, count in sorted(self.ops.items())]
        if len(self.methods) > 1:
            lines += [f"method {m.name}({m.arguments}): {m.how}" for m in self.methods]
        lines += [f"float {f.op} ({f.node}, {f.source}): {f.reason}" for f in self.floats]
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join(lines)

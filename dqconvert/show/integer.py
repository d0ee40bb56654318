"""What there is to see of an integer file, without rebuilding its module."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch.fx import Graph, Node

from dqconvert.checkpoint import container, integer
from dqconvert.checkpoint.graph_data import decode_graph
from dqconvert.lower import IntegerReport
from dqconvert.ops import qualified_name
from dqconvert.trace.note import note_of


def read_integer(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """All that an integer file says; ``None`` of a file of another kind.

    Raises:
        CheckpointError: If the file is damaged.
    """
    _, document = container.read(path)
    return integer.unpack_document(document, str(path)) if document.get("kind") == integer.KIND else None


def integer_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """A line for each operation: its name, what it computes, of what, in which module."""
    graphs = {"": document["graph"]}
    for method in document["methods"]:
        graphs[_unused(graphs, f"method {method['name']}:")] = method["graph"]
    graphs |= {f"{path}, computed once for each graph:": nodes for path, nodes in document["memos"].items()}
    for title, nodes in graphs.items():
        if title:
            yield title
        for node in decode_graph(nodes).nodes:
            if node.op not in ("get_attr", "placeholder", "output"):
                yield _line(node)


def _unused(graphs: Mapping[str, Any], title: str) -> str:
    return title if title not in graphs else _unused(graphs, f"{title[:-1]}, in another form:")


def _line(node: Node) -> str:
    note = note_of(node)
    called = str(node.target) if node.op == "call_module" else qualified_name(node).rsplit(".", 1)[-1]
    inputs = ", ".join(source.name for source in node.all_input_nodes if source.op != "get_attr")
    return f"  {node.name:<24} {called:<24} {inputs:<40} {note.module}".rstrip()


def integer_code(document: Mapping[str, Any]) -> str:
    """The forward that the graph generates."""
    graph: Graph = decode_graph(document["graph"])
    graph.owning_module = None
    return str(graph.python_code("self").src).strip()


def integer_report(document: Mapping[str, Any]) -> IntegerReport:
    """What runs on codes, and what in float."""
    return integer.report_of(document["report"])


__all__ = ["integer_code", "integer_lines", "integer_report", "read_integer"]

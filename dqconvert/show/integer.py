"""The graphs of an integer module as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.fx import Graph, Node

from dqconvert.ops import qualified_name
from dqconvert.trace.note import note_of


def integer_lines(graphs: Mapping[str, Graph]) -> Iterator[str]:
    """Yields a line for each operation of some graphs, by title: its name, what it computes, of what, in which module.

    Example:
        >>> graph = Graph()
        >>> _ = graph.output(graph.call_method("relu", (graph.placeholder("x"),)))
        >>> [line.split() for line in integer_lines({"": graph})]
        [['relu', 'relu', 'x']]
    """
    for title, graph in graphs.items():
        if title:
            yield title
        for node in graph.nodes:
            if node.op not in ("get_attr", "placeholder", "output"):
                yield _line(node)


def _line(node: Node) -> str:
    note = note_of(node)
    called = str(node.target) if node.op == "call_module" else qualified_name(node).rsplit(".", 1)[-1]
    inputs = ", ".join(source.name for source in node.all_input_nodes if source.op != "get_attr")
    return f"  {node.name:<24} {called:<24} {inputs:<40} {note.module}".rstrip()


def integer_code(graph: Graph) -> str:
    """Returns the code of the forward that a graph generates."""
    return str(graph.python_code("self").src).strip()

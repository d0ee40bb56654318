"""One graph out of two recordings: what the model does in training, and what it does in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from dqconvert.ops import op_of
from dqconvert.trace.names import module_of
from dqconvert.trace.note import Note, annotate, describe, note_of
from dqconvert.trace.runtime import by_mode, unchanged
from dqconvert.trace.unchanged import join_reads


def remove_unused(graph: Graph, erase: Callable[[Node], None] | None = None) -> None:
    """Erases nodes that only read sizes, attributes and parts, and that nobody uses."""
    erase_unused(graph, _reads, erase)


def erase_unused(graph: Graph, may: Callable[[Node], bool], erase: Callable[[Node], None] | None = None) -> None:
    """Erases, in place, nodes that nothing reads and that may go.

    Args:
        erase: Erases one; the default is the graph's own way.
    """
    erase = erase or graph.erase_node
    for node in reversed(list(graph.nodes)):
        if not node.users and may(node):
            erase(node)


def _reads(node: Node) -> bool:
    """Returns True if a node reads a size, an attribute or a part, or computes with sizes: that has no effect."""
    if node.op == "call_method":
        return op_of(node).reads_number
    of_numbers = node.op == "call_function" and module_of(node.target) in ("_operator", "builtins")
    return node.op == "get_attr" or (of_numbers and op_of(node).scalar)


def calls(graph: Graph) -> list[Node]:
    """Returns the nodes of a graph but the one that lists what was read, which differs between the modes."""
    return [node for node in graph.nodes if node.target is not unchanged]


def same_structure(left: Graph, right: Graph) -> tuple[Node, Node] | None:
    """Returns the first pair of nodes that differ in what they call or take; ``None`` if none does.

    Constants may differ: :func:`merge_modes` makes them depend on the mode.
    """
    return _first_difference(left, right, constants=False)


def same_graph(left: Graph, right: Graph) -> tuple[Node, Node] | None:
    """Compares as :func:`same_structure` does; constants must be the same, too."""
    return _first_difference(left, right, constants=True)


def _first_difference(left: Graph, right: Graph, constants: bool) -> tuple[Node, Node] | None:
    left_nodes, right_nodes = calls(left), calls(right)
    pairs = list(zip(left_nodes, right_nodes, strict=False))
    twin: dict[Node, Node] = {}
    for a, b in pairs:
        if a.op != b.op or a.target != b.target or not _alike((a.args, a.kwargs), (b.args, b.kwargs), twin, constants):
            return a, b
        twin[b] = a
    longer = left_nodes if len(left_nodes) > len(right_nodes) else right_nodes
    if len(left_nodes) != len(right_nodes):
        rest = longer[len(pairs)]
        return rest, rest
    return None


def _alike(a: Any, b: Any, twin: dict[Node, Node], constants: bool) -> bool:
    if isinstance(a, Node) or isinstance(b, Node):
        return isinstance(b, Node) and twin.get(b) is a
    if type(a) is not type(b):
        return not constants and not isinstance(a, _CONTAINERS) and not isinstance(b, _CONTAINERS)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_alike(x, y, twin, constants) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], twin, constants) for key in a)
    if isinstance(a, slice):
        return _alike((a.start, a.stop, a.step), (b.start, b.stop, b.step), twin, constants)
    return not constants or a == b or (a != a and b != b)


_CONTAINERS = (tuple, list, dict, slice)


def merge_modes(train: Graph, evaluate: Graph) -> None:
    """Makes constants of ``train`` that differ in ``evaluate`` depend on the mode of the module they belong to.

    The two must have the same structure. ``True`` in training and ``False`` in evaluation is the module's own
    ``training`` flag, read when the graph runs, so that ``train()``, ``eval()`` and freezing one module all count.
    """
    flags: dict[str, Node] = {}
    join_reads(train, evaluate)
    for a, b in zip(calls(train), calls(evaluate), strict=True):
        args, kwargs = _merged(train, a, a.args, b.args, flags), _merged(train, a, a.kwargs, b.kwargs, flags)
        a.args, a.kwargs = args, kwargs


def _merged(graph: Graph, node: Node, a: Any, b: Any, flags: dict[str, Node]) -> Any:
    if isinstance(a, Node):
        return a
    if isinstance(a, tuple) and hasattr(a, "_fields"):
        return type(a)(*(_merged(graph, node, x, y, flags) for x, y in zip(a, b, strict=True)))
    if isinstance(a, tuple | list):
        return type(a)(_merged(graph, node, x, y, flags) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return {key: _merged(graph, node, a[key], b[key], flags) for key in a}
    if isinstance(a, slice):
        parts = ((a.start, b.start), (a.stop, b.stop), (a.step, b.step))
        return slice(*(_merged(graph, node, x, y, flags) for x, y in parts))
    if (a == b and type(a) is type(b)) or (a != a and b != b):
        return a
    note = note_of(node)
    path = f"{note.module}.training" if note.module else "training"
    if path not in flags:
        with graph.inserting_before(_first(graph)):
            flags[path] = annotate(graph.create_node("get_attr", path), Note(module=note.module, source=note.source))
    if a is True and b is False:
        return flags[path]
    with graph.inserting_before(node):
        choice = graph.create_node("call_function", by_mode, (flags[path], a, b))
    return describe(annotate(choice, note), sizes=(), dtype=None)


def _first(graph: Graph) -> Node:
    """Returns the first node that is not an input."""
    return next(node for node in graph.nodes if node.op != "placeholder")


def add_sizes(graph: Graph, second: Graph) -> None:
    """Notes in ``graph`` what shape each value has in ``second``, a recording of the same calls on other sizes."""
    other = {node.name: note_of(node).sizes for node in second.nodes}
    for node in graph.nodes:
        note = note_of(node)
        if note.sizes and other.get(node.name):
            describe(node, sizes=(note.sizes[0], other[node.name][0]))

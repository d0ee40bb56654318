"""Equal calls become one, and rows are counted where they come from."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.lower.movers import keeps_rows
from dqconvert.lower.program import Program
from dqconvert.ops import op_of
from dqconvert.trace.note import note_of


def share_sizes(program: Program) -> Program:
    """Counts rows where they come from: their number is known before they are computed."""
    graph = program.graph
    for node in list(graph.nodes):
        if op_of(node).name == "size" and len(node.args) == 2 and node.args[1] == 0 and isinstance(node.args[0], Node):
            source = _rows_from(node.args[0])
            order = source.args[2].args[0] if source.target is integer_propagate else None  # type: ignore[union-attr]
            if isinstance(order, Node) and order.target is receiver_order:
                node.replace_all_uses_with(order.args[3])
                graph.erase_node(node)
            else:
                node.args = (source, 0)
    return program


def _rows_from(node: Node) -> Node:
    """Returns the earliest value that is known to have as many rows."""
    while (source := _same_rows(node)) is not None:
        node = source
    return node


def _same_rows(node: Node) -> Node | None:
    """Returns an argument of a node that has as many rows as its result; None if none is known to."""
    op = op_of(node)
    if (op.row_by_row and not op.pointwise) or keeps_rows(node):
        return node.all_input_nodes[0]
    entry_by_entry = op.pointwise and note_of(node).ndim > 0
    alike = (n for n in node.all_input_nodes if n.op != "get_attr" and note_of(n).sizes == note_of(node).sizes)
    return next(alike, None) if entry_by_entry else None


def share_calls(program: Program) -> Program:
    """Replaces calls of the same function with the same arguments by one."""
    graph, known = program.graph, dict[Any, Node]()
    for node in list(graph.nodes):
        if not repeatable(node):
            continue
        key = (node.op, node.target, _key(node.args), _key(node.kwargs))
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
        else:
            known[key] = node
    return program


def _key(value: Any) -> Any:
    """Returns arguments as something hashable, in which 1, 1.0 and True, or 0.0 and -0.0, differ."""
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    return (type(value), repr(value)) if isinstance(value, slice | float) else (type(value), value)


def repeatable(node: Node) -> bool:
    """True if a node returns the same for the same arguments, and is known to change nothing."""
    if node.op not in ("call_function", "call_method"):
        return False
    form = node.target is getattr and node.args[1] in ("dtype", "device")
    return form or op_of(node).repeatable

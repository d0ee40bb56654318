"""The arguments of a ``.pt2`` program: tensors, in the order of forward's, of any number of rows."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch.export import Dim
from torch.fx import Graph, Node

from dqconvert.errors import ExportError
from dqconvert.prepared.arguments import input_path
from dqconvert.rewrite.connectivity import is_input
from dqconvert.trace.globals import read_global
from dqconvert.trace.guards import ARGUMENT_CHECKS, pinned
from dqconvert.trace.note import Note, note_of


def plain_inputs(graph: Graph) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Makes tensors the arguments of a graph, in place: fields of data objects, nothing that must be absent.

    Returns:
        Arguments of such shapes, and which of their dimensions follow the graph.
    """
    for node in list(graph.nodes):
        if node.target is pinned:
            argument, value = node.args[:2]
            graph.erase_node(node)
            argument.replace_all_uses_with(_constant(graph, argument, value)) if argument.users else None
        elif node.target in ARGUMENT_CHECKS:
            graph.erase_node(node)
        elif node.target is read_global:
            raise ExportError(f"{where(node)}reads a tensor from a global variable: make it an argument of forward.")
    for holder in graph.find_nodes(op="placeholder"):
        if not holder.users:
            graph.erase_node(holder)
        elif not note_of(holder).is_tensor:
            _spread(graph, holder)
    arguments, shapes = [], {}
    sizes: dict[tuple[int, ...], int] = {}
    for node in graph.find_nodes(op="placeholder"):
        note = note_of(node)
        if not note.is_tensor or note.sparse:
            what = "a sparse matrix" if note.sparse else "neither a tensor nor a data object"
            raise ExportError(f"argument {node.target!r} is {what}, which no program takes: pass an edge_index.")
        node.args = ()  # no default: it was given when the module was prepared
        shape, dims = _shape(note, sizes)
        arguments.append(torch.zeros(shape, dtype=note.dtype))
        shapes[str(node.target)] = dims
    return tuple(arguments), shapes


def where(node: Node) -> str:
    """Returns the line, the layer and the name of a node, as errors begin."""
    note = note_of(node)
    return f"{note.source or 'a line without a source'}, {note.module or 'the model'}, {node.name}: "


def _constant(graph: Graph, argument: Node, value: Any) -> Any:
    """Returns a node of a flag or a word that an argument was."""
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        return graph.call_function(_itself, (value,), name=f"{argument.name}_value")


def _itself(value: Any) -> Any:
    return value


def _spread(graph: Graph, holder: Node) -> None:
    """Makes arguments of what the graph takes out of an argument: fields of a data object, items of a dict."""
    for user in list(holder.users):
        if user.target not in (getattr, operator.getitem) or not is_input(user):
            raise ExportError(
                f"{where(user)}reads {input_path(holder)!r}, which is no tensor: give the model tensors as arguments, "
                f"or dicts of such, and export that."
            )
        if not note_of(user).is_tensor:
            _spread(graph, user)
            continue
        *_, last = placeholders = graph.find_nodes(op="placeholder")
        steps, taken = _steps(user), {str(node.target) for node in placeholders}
        names = [name_of_part(*steps[1:]), name_of_part(*steps)][user.target is operator.getitem :]
        with graph.inserting_after(last):
            made = graph.placeholder(next((name for name in names if name not in taken), names[-1]))
        made.meta.update(user.meta)
        user.replace_all_uses_with(made)
        graph.erase_node(user)
    graph.erase_node(holder)


def name_of_part(*steps: Any) -> str:
    """Returns what a tensor is called that is taken out of an argument.

    Args:
        steps: The argument's name, and the keys by which it is taken; of a field of a data object, these alone.

    Example:
        >>> name_of_part("x_dict", "paper"), name_of_part("edge_index_dict", ("paper", "cites", "paper"))
        ('x_dict__paper', 'edge_index_dict__paper__cites__paper')
    """
    names = ["__".join(map(str, step)) if isinstance(step, tuple) else str(step) for step in steps]
    return re.sub(r"\W", "_", "__".join(names))


def _steps(node: Node) -> tuple[Any, ...]:
    """Returns an argument's name, and the keys by which a part of it is taken out."""
    if node.op == "placeholder":
        return (str(node.target),)
    assert isinstance(node.args[0], Node)
    return *_steps(node.args[0]), node.args[1]


_FIRST = 7
"""The smallest number of rows of the example: 0 and 1 would be taken for constants."""


def _shape(note: Note, sizes: dict[tuple[int, ...], int]) -> tuple[list[int], dict[int, Any]]:
    """Returns a shape like that of a note, and the dimensions that follow the graph; ``sizes``: of those, so far.

    Rows of one kind have one number in every argument, those of others another one.
    """
    shape, dims = [], {}
    for dim, both in enumerate(zip(*note.sizes, strict=True)):
        if len(set(both)) == 1 and len(both) > 1:
            shape.append(both[0])
            continue
        shape.append(sizes.setdefault(both, _FIRST + 6 * len(sizes)))
        dims[dim] = Dim.DYNAMIC if len(both) > 1 else Dim.AUTO
    return shape, dims

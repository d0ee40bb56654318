"""Modules that were not traced, kept apart from memory that is used again."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph

from dqconvert.quant.fused import own_memory
from dqconvert.trace.note import annotate, note_of


def guard_islands(graph: Graph, islands: Sequence[str]) -> None:
    """Gives modules that were not traced tensors in memory of their own, and copies what they return.

    What they do with that memory is unknown: reversible layers free that of their inputs, and later of their outputs.

    Args:
        graph: Changed in place.
        islands: Paths of the modules.

    Example:
        >>> import torch
        >>> from dqconvert.trace.note import Note
        >>> graph = Graph()
        >>> x = annotate(graph.placeholder("x"), Note(dtype=torch.float32))
        >>> result = graph.output(graph.call_module("layer", (x,)))
        >>> guard_islands(graph, ["layer"])
        >>> [node.name for node in graph.nodes]
        ['x', 'own_memory', 'layer', 'own_memory_1', 'output']
    """
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in islands:
            for tensor in [n for n in node.all_input_nodes if note_of(n).is_tensor]:
                with graph.inserting_before(node):
                    copied = annotate(graph.call_function(own_memory, (tensor,)), note_of(tensor))
                node.replace_input_with(tensor, copied)
            with graph.inserting_after(node):
                result = annotate(graph.call_function(own_memory, (node,)), note_of(node))
            node.replace_all_uses_with(result, delete_user_cb=lambda user, result=result: user is not result)

"""Copies around modules that were not traced, and a check that no explainer has its masks on layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph
from torch_geometric.explain.algorithm.utils import clear_masks

from dqconvert.errors import GuardError
from dqconvert.trace.note import annotate, note_of


def guard_islands(graph: Graph, islands: Sequence[str]) -> None:
    """Copies the inputs and the outputs of modules that were not traced.

    What they do with that memory is unknown: reversible layers free that of their inputs, and later of their outputs.
    Results of the kernels lie in buffers that are used again (``kernels/_buffers.py``), and cannot be freed.

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


def own_memory(x: Any) -> Any:
    """Returns copies of a tensor, or of those in a tuple or list."""
    if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
        return type(x)(map(own_memory, x))
    return x.clone() if isinstance(x, Tensor) else x


def refuse_explanations(graph: Graph, layers: Sequence[str]) -> None:
    """Adds a check that no explainer has its masks on layers: their messages do not pass through the masks.

    Args:
        layers: Paths of the message-passing layers that it stands for.
    """
    if not layers:
        return
    last = max(node for node in graph.nodes if node.op == "placeholder")
    following = last.next
    with graph.inserting_before(following):
        graph.call_function(unexplained, tuple(graph.get_attr(path) for path in layers))


def unexplained(*layers: Any) -> None:
    """Checks that no explainer has a mask on a layer.

    Raises:
        GuardError: If one has.
    """
    for layer in layers:
        if layer._edge_mask is not None:
            for other in layers:  # the explainer does not do so if it fails, and the module shall go on working
                clear_masks(other)
            raise GuardError(
                f"an explainer has put a mask for edges on {type(layer).__name__}, whose messages this prepared module "
                f"computes without it: explain the float model, with these weights "
                f"(model.load_state_dict(module.state_dict(), strict=False)), or leave edge_mask_type out."
            )

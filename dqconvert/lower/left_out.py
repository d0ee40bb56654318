"""Side effects of a prepared module that an integer module does not have: hooks, and attributes that it sets."""

from __future__ import annotations

import warnings

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import LoweringError
from dqconvert.trace.hooks import call_hook
from dqconvert.trace.note import note_of
from dqconvert.trace.runtime import keep
from dqconvert.trace.unchanged import ITSELF, entries_of, followed_reads


def not_done(graphs: list[Graph]) -> tuple[str, ...]:
    """Returns what an integer module leaves out, in words, and warns of it.

    Args:
        graphs: The prepared graphs of evaluation.

    Raises:
        LoweringError: If a hook changes values, or the forward keeps state.
    """
    found: dict[str, None] = {}
    reads = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "get_attr"}
    for node in (node for graph in graphs for node in graph.nodes):
        if node.target is call_hook:
            where = f"of module {_path(node)!r} ({node.args[1]}, {note_of(node).source})"
            if node.args[3]:
                raise LoweringError(
                    f"a hook {where} changes values, and integer modules run no hooks: compute it in the module's "
                    f"forward, or remove the hook before prepare."
                )
            found[f"hooks {where} do not run in the integer module"] = None
        elif node.target is keep and f"{_path(node)}.{node.args[1]}".lstrip(".") in reads:
            raise LoweringError(
                f"{note_of(node).source}: the forward reads {node.args[1]!r} of {_path(node) or 'the model'} and sets "
                f"it anew in evaluation, and an integer module keeps no state: let it do so in training alone."
            )
        elif node.target is keep:
            found[f"{node.args[1]!r} of {_path(node) or 'the model'} is not set by the integer module"] = None
    for remark in found:
        warnings.warn(remark, stacklevel=4)
    return tuple(found)


def _path(node: Node) -> str:
    owner = node.args[0]
    assert isinstance(owner, Node)
    return "" if owner.target == ITSELF else str(owner.target)


def settings(graphs: list[Graph], root: nn.Module) -> tuple[str, ...]:
    """Returns the attributes that the forward reads, by path."""
    kinds = ("value", "object", "equal", "len", "keys", "in", "not in")
    reads = [(entry.path, entry.steps) for graph in graphs for entry in entries_of(graph) if entry.kind in kinds]
    reads += [key for graph in graphs for key, _ in followed_reads(graph, root)]
    return tuple(dict.fromkeys(f"{path}.{steps[0][1]}".lstrip(".") for path, steps in reads))

"""Modules that stay whole because a graph cannot hold what they do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import TraceError
from dqconvert.ops import op_name
from dqconvert.trace.guards import guard
from dqconvert.trace.note import note_of
from dqconvert.trace.values import Untraceable


@dataclass(frozen=True, kw_only=True)
class Island:
    """A module that the graph calls as a whole because it could not be looked into."""

    module: str
    reason: str
    source: str


def no_graph(root: nn.Module, island: Island) -> TraceError:
    """Returns the error for a module that cannot stay whole: the root, or any where the user wants none."""
    where = f"module {island.module!r}" if island.module else f"the root module ({type(root).__name__})"
    return TraceError(
        f"{island.source}: {where} {island.reason}; a graph cannot hold that. Compute it with tensor operations "
        f"(torch.where), or move it into a submodule, which then stays in float."
    )


def drop_children(islands: dict[str, Island], path: str) -> None:
    """Forgets, in place, the modules inside of one that stays whole itself."""
    for inner in [name for name in islands if name.startswith(f"{path}.")]:
        del islands[inner]


def refuse_loops(graph: Graph) -> None:
    """Refuses graphs that compare a remainder or a fraction of a size.

    Such a comparison comes out otherwise on the next size but one: it belongs to a loop that halves, or to a case of
    odd numbers. A submodule that does that is of use whole alone.

    Raises:
        Untraceable: To keep it whole.
    """
    rounds: Counter[tuple[str, int, str]] = Counter()
    for node in graph.nodes:
        note = note_of(node)
        if node.target is not guard or not note.module:
            continue
        divided, grows = _divided(node)
        rounds[note.module, note.call, note.source] += divided
        if divided and (grows or rounds[note.module, note.call, note.source] > 1):
            raise Untraceable(note.module, "branches on a remainder or a fraction of a size", note.source)


def _divided(comparison: Node) -> tuple[bool, bool]:
    """Finds comparisons of what is left when a size is divided, and whether that size surely follows the graph."""
    reach = list(comparison.all_input_nodes)
    divided = grows = False
    for node in reach:
        if op_name(node) in ("size", "numel"):
            owner = note_of(node.all_input_nodes[0])
            dims = [int(str(node.args[1]))] if len(node.args) > 1 else range(owner.ndim)
            grows = grows or any(len({size[dim] for size in owner.sizes}) > 1 for dim in dims)
        elif not note_of(node).is_tensor:
            divided = divided or op_name(node) in ("mod", "floordiv", "rshift", "and")
            reach += [part for part in node.all_input_nodes if part not in reach]
    return divided, grows

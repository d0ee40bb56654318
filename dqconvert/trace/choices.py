"""Numbers among the arguments that choose what a forward does: which layer, how many of them.

A number is followed through arithmetic, and a list that is indexed by it is not seen. So a recording is made with
another number: where that gives another graph, the graph is for this number alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph

from dqconvert.trace.guards import guard, pinned
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.interception import Interception
from dqconvert.trace.merge import same_graph
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.record import record
from dqconvert.trace.values import Untraceable


def choices_among(
    interception: Interception, inputs: Inputs, method: str, kept: frozenset[str], graph: Graph
) -> dict[str, int]:
    """Returns the numbers among the arguments that choose a branch, by argument.

    Args:
        kept: Paths of modules to keep whole.
        graph: The recording, in evaluation if the method takes the inputs there.
    """
    found = {}
    for name, value in inputs.arguments.items():
        if type(value) is not int:
            continue
        node = next(n for n in graph.nodes if n.op == "placeholder" and n.target == name)
        used = any(user.target is not guard for user in node.users)
        outcomes = [_differs(interception, inputs, method, kept, graph, name, value + by) for by in (1, -1)]
        # A number that is computed with may be a size, and no other will do; one that is not was refused as an index.
        if True in outcomes or (not used and outcomes == [None, None]):
            found[name] = value
    return found


def pin_choices(graph: Graph, choices: dict[str, int]) -> None:
    """Lets a graph check, in place, that numbers are what they were."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        if node.target in choices:
            with graph.inserting_after(inputs[-1]):
                name = str(node.target)
                annotate(graph.call_function(pinned, (node, choices[name], name)), Note())


def _differs(
    interception: Interception, inputs: Inputs, method: str, kept: frozenset[str], graph: Graph, name: str, number: int
) -> bool | None:
    """Returns True if another number gives another graph; ``None`` if the method refuses it."""
    changed = replace(inputs, arguments={**inputs.arguments, name: number})
    try:
        other = record(interception, changed, method, inputs.modes[-1], kept)
    except Untraceable:
        return True
    except Exception:  # whatever the user's code says of a number that it cannot use
        return None
    return same_graph(graph, other) is not None

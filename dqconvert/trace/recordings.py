"""Records a model in both modes, on two inputs; again with a module kept whole where that fails."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from dqconvert.trace.attributes import Attributes, Stateful, refuse_left
from dqconvert.trace.brackets import NoProduct
from dqconvert.trace.choices import choices_among, pin_choices
from dqconvert.trace.guards import guard
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.interception import Interception
from dqconvert.trace.islands import Island, drop_children, no_graph, refuse_loops
from dqconvert.trace.merge import add_sizes, same_graph
from dqconvert.trace.note import note_of
from dqconvert.trace.plain_globals import leave_out_changing
from dqconvert.trace.record import record
from dqconvert.trace.unfuse import Unfused
from dqconvert.trace.values import Untraceable


@dataclass
class Recorded:
    """The result of recording a model.

    Attributes:
        train: The graph of a training forward; its notes know both sizes if there was a second input.
        evaluate: The graph of an evaluation forward; the same one where the model refuses one of the two.
        islands: Modules kept whole.
        second: The second input, if the graphs hold for it.
        sparse: Whether messages were passed over a sparse adjacency.
        remarks: What could not be checked.
        left: Attributes that were set.
    """

    train: Graph
    evaluate: Graph
    islands: dict[str, Island]
    second: Inputs | None
    sparse: bool
    remarks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def record_all(
    root: nn.Module, inputs: Inputs, second: Inputs | None, method: str, strict: bool, layers: Unfused
) -> Recorded:
    """Records both modes on both inputs; a module that cannot be recorded in one of the four stays whole in all."""
    interception = Interception(root, layers.both, [product.module for product in layers.products])
    for product in layers.products:
        if strict:
            raise no_graph(root, product)
    islands: dict[str, Island] = {}
    while True:
        try:
            with interception.active(), interception.watching():
                found = _record_four(interception, inputs, second, method, islands)
                found.remarks += leave_out_changing((found.train, found.evaluate))
                return found
        except NoProduct as failure:
            interception.fused = frozenset(interception.fused) - {failure.layer}
        except Stateful as failure:
            interception.stateful.add(failure.key)
        except Untraceable as failure:
            path = failure.module
            while path in islands and path:
                path = path.rpartition(".")[0]
            island = Island(module=failure.module, reason=failure.reason, source=failure.source)
            if strict or not path or f"{part_of(method)}.".startswith(f"{path}."):  # the module that the method is of
                raise no_graph(root, island) from None
            drop_children(islands, path)
            islands[path] = replace(island, module=path)


def _record_four(
    interception: Interception, inputs: Inputs, second: Inputs | None, method: str, islands: dict[str, Island]
) -> Recorded:
    remarks: dict[str, None] = {}
    left: list[str] = []
    attributes: dict[bool, Attributes] = {}
    noted: dict[str, Any] = {"remarks": remarks, "left": left, "attributes": attributes}
    graphs = {mode: record(interception, inputs, method, mode, frozenset(islands), **noted) for mode in inputs.modes}
    refuse_left(attributes)
    train, evaluate = graphs[inputs.modes[0]], graphs[inputs.modes[-1]]
    found = Recorded(train, evaluate, islands, second, interception.met_sparse, list(remarks), left)
    choices = choices_among(interception, inputs, method, frozenset(islands), evaluate)
    if second is None:
        for graph in graphs.values():
            pin_choices(graph, choices)
        found.remarks.append("no second input of other sizes could be derived: checked on the example inputs alone")
        return found
    for training, graph in graphs.items():
        other = record(interception, second, method, training, frozenset(islands))
        different = same_graph(graph, other)
        if different is None:
            add_sizes(graph, other)
            refuse_loops(graph)
        else:
            _explain(different, found, part_of(method))
        pin_choices(graph, choices)
    return found


def part_of(method: str) -> str:
    """Returns the path of the module that a method is of."""
    return method.rpartition(".")[0]


def _explain(different: tuple[Node, Node], found: Recorded, part: str) -> None:
    """Finds out why the second input gave another graph: a branch on a size, or a size that became a constant.

    Args:
        found: What was recorded; takes a remark.
        part: The path of the module that the recorded method is of.

    Raises:
        Untraceable: To keep the module whole that did it.
    """
    node, other = different
    note = note_of(node)
    if guard in (node.target, other.target):
        if note.module != part:
            raise Untraceable(note.module, "branches on a size", note.source)
        found.second = None
        found.remarks.append(
            f"{note.source}: the forward branches on a size; the graph holds the branch of the example inputs and "
            f"checks for it when it runs"
        )
        return
    raise Untraceable(
        note.module,
        f"turns a size or a value into a Python number where the recording cannot follow: {_words(node)} is "
        f"{_words(other)} on inputs of another size",
        note.source,
    )


def _words(node: Node) -> str:
    """Describes a call in the words of the code that made it."""
    if node.op in ("output", "placeholder"):
        return f"the {node.op}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    numbers = [str(arg) for arg in [*node.args, *node.kwargs.values()] if isinstance(arg, int | float)]
    return f"{name}(…{', '.join(numbers)})"

"""The walk over a prepared graph that writes the integer graph: each node by the first form that applies."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.lower.forms import FORMS
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.places import Place, hold, rounded_value
from dqconvert.lower.values import Codes
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import Note, note_of


def walk(graph: Graph, root: nn.Module) -> Lowering:
    """Lowers every node of a graph, in order.

    Args:
        graph: From :func:`dqconvert.lower.evaluation.evaluation_graph`.

    Returns:
        The lowering, whose ``program`` is written and whose ``values`` say what became of each node.
    """
    lowering = Lowering(graph, root)
    nodes = list(graph.nodes)
    # Gradients are on from the first node that one is taken through, to the last one that takes one.
    first = next((node for node in nodes if node in lowering.differentiated), None)
    last = next((node for node in reversed(nodes) if node.target is torch.autograd.grad), None)
    for node in nodes:
        lowering.program.where = note_of(node)
        if node is first:
            lowering.program.call(torch._C._set_grad_enabled, (True,))
        value = next(found for form in FORMS if (found := form(lowering, node)) is not None)
        lowering.values[node] = value
        if node is last:
            lowering.program.call(torch._C._set_grad_enabled, (False,))
        if isinstance(value, Codes) and (quantizer := lowering.quantizer(node)) is not None:
            _note_place(lowering, node, value, quantizer)
    lowering.program.where = Note()
    return lowering


def _note_place(lowering: Lowering, node: Node, value: Codes, quantizer: FakeQuantize) -> None:
    """Notes which codes are the values that a quantizer rounds, for :func:`dqconvert.compare`."""
    rounds = rounded_value(node, lowering.context.modules).name
    place = Place(
        path=str(node.target),
        value=rounds,
        node=value.node.name,
        scale=value.grid.scale,
        zero=value.grid.zero,
        from_zero=quantizer.from_zero,
    )
    hold(value.node, place)

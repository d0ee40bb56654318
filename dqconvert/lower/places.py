"""Places: the nodes of an integer graph that hold values of the prepared graph, for :func:`dqconvert.compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import Finish, unpack
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import describe, note_of

_KEY = "dqconvert_places"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node of an integer graph that holds a value which the prepared graph rounds.

    Attributes:
        path: Of the quantizer that rounds it.
        value: Name of the node of the prepared graph that computes it.
        node: Name of the node of the integer graph that holds its codes.
        scale: A code stands for ``(code - zero) * scale``.
        zero: Likewise.
        packed: Whether there are two codes to a byte.
        from_zero: Whether what is below zero is cut, as only ReLUs read it (``signed="graph"``): that is no error.
    """

    path: str
    value: str
    node: str
    scale: float
    zero: int
    packed: bool = False
    from_zero: bool = False

    def read(self, held: Tensor, columns: int) -> Tensor:
        """Returns the values, float64, of what the node holds.

        Args:
            columns: How many values there are in a row.

        Example:
            >>> import torch
            >>> place = Place(path="lin.quant.input", value="x", node="quantize", scale=0.5, zero=2, packed=True)
            >>> place.read(torch.tensor([[33, 3]], dtype=torch.uint8), columns=3)
            tensor([[-0.5000,  0.0000,  0.5000]], dtype=torch.float64)
        """
        codes = unpack(held, columns) if self.packed else held
        return (codes.double() - self.zero) * self.scale


def rounded_value(node: Node, modules: Mapping[str, nn.Module]) -> Node:
    """Returns the node whose value a quantizer, or several behind one another, round."""
    source = node.args[0]
    assert isinstance(source, Node)
    while source.op == "call_module" and isinstance(modules.get(str(source.target)), FakeQuantize):
        assert isinstance(source.args[0], Node)
        source = source.args[0]
    return source


def hold(node: Node, place: Place) -> None:
    """Notes that a node of the integer graph holds a value of the prepared graph."""
    node.meta[_KEY] = (*node.meta.get(_KEY, ()), place)


def put_in_place(new: Node, old: Node) -> None:
    """Lets a node of the integer graph take the place of another one, which is erased; it holds what that held."""
    new.meta[_KEY] = old.meta.get(_KEY, ())
    note, was = note_of(new), note_of(old)
    if not note.module and not note.source:
        describe(new, module=was.module, call=was.call, propagation=was.propagation, source=was.source)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def hold_nothing(node: Node) -> None:
    """Notes that a node holds none of the prepared graph's values any more."""
    node.meta.pop(_KEY, None)


def places_of(graph: Graph) -> tuple[Place, ...]:
    """Returns the places of a finished integer graph, in its order."""
    return tuple(
        replace(place, node=node.name, packed=_packed(node))
        for node in graph.nodes
        for place in node.meta.get(_KEY, ())
    )


def _packed(node: Node) -> bool:
    finish = next((argument for argument in node.args if isinstance(argument, Finish)), None)
    return bool(node.kwargs.get("packed")) if node.target is quantize else finish is not None and bool(finish.packed)

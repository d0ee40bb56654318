"""What a value in an integer graph has rows for: nodes, edges as they are listed, edges by receiver, senders."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch.fx import Node

from dqconvert.rewrite.connectivity import is_input
from dqconvert.rewrite.derive import Size
from dqconvert.trace.globals import read_global

Space = Size
"""A kind of nodes: how many there were while tracing."""


@dataclass(frozen=True)
class Listing:
    """A list of edges.

    Attributes:
        base: The node that holds them, ``[2, num_edges]``.
        drop: Whether edges from a node to itself are left out.
        loops: Of which nodes each has an edge to itself, behind all others.
    """

    base: Node
    drop: bool = False
    loops: Space | None = None


@dataclass(frozen=True)
class Order:
    """The edges of a list by the node at one of their ends.

    Attributes:
        send: The end that messages come from.
        receive: The end that they go to.
    """

    listing: Listing
    send: int
    receive: int


@dataclass(frozen=True)
class Whole:
    """A value of the whole graph: a number, a constant."""


@dataclass(frozen=True)
class Made:
    """Several values in one, computed of the graph as a whole."""


@dataclass(frozen=True)
class Form:
    """A number that is the same for all rows: a width, a dtype."""


@dataclass(frozen=True)
class Count:
    """How many nodes of a kind there are, or how many edges in a list."""

    of: Space | Listing


@dataclass(frozen=True)
class Nodes:
    """A row for each node."""

    space: Space


@dataclass(frozen=True)
class Ends:
    """Both ends of each edge, ``[2, num_edges]``."""

    listing: Listing


@dataclass(frozen=True)
class End:
    """One end of each edge, ``[num_edges]``."""

    listing: Listing
    end: int


@dataclass(frozen=True)
class Listed:
    """A row for each edge, as they are listed."""

    listing: Listing


@dataclass(frozen=True)
class Sorted:
    """A row for each edge, by their receivers."""

    order: Order


@dataclass(frozen=True)
class Sent:
    """A row for each node that sends."""

    order: Order


@dataclass(frozen=True)
class Stacked:
    """Values with the same rows, one behind the other along a first dimension."""

    of: Nodes | Listed | Sorted | Sent


@dataclass(frozen=True)
class Part:
    """A part of an order: where the edges of each receiver begin, their senders, their places in the list."""

    order: Order
    number: int


Kind = Whole | Made | Form | Count | Nodes | Ends | End | Listed | Sorted | Sent | Stacked | Part | tuple["Kind", ...]
OF_ROWS = (Nodes, Listed, Sorted, Sent, Stacked)
"""Kinds of values that differ from chunk to chunk."""


def is_argument(node: Node) -> bool:
    """True if a node is an argument, or takes a part out of one."""
    takes = node.op == "placeholder" or node.target in (getattr, operator.getitem, read_global)
    return takes and is_input(node)

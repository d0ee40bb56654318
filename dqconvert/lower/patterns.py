"""Patterns that forms and passes look for in an integer graph."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node


def taken(node: Any) -> tuple[Node, Node] | None:
    """Returns the source and the index of ``source.index_select(0, index)``; None if a node is something else."""
    if not isinstance(node, Node) or node.target != "index_select" or node.args[1] != 0:
        return None
    source, _, index = node.args
    return (source, index) if isinstance(source, Node) and isinstance(index, Node) else None


def part_of(value: object, k: int) -> Node | None:
    """Returns ``x`` of ``x[k]``; None if a value is something else."""
    if isinstance(value, Node) and value.target is operator.getitem and value.args[1] == k:
        source = value.args[0]
        return source if isinstance(source, Node) else None
    return None


def same(one: object, other: object) -> bool:
    """True if two nodes are one, or the same item of the same value."""
    if not isinstance(one, Node) or not isinstance(other, Node):
        return False
    return one is other or (one.target is other.target is operator.getitem and one.args == other.args)

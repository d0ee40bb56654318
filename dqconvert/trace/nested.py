"""Walks over nested containers, as arguments and attributes are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.fx import Node


def leaves_in(value: Any) -> Iterator[Any]:
    """Yields what lists, tuples, dicts, deques and slices hold at any depth; of any other value, itself.

    Args:
        value: Any value. Of a dict the values count, not the keys.

    Example:
        >>> list(leaves_in({"a": [1, (2, None)], "b": slice(3, 4)}))
        [1, 2, None, 3, 4, None]
    """
    if isinstance(value, tuple | list | deque):
        for item in value:
            yield from leaves_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves_in(item)
    elif isinstance(value, slice):
        yield from leaves_in((value.start, value.stop, value.step))
    else:
        yield value


def is_named(value: Any) -> bool:
    """Returns True for a named tuple."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def map_items(value: Any, function: Callable[[Any], Any]) -> Any:
    """Returns a tuple, list, dict or slice with ``function`` of each item in its place; other values as they are.

    Example:
        >>> map_items({"a": 1, "b": 2}, str), map_items(slice(1, 2, None), repr)
        ({'a': '1', 'b': '2'}, slice('1', '2', 'None'))
    """
    if isinstance(value, tuple | list):
        items = map(function, value)
        return type(value)(*items) if is_named(value) else type(value)(items)
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    return slice(*map(function, (value.start, value.stop, value.step))) if isinstance(value, slice) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors among the leaves of a value; see :func:`leaves_in`."""
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor))


def nodes_in(value: Any) -> Iterator[Node]:
    """Yields the nodes of a graph among the leaves of a value: of the arguments of a call."""
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, Node))

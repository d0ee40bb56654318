"""The table of all operations, and how a record is found in it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from dqconvert.ops.graphs import GRAPHS
from dqconvert.ops.making import MAKING
from dqconvert.ops.moving import MOVING
from dqconvert.ops.ours import OWN
from dqconvert.ops.pointwise import POINTWISE
from dqconvert.ops.products import SUMS
from dqconvert.ops.record import OURS, PYG, TORCH, Op

OPS: tuple[Op, ...] = POINTWISE + MOVING + SUMS + MAKING + GRAPHS + OWN
"""One record per operation."""


def _by_name() -> Iterator[tuple[tuple[str, str], Op]]:
    seen: dict[tuple[str, str], Op] = {}
    for op in OPS:
        for name in op.names:
            if seen.setdefault((op.package, name), op) is not op:
                raise ValueError(f"two records of {op.package} are called {name!r}")
            yield (op.package, name), op


_BY_NAME: Mapping[tuple[str, str], Op] = MappingProxyType(dict(_by_name()))

ALIASES: Mapping[str, str] = MappingProxyType({alias: op.name for op in OPS for alias in op.aliases})
"""The name that an operation is recorded by, by each other name that torch has for it."""


def short_name(name: str) -> str:
    """A name of a function or method without what says that it works in place, or is special.

    Example:
        >>> short_name("add_"), short_name("__getitem__"), short_name("and_")
        ('add', 'getitem', 'and')
    """
    if name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return name.strip("_")


@functools.lru_cache(maxsize=4096)
def op_named(name: str, package: str = TORCH) -> Op:
    """The record of a name; one that says nothing for a name that has none.

    Args:
        name: Of a function or method, in place or not; ``"__imul__"`` is ``"mul"``.
        package: Whose function it is, if it is PyG's or ours. One without a record is taken for torch's of that name.

    Example:
        >>> op_named("bmm").name, op_named("relu_").pointwise, op_named("my_own").pointwise
        ('matmul', True, False)
    """
    short = short_name(name)
    found = _BY_NAME.get((package, short)) or _BY_NAME.get((TORCH, short))
    if found is None and name.startswith("__i"):
        found = _BY_NAME.get((TORCH, short[1:]))
    return found or Op(short, known=False)


def package_of(function: Callable[..., Any]) -> str:
    """The package that a function is of: PyG's, ours, or else torch's."""
    return _package(getattr(function, "__module__", None))


def _package(module: object) -> str:
    package = module.partition(".")[0] if isinstance(module, str) else ""
    return package if package in (PYG, OURS) else TORCH


def op_of_function(function: Callable[..., Any]) -> Op:
    """The record of a function.

    Example:
        >>> import torch
        >>> op_of_function(torch.nn.functional.relu) is op_of_function(torch.relu)
        True
    """
    return _of(getattr(function, "__name__", None) or str(function), getattr(function, "__module__", None))


@functools.lru_cache(maxsize=4096)
def _of(name: str, module: object) -> Op:
    return op_named(name, _package(module))


@functools.cache
def _layers() -> Mapping[type, Op]:
    found: dict[type, Op] = {}
    for op in OPS:
        for path in op.modules:
            module, _, name = path.rpartition(".")
            found[getattr(importlib.import_module(module), name)] = op
    return found


def layers_of(holds: Callable[[Op], bool]) -> tuple[Any, ...]:
    """The classes of layers whose record says something.

    Example:
        >>> [layer.__name__ for layer in layers_of(lambda op: op.reduces == "max")]
        ['MaxAggregation']
    """
    return tuple(layer for layer, op in _layers().items() if holds(op))


def op_of_layer(layer: object, subclasses: bool = False) -> Op:
    """The record of what a layer computes; one that says nothing if none is known.

    Args:
        layer: A module.
        subclasses: Whether to take a subclass for what it is derived from.

    Example:
        >>> from torch import nn
        >>> op_of_layer(nn.ReLU()).name, op_of_layer(nn.Linear(1, 1)).name
        ('relu', 'linear')
    """
    kinds = type(layer).__mro__ if subclasses else (type(layer),)
    found = next((op for kind in kinds if (op := _layers().get(kind)) is not None), None)
    return found or Op(type(layer).__name__, known=False)

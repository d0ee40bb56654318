"""The graphs of several methods over one set of constants: what two of them hold is held once."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from dqconvert.lower.program import holder
from dqconvert.lower.remember import Remember


def merge(root: nn.Module, other: nn.Module, graph: Graph) -> None:
    """Moves the constants and modules of one more method's graph to the module that holds those of the others.

    Args:
        root: Holds those; gets what it lacks.
        other: Holds the constants and modules of ``graph``.
        graph: Changed in place: it reads them from ``root`` afterwards.

    Example:
        >>> root, other, graph = nn.Module(), nn.Module(), Graph()
        >>> root.register_buffer("table", torch.ones(2))
        >>> other.register_buffer("values", torch.ones(2))
        >>> constant = graph.get_attr("values")
        >>> merge(root, other, graph)
        >>> constant.target, [name for name, _ in root.named_buffers()]
        ('table', ['table'])
    """
    known: dict[tuple[Any, ...], list[str]] = {}
    for name, value in root._buffers.items():
        if value is not None:
            known.setdefault(_form(value), []).append(name)
    moved: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        path = str(node.target)
        if path not in moved:
            found = attrgetter(path)(other)
            tensor = isinstance(found, Tensor)
            moved[path] = _constant(root, path, found, known) if tensor else _module(root, path, found)
        node.target = moved[path]


def _constant(root: nn.Module, path: str, value: Tensor, known: dict[tuple[Any, ...], list[str]]) -> str:
    alike = known.setdefault(_form(value), [])
    for name in alike:
        if torch.equal(attrgetter(name)(root), value):
            return name
    name = _free(root, path)
    root.register_buffer(name, value)
    alike.append(name)
    return name


def _module(root: nn.Module, path: str, module: nn.Module) -> str:
    """Returns a module's path in ``root``: its own, for a module of the user's; a free one for one that remembers."""
    if isinstance(module, Remember):
        path = _free(root, path)
        root.add_module(path, module)
        return path
    owner, name = holder(root, path)
    if name not in owner._modules:
        owner.add_module(name, module)
    return path


def _free(root: nn.Module, path: str) -> str:
    stem, number = path, 0
    while hasattr(root, path):
        number += 1
        path = f"{stem}_of_{number}"
    return path


def _form(value: Tensor) -> tuple[Any, ...]:
    return value.dtype, tuple(value.shape)

"""The words of graphs in files that are no functions: names, attributes of tensors, named tuples, torch's constants."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from dqconvert.errors import CheckpointError
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import MessageWeight
from dqconvert.trace.names import module_of
from dqconvert.trace.nested import is_named


def tuple_name(kind: type) -> str:
    """Returns the name of a named tuple in files."""
    return f"{kind.__module__}:{kind.__qualname__}"


TORCH_WORDS = (torch.dtype, torch.layout, torch.memory_format)


_OURS = {tuple_name(cls): cls for cls in (Finish, MessageWeight)}
"""The named tuples of integer graphs."""


def named_tuples(graph: Graph) -> list[str]:
    """Returns the classes of the user's named tuples that a graph makes, by name."""
    found: list[str] = []

    def look(value: Any) -> None:
        if is_named(value) and tuple_name(type(value)) not in _OURS:
            found.append(tuple_name(type(value)))
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ():
            look(item)

    for node in graph.nodes:
        look((node.args, node.kwargs))
    return found


def known_namedtuple(name: str, root: nn.Module | None) -> Any:
    """Returns a named tuple's class: ours, or found among the names of the modules that define the given model."""
    if name in _OURS:
        return _OURS[name]
    if root is None:
        return None
    own = {module_of(cls) for module in root.modules() for cls in type(module).__mro__}
    module, _, qualname = name.partition(":")
    kind = vars(sys.modules[module]).get(qualname) if module in own and module in sys.modules else None
    if not (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")):
        raise CheckpointError(
            f"the graph in the file returns the named tuple {name!r}, which is not defined beside the given model."
        )
    return kind


def identifier(name: Any) -> str:
    """Returns a name, if it is one that code may have."""
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise CheckpointError(f"the graph in the file has the name {name!r}, which is not a name in Python.")
    return name


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("__")


_READABLE = frozenset(
    (
        *("dtype", "device", "layout", "shape", "ndim", "is_sparse", "is_sparse_csr", "is_cuda"),
        *("requires_grad", "itemsize", "T", "mT", "H", "mH", "real", "imag"),
    )
)
"""What a graph reads off a tensor without a call: what says nothing of its memory, and views that write through it."""


def is_readable(name: Any) -> bool:
    """True if a graph may read an attribute: these of a tensor, and any that a tensor does not have (``data.x``)."""
    return _is_plain(name) and not name.startswith("_") and (name in _READABLE or not hasattr(torch.Tensor, name))


def torch_word(kind: type) -> Callable[[Any], Any]:
    """Returns a function that reads a dtype, layout or memory format by its name."""

    def read(name: Any) -> Any:
        value = getattr(torch, name) if _is_plain(name) else None
        if not isinstance(value, kind):
            raise ValueError(f"there is no {kind.__name__} {name!r}")
        return value

    return read

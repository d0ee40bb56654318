"""The integer graph while it is being written, and the constants that it holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.kernels.integer.finish import CODES
from dqconvert.kernels.integer.tables import look_up_pairs
from dqconvert.lower.runtime import look_up_last
from dqconvert.lower.values import Codes, Fixed, Joined, Known, Looked, Value, as_looked
from dqconvert.rewrite.place import Quantizers
from dqconvert.trace.copies import set_mode
from dqconvert.trace.doors import copy_apart
from dqconvert.trace.names import module_of
from dqconvert.trace.note import Note, annotate, note_of


class Builder:
    """Writes nodes, behind one another.

    Attributes:
        graph: The integer graph.
        root: Holds its constants and modules.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.root = nn.Module()
        self._floats: dict[Value, Node] = {}
        self._constants: dict[int, tuple[Tensor, Node]] = {}

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], note: Note | None = None) -> Node:
        """A call of a function; ``note``: of the value."""
        return annotate(self.graph.call_function(target, args), note or Note())

    def copy(self, node: Node, args: Any, kwargs: Any) -> Node:
        """The same node with other arguments."""
        target = node.target
        if node.op == "placeholder":
            new = self.graph.create_node("placeholder", target, node.args, name=node.name)
        else:
            new = self.graph.create_node(node.op, target, args, kwargs, name=node.name)
        return annotate(new, note_of(node))

    def constant(self, tensor: Tensor, name: str) -> Node:
        """The node that reads a tensor that never changes; equal names get numbers."""
        known = self._constants.get(id(tensor))
        if known is not None:
            return known[1]
        stem = re.sub(r"\W+", "_", name).strip("_") or "constant"
        path, number = stem, 0
        while hasattr(self.root, path):
            number += 1
            path = f"{stem}_{number}"
        self.root.register_buffer(path, tensor.detach().clone(memory_format=torch.contiguous_format))
        sizes = Note(sizes=(tuple(tensor.shape),), dtype=tensor.dtype)
        with self.graph.inserting_before(self._first()):
            node = annotate(self.graph.get_attr(path), sizes)
        self._constants[id(tensor)] = (tensor, node)
        return node

    def _first(self) -> Node:
        """Constants stand behind the arguments: what is written later can use them wherever it stands."""
        inner = (node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr"))
        return next(inner, self.graph._root)

    def drop_unread(self) -> None:
        """Lets go of constants that the graph does not read any more."""
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name in self.root._buffers if name not in read]:
            del self.root._buffers[name]

    def module(self, path: str, module: nn.Module) -> None:
        """Registers a copy of a module under a path."""
        owner = self.root
        *containers, name = path.split(".")
        for container in containers:
            if not hasattr(owner, container):
                owner.add_module(container, nn.Module())
            owner = getattr(owner, container)
        if not hasattr(owner, name):
            copied = set_mode(copy_apart(module), False).requires_grad_(False)
            for part in list(copied.modules()):
                for held, child in list(part.named_children()):
                    if isinstance(child, Quantizers):  # the graph calls them, never the module
                        delattr(part, held)
                if getattr(part, "inplace", False) and module_of(type(part)).startswith("torch.nn."):
                    part.inplace = False  # type: ignore[assignment]
            owner.add_module(name, copied)

    # -- values ------------------------------------------------------------------------------------------------------

    def plain(self, value: Value, note: Note) -> Any:
        """The node, or the number, that holds a value as the float graph does; once each."""
        if isinstance(value, Fixed):
            return value.value
        if isinstance(value, Known):
            return self.constant(value.value, f"{note.module}.value")
        if isinstance(value, Codes | Looked):
            return self._looked_up(value, note)
        if isinstance(value, Joined):
            return self.call(torch.cat, ([self.plain(part, note) for part in value.parts], value.dim), note)
        return value.node

    def _looked_up(self, value: Codes | Looked, note: Note) -> Node:
        if value not in self._floats:
            looked = as_looked(value, max(note.ndim, 1), note.dtype or torch.float32)
            self._floats[value] = self.look_up(looked, f"{note.module}.values", note)
        return self._floats[value]

    def look_up(self, looked: Looked, name: str, note: Note) -> Node:
        """The call that makes of codes what the table says."""
        if len(looked.bases) == 2:
            table = self.constant(looked.table.reshape(CODES, CODES).contiguous(), f"{name}.table")
            return self.call(look_up_pairs, (*looked.bases, table), note)
        table = self.constant(collapsed(looked.table), f"{name}.table")
        return self.call(look_up_last, (looked.bases[0], table), note)


def collapsed(table: Tensor) -> Tensor:
    """A table `[256, *rest]` as the kernels take it: `[256]` where all columns agree, else `[columns, 256]`.

    ```python
    >>> collapsed(torch.arange(256).view(256, 1).expand(256, 3)).shape
    torch.Size([256])

    ```
    """
    flat = table.reshape(CODES, -1)
    if torch.equal(flat, flat[:, :1].expand_as(flat)):
        return flat[:, 0].contiguous()
    return flat.t().contiguous()

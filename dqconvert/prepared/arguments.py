"""The tensors that a graph takes from a call: found once, from the graph; checked before each run.

A tensor may be an argument of the forward, part of one (``data.x``, ``x_dict["paper"]``), or read from a global.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.errors import GuardError, InputIndexError, InputShapeError, InputTypeError
from dqconvert.quant import FakeQuantize
from dqconvert.rewrite.connectivity import input_name, is_connectivity, is_input
from dqconvert.trace.globals import place_name, read_global
from dqconvert.trace.note import Note, note_of
from dqconvert.words import count

MISSING = object()
"""Stands for an argument that a call leaves out."""


@dataclass(frozen=True)
class TensorInput:
    """A tensor among the arguments of a forward.

    Attributes:
        name: The user's name for it: ``edge_index``, ``data.edge_index``, ``x_dict['paper']``.
        argument: The position of the argument that it is, or is a part of; -1: it is read from a global.
        keyword: That argument's name.
        keys: The way from the argument to the tensor: pairs of "taken as an item" (not as an attribute) and the key.
        note: Its shape and dtype while tracing.
        index: True if it says which rows belong together: ``edge_index``, ``batch``.
    """

    name: str
    argument: int
    keyword: str
    keys: tuple[tuple[bool, Any], ...]
    note: Note
    index: bool

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns the value that a call gives for it; ``MISSING`` for none."""
        if self.argument < 0:
            return self._of_global()
        value = args[self.argument] if self.argument < len(args) else kwargs.get(self.keyword, MISSING)
        for item, key in self.keys:
            if value is None or value is MISSING:
                return MISSING
            try:
                value = value[key] if item else getattr(value, key)
            except (LookupError, AttributeError, TypeError):  # the graph will say that it is not there
                return MISSING
        return value

    def _of_global(self) -> Any:
        try:
            return read_global(*self.keys[0][1])
        except GuardError:  # which the graph will raise
            return MISSING

    def check(self, value: Tensor, module: nn.Module, *, squeezes: bool) -> Tensor:
        """Checks a value that a call gives for it.

        Args:
            module: The module that computes with it.
            squeezes: Whether one column stands for a vector.

        Returns:
            The value as the graph takes it.

        Raises:
            InputTypeError: For features of another type than the model's, or an index that holds no integers.
            InputIndexError: For an index of another shape.
            InputShapeError: For features of fewer or more dimensions.
        """
        if value.is_meta and not all(t.is_meta for t in (*module.parameters(), *module.buffers())):
            raise InputTypeError(f"{self.name} has no values: it lies on the meta device")
        if value.layout is not torch.strided:
            raise InputTypeError(
                f"{self.name} is a {value.layout} tensor, and the model was prepared for a dense one: give "
                f"{self.name}.to_dense(), or prepare it with such an input"
            )
        if self.index:
            return _as_index(value, self.name, self.note.ndim)
        if value.dtype is not self.note.dtype:
            self._check_type(value, module)
        if value.dim() == self.note.ndim:
            return value
        if not (self.note.ndim == 1 and value.dim() == 2 and value.size(1) == 1):
            raise InputShapeError(
                f"{self.name} has shape {tuple(value.shape)}, of {count(value.dim(), 'dimension')}, and the model "
                f"was prepared for {self.note.ndim}"
            )
        return value.squeeze(1) if squeezes else value

    def _check_type(self, value: Tensor, module: nn.Module) -> None:
        """Raises unless a module computes in the type of a value."""
        if not value.is_floating_point():
            raise InputTypeError(
                f"{self.name} must hold floating-point values, got {value.dtype}: give {self.name}.float()"
            )
        if torch.is_autocast_enabled(value.device.type):
            return
        # Parameters may have been cast since the model was traced; one without any computes as it was traced.
        learned = {id(t) for part in module.modules() if isinstance(part, FakeQuantize) for t in part.parameters()}
        weights = (t for t in module.parameters() if t.is_floating_point() and id(t) not in learned)
        held: set[torch.dtype | None] = {t.dtype for t in weights} or {self.note.dtype}
        if value.dtype not in held:
            wanted = self.note.dtype if self.note.dtype in held else min(held, key=str)
            raise InputTypeError(
                f"{self.name} is {value.dtype}, and the model computes in {wanted}: give {self.name}.to({wanted})"
            )


def _as_index(index: Tensor, name: str, ndim: int) -> Tensor:
    """Returns an index as int64; raises unless it holds the two ends of each edge, or one entry for each row."""
    if index.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"{name} must hold integers (torch.int64), got {index.dtype}")
    if ndim == 2 and (index.dim() != 2 or index.size(0) != 2):
        raise InputIndexError(f"{name} must have shape [2, num_edges], got {tuple(index.shape)}")
    if index.dim() != ndim:
        raise InputIndexError(f"{name} must be a vector, an entry for each row, got shape {tuple(index.shape)}")
    return index.long()


def tensor_inputs(graph: Graph) -> Iterator[TensorInput]:
    """Yields the tensors that a graph takes, as far as a call can name them: features and indices."""
    places = {node: place for place, node in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    starred = next((place for node, place in places.items() if str(node.target).startswith("*")), len(places))
    places |= {node: -1 for node in graph.nodes if node.target is read_global}
    for node in graph.nodes:
        note = note_of(node)
        if not is_input(node) or not note.is_tensor or note.sparse:
            continue
        keys: list[tuple[bool, Any]] = []
        holder: Any = node
        while isinstance(holder, Node) and holder.op != "placeholder":
            keys.append((holder.target is operator.getitem, holder.args[1] if len(holder.args) > 1 else None))
            holder = holder.args[0] if holder.target in (operator.getitem, getattr) else None
        if node.target is read_global:
            keys, holder = [(False, node.args)], node
        if holder not in places or places[holder] >= starred or any(isinstance(key, Node) for _, key in keys):
            continue
        index = names_rows(node)
        if index or note.is_float:
            yield TensorInput(input_path(node), places[holder], str(holder.target), tuple(reversed(keys)), note, index)


def names_rows(node: Node) -> bool:
    """True if an input is an index of rows: the ends of edges, or the graph that each row belongs to."""
    if note_of(node).is_float:
        return False
    name = input_name(node)
    edges = is_connectivity(node) and ("edge" in input_path(node) or "index" in name)
    return edges or (note_of(node).ndim == 1 and (name in ("batch", "ptr") or name.endswith("_batch")))


def input_path(node: Node) -> str:
    """Returns the user's name for an input: ``edge_index``, ``data.edge_index``, ``x_dict['paper']``."""
    if node.op == "placeholder":
        return str(node.target).lstrip("*")
    if node.target is read_global:
        return place_name(*node.args[1:3])  # type: ignore[arg-type]
    holder, key = node.args[0], node.args[1] if len(node.args) > 1 else ""
    if not isinstance(holder, Node):
        return str(key)
    inner = input_path(holder)
    return f"{inner}[{key!r}]" if node.target is operator.getitem else f"{inner}.{key}"


def is_part(node: Node) -> bool:
    """True if a node is a forward argument, or taken out of one by a name."""
    while node.target in (operator.getitem, getattr) and isinstance(node.args[0], Node):
        if isinstance(node.args[1], Node):
            return False
        node = node.args[0]
    return node.op == "placeholder" or node.target is read_global

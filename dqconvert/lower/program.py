"""The integer graph while it is written, and the constants and modules that it reads."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.parameter import is_lazy

from dqconvert.kernels.integer.finish import CODES, Finish
from dqconvert.kernels.integer.groups import look_up_groups, look_up_pairs_groups
from dqconvert.kernels.integer.tables import look_up_pairs
from dqconvert.lower.runtime import look_up_last
from dqconvert.lower.values import (
    Codes,
    Constant,
    GroupGrid,
    GroupTabulated,
    Joined,
    Literal,
    Plain,
    QuantizerGrid,
    Tabulated,
    Value,
    as_tabulated,
    groups_node,
    number_of_groups,
    tables_by_group,
    together,
)
from dqconvert.rewrite.place import Quantizers
from dqconvert.trace.copies import set_mode
from dqconvert.trace.names import module_of
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.parts import copy_apart


class Program:
    """An integer graph and what it reads; forms write it, passes change it.

    Attributes:
        graph: The integer graph. New nodes go to its end unless an ``inserting_before`` says otherwise.
        root: Holds its constants (buffers) and the modules that stay in float.
        where: Where what is written now comes from: module, call, propagation and source of new nodes.
    """

    def __init__(self) -> None:
        self.where = Note()
        self.graph = Graph()
        self.root = nn.Module()
        self._plain: dict[Value, Node] = {}
        self._constants: dict[int, tuple[Tensor, Node]] = {}

    # -- nodes -------------------------------------------------------------------------------------------------------

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], note: Note | None = None, **kwargs: Any) -> Node:
        """Returns a new call of a function; ``note`` describes its value."""
        return annotate(self.graph.call_function(target, args, kwargs), self._placed(note))

    def method(self, name: str, args: tuple[Any, ...], note: Note | None = None) -> Node:
        """Returns a new call of a tensor's method; ``note`` describes its value."""
        return annotate(self.graph.call_method(name, args), self._placed(note))

    def _placed(self, note: Note | None) -> Note:
        if note is not None and (note.module or note.source):
            return note
        at = self.where
        return replace(note or Note(), module=at.module, call=at.call, propagation=at.propagation, source=at.source)

    def items(self, value: Node, count: int) -> tuple[Node, ...]:
        """Returns the first ``count`` items of a tuple."""
        return tuple(self.call(operator.getitem, (value, k)) for k in range(count))

    def copy(self, node: Node, args: Any, kwargs: Any) -> Node:
        """Returns a copy of a node of another graph, with other arguments."""
        if node.op == "placeholder":
            args, kwargs = node.args, {}
        return annotate(self.graph.create_node(node.op, node.target, args, kwargs, name=node.name), note_of(node))

    def sort(self) -> None:
        """Puts every node behind those that it needs, and else leaves them in their order."""
        order: dict[Node, None] = {}
        for node in sorted(self.graph.nodes, key=lambda n: (n.op != "placeholder", n.op == "output")):
            pending = [node]  # a stack instead of recursion: graphs may be deep
            while pending:
                missing = [n for n in pending[-1].all_input_nodes if n not in order]
                if missing:
                    pending += missing
                else:
                    order[pending.pop()] = None
        for node in order:
            self.graph._root.prepend(node)

    # -- constants and modules ---------------------------------------------------------------------------------------

    def constant(self, tensor: Tensor, name: str) -> Any:
        """Returns the node that reads a tensor which never changes, one per tensor; equal names are numbered.

        (Typed ``Any``, for a graph has nodes where the kernels' NamedTuples have tensors.)
        """
        known = self._constants.get(id(tensor))
        if known is not None:
            return known[1]
        stem = re.sub(r"\W+", "_", name).strip("_") or "constant"
        path, number = stem, 0
        while hasattr(self.root, path):
            number += 1
            path = f"{stem}_{number}"
        self.root.register_buffer(path, tensor.detach().clone(memory_format=torch.contiguous_format))
        # Constants stand behind the arguments: what is written later can use them wherever it stands.
        inner = (node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr"))
        with self.graph.inserting_before(next(inner, self.graph._root)):
            node = annotate(self.graph.get_attr(path), Note(sizes=(tuple(tensor.shape),), dtype=tensor.dtype))
        self._constants[id(tensor)] = (tensor, node)
        return node

    def drop_constants(self) -> None:
        """Drops the constants that the graph does not read any more."""
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        for name in [name for name in self.root._buffers if name not in read]:
            del self.root._buffers[name]

    def tensor(self, constant: object) -> Tensor:
        """Returns the tensor that a node made by :meth:`constant` reads."""
        assert isinstance(constant, Node)
        return self.root.get_buffer(str(constant.target))

    def grid(self, grid: QuantizerGrid | GroupGrid, name: str, device: torch.device | None = None) -> Any:
        """Returns the constant of a grid, as the kernels take it."""
        return self.constant(grid.numbers(device), name)

    def finish(
        self,
        factor: Tensor | float,
        grid: QuantizerGrid | GroupGrid | None,
        name: str,
        bias: Tensor | None = None,
        shares: Node | None = None,
        groups: Any = None,
    ) -> Finish:
        """Returns the epilogue that requantizes a sum of integers to codes of ``grid``, or makes values without one.

        Args:
            factor: The value of one step of the sum: a number, or float32 ``[1]`` or ``[columns]``; of groups of rows,
                with a first dimension for them.
            name: Prefix of the constants' names.
            bias: Added before rounding, one number for each column.
            shares: What each row is multiplied by before that, float32 ``[rows]``.
            groups: Which factor each row has, where ``grid`` does not say it.
        """
        factor = torch.tensor([factor], dtype=torch.float32) if isinstance(factor, float) else factor
        if isinstance(grid, GroupGrid):
            groups = grid.groups
            factor = factor if factor.dim() > 1 else factor.expand(len(grid.grids), -1)
        return Finish(
            factor=self.constant(factor, f"{name}.factor"),
            grid=None if grid is None else self.grid(grid, f"{name}.grid", factor.device),
            bias=None if bias is None else self.constant(bias.float().reshape(-1), f"{name}.bias"),
            shares=shares,  # type: ignore[arg-type]
            groups=groups,
        )

    def module(self, path: str, module: nn.Module) -> None:
        """Registers a copy of a module under a path, in evaluation mode, without quantizers."""
        owner, name = holder(self.root, path)
        if not hasattr(owner, name):
            copied = set_mode(copy_apart(module), False)
            for parameter in nn.Module.parameters(copied):
                if not is_lazy(parameter):  # of a node type that no input ever had
                    parameter.requires_grad_(False)
            for part in list(copied.modules()):
                for held, child in list(part.named_children()):
                    if isinstance(child, Quantizers):  # the graph calls them, never the module
                        delattr(part, held)
                if getattr(part, "inplace", False) and module_of(type(part)).startswith("torch.nn."):
                    part.inplace = False  # type: ignore[assignment]
            owner.add_module(name, copied)

    # -- values ------------------------------------------------------------------------------------------------------

    def plain(self, value: Value, note: Note) -> Any:
        """Returns the node, or the Python value, that holds a value as the float graph does; one node per value."""
        if isinstance(value, Literal):
            return value.value
        if isinstance(value, Constant):
            return self.constant(value.value, f"{note.module}.value")
        if isinstance(value, Joined):
            return self.call(torch.cat, ([self.plain(part, note) for part in value.parts], value.dim), note)
        if isinstance(value, Plain):
            return value.node
        if value not in self._plain and groups_node(value) is not None:
            self._plain[value] = self._plain_by_group(value, note)
        elif value not in self._plain:
            assert isinstance(value, Codes | Tabulated)
            table = as_tabulated(value, max(note.ndim, 1), note.dtype or torch.float32)
            self._plain[value] = self.look_up(table, f"{note.module}.values", note)
        return self._plain[value]

    def _plain_by_group(self, value: Value, note: Note) -> Node:
        groups = groups_node(value)
        assert groups is not None
        form = max(note.ndim, 1), note.dtype or torch.float32
        found = together(tables_by_group(value, number_of_groups(value), *form), groups)
        assert found is not None
        return self.look_up(found, f"{note.module}.values", note)

    def look_up(self, value: Tabulated | GroupTabulated, name: str, note: Note) -> Node:
        """Returns the call that looks a value up in its table."""
        if isinstance(value, GroupTabulated):
            count = len(value.table)
            if len(value.bases) == 2:
                table = self.constant(value.table.reshape(count, CODES, CODES).contiguous(), f"{name}.table")
                return self.call(look_up_pairs_groups, (*value.bases, table, value.groups), note)
            parts = [collapsed(part) for part in value.table]
            wide = max(part.numel() // CODES for part in parts)
            if wide > 1:
                parts = [part.expand(wide, CODES) for part in parts]
            table = self.constant(torch.stack(parts), f"{name}.table")
            return self.call(look_up_groups, (value.bases[0], table, value.groups), note)
        if len(value.bases) == 2:
            table = self.constant(value.table.reshape(CODES, CODES).contiguous(), f"{name}.table")
            return self.call(look_up_pairs, (*value.bases, table), note)
        table = self.constant(collapsed(value.table), f"{name}.table")
        return self.call(look_up_last, (value.bases[0], table), note)


def holder(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Returns the module that is to hold what has a path, made where it is missing; and the last part of the path."""
    *owners, name = path.split(".")
    for owner in owners:
        if not hasattr(root, owner):
            root.add_module(owner, nn.Module())
        root = root.get_submodule(owner)
    return root, name


def collapsed(table: Tensor) -> Tensor:
    """Returns a table ``[256, *rest]`` as the kernels take it: ``[256]`` if all columns agree, else ``[columns, 256]``.

    Example:
        >>> collapsed(torch.arange(256).view(256, 1).expand(256, 3)).shape
        torch.Size([256])
    """
    flat = table.reshape(CODES, -1)
    if torch.equal(flat, flat[:, :1].expand_as(flat)):
        return flat[:, 0].contiguous()
    return flat.t().contiguous()

"""Tensors that no recorded call made: parameters and buffers, what a kept module left behind, and global names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.trace.blocks import Blocks
from dqconvert.trace.globals import Globals, place_name, read_global
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.runtime import left_in
from dqconvert.trace.source import source_line
from dqconvert.words import kind_of


class Recording(Protocol):
    """The recording that others write to: see :class:`dqconvert.trace.writer.Writer`."""

    root: nn.Module
    graph: Graph
    blocks: Blocks
    modules: dict[int, str]
    recording: bool
    remarks: dict[str, None]

    def node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node: ...
    def traced(self, value: Any, node: Node, from_values: bool = False) -> Any: ...
    def representable(self, value: Any) -> bool: ...
    def shape(self, tensor: Tensor) -> tuple[int, ...]: ...
    def with_value(self, note: Note, value: Tensor) -> Note: ...
    def paused(self) -> AbstractContextManager[Any]: ...
    def fail(self, reason: str) -> NoReturn: ...


class Foreign:
    """Finds the nodes of tensors that no recorded call made."""

    def __init__(self, writer: Recording) -> None:
        self.writer = writer
        self._paths: dict[int, str] = {}
        for path, module in nn.Module.named_modules(writer.root):
            for name, value in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
                if isinstance(value, Tensor):
                    self._paths.setdefault(id(value), f"{path}.{name}" if path else name)
        self._nodes: dict[str, Node] = {}
        self._globals = Globals(writer.root)
        self._read: list[tuple[Tensor, str]] = []
        self._left: dict[int, tuple[Tensor, Node, str, tuple[Any, ...]]] = {}

    # -- attributes ----------------------------------------------------------------------------------------------

    def is_attribute(self, tensor: Tensor) -> bool:
        """Returns True if a tensor was an attribute of a module when the recording began."""
        return id(tensor) in self._paths

    def attribute(self, tensor: Tensor) -> Node:
        """Returns the node that reads a tensor off a module, or fails where it is no attribute."""
        path = self._paths.get(id(tensor))
        if path is None:
            self.writer.fail(
                f"uses a tensor of shape {list(self.writer.shape(tensor))} that no recorded call made "
                f"(a global, or made by code that torch does not see): register it as a buffer"
            )
        if path not in self._nodes:
            node = self.writer.graph.create_node("get_attr", path)
            note = Note(module=path.rpartition(".")[0], source=source_line())
            self._nodes[path] = annotate(node, self.writer.with_value(note, tensor))
            with self.writer.paused():
                self.writer.blocks.bind(tensor, node, origin=True, attribute=True)
        return self._nodes[path]

    # -- what kept modules leave ---------------------------------------------------------------------------------

    def held(self, module: nn.Module) -> Iterator[tuple[Tensor, str, tuple[Any, ...]]]:
        """Yields the tensors in plain attributes of a module and its parts: with the part's path, and the steps."""
        paths = self.writer.modules
        for part in nn.Module.modules(module):
            if (path := paths.get(id(part))) is None:
                continue
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    yield value, path, (name,)
                elif isinstance(value, dict) and value and not name.startswith("_"):
                    for key, item in value.items():
                        if isinstance(item, Tensor) and isinstance(key, str):
                            yield item, path, (name, key)

    def left_behind(self, module: nn.Module, call: Node, before: dict[int, Tensor]) -> None:
        """Notes which tensors a call of a module, which stays whole, put into its attributes: others may read them."""
        for tensor, path, steps in self.held(module):
            if before.get(id(tensor)) is not tensor:
                self._left[id(tensor)] = tensor, call, path, steps

    # -- nodes ---------------------------------------------------------------------------------------------------

    def node_of(self, tensor: Tensor) -> Node | None:
        """Returns a node that reads a tensor off a module that was called as a whole, or off a global name.

        Returns:
            ``None`` if neither has it.
        """
        left = self._left.get(id(tensor))
        if left is not None and left[0] is tensor and self.writer.recording:
            return self._left_node(*left)
        places = self._globals.places(tensor)
        if not places or not self.writer.recording or id(tensor) in self._paths:
            return None
        module, name, path = places[0]
        words = f"global {place_name(name, path)} of module {module!r}"
        if type(tensor) is not Tensor or tensor.layout != torch.strided:
            self.writer.fail(f"reads the {words}, {kind_of(tensor)}: pass it as an argument")
        graph = self.writer.graph
        inputs = [node for node in graph.nodes if node.op == "placeholder" or node.target is read_global]
        with graph.inserting_after(inputs[-1] if inputs else graph._root):
            node = graph.create_node("call_function", read_global, (module, name, path, *places[1:]))
        annotate(node, self.writer.with_value(Note(source=words), tensor))
        with self.writer.paused():
            self.writer.blocks.bind(tensor, node, origin=True)
            self._read.append((tensor, words))
        remark = f"the forward reads the {words}: it follows what is there when it runs"
        self.writer.remarks[remark] = None
        return node

    def _left_node(self, tensor: Tensor, call: Node, path: str, steps: tuple[Any, ...]) -> Node:
        graph = self.writer.graph
        with graph.inserting_after(call):
            owner = annotate(graph.create_node("get_attr", path), Note(module=path))
        with graph.inserting_after(owner):
            node = graph.create_node("call_function", left_in, (owner, steps, call))
        annotate(node, self.writer.with_value(Note(module=path, source=source_line()), tensor))
        with self.writer.paused():
            self.writer.blocks.bind(tensor, node)
        return node

    def written(self) -> str:
        """Returns the name of a global tensor that the forward wrote into; ``""`` if it wrote into none."""
        return next((words for tensor, words in self._read if self._globals.changed(tensor)), "")

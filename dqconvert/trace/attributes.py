"""The attributes that a forward reads and sets while it is recorded.

A float is followed: the graph reads the attribute whenever it runs. Everything else decides what the graph looks like;
which attributes those are goes with the graph (:mod:`.unchanged`), and a change is an error. What a forward sets is
set by the graph, too.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch_geometric.data.data import BaseData
from torch_geometric.nn.conv import MessagePassing

from dqconvert.ops import OPERATORS
from dqconvert.trace.constants import literal
from dqconvert.trace.containers import Seen, seen
from dqconvert.trace.foreign import Recording
from dqconvert.trace.leaves import STAGE_METHODS
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.plain_globals import functions_of
from dqconvert.trace.runtime import keep
from dqconvert.trace.source import source_line
from dqconvert.trace.unchanged import ATOMS, COLLECTIONS, ITSELF, RESERVED, Read, Step, words
from dqconvert.trace.values import Traced, Untraceable, plain

# What torch and PyG keep in a module for themselves. Its mode is followed by other means.
_GRAPH_MODULE = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
_TORCH = frozenset((*vars(nn.Module()), *dir(nn.Module), *vars(_GRAPH_MODULE), *dir(_GRAPH_MODULE), "_wrapped_call"))
_BRACKETED = frozenset((*STAGE_METHODS, "propagate", "edge_updater", "fuse", "inspector"))

_TAKEN_OUT = ("inplace", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
"""Attributes of torch's layers that become arguments in a graph."""

_OPAQUE = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, functools.partial),
    *(torch.device, torch.Generator, BaseData),
)


class Stateful(Exception):  # noqa: N818  (a signal to the driver of the recording: begin again)
    """A forward reads a count and sets it anew: it has to be followed from its first reading on."""

    def __init__(self, key: Read) -> None:
        super().__init__(key)
        self.key = key


def attribute_of(path: str, name: str) -> Read:
    """Returns an attribute of the module at a path."""
    return path, (("attr", name),)


def dotted(key: Read) -> str:
    """Returns the path of an attribute, as in ``"convs.0.alpha"``."""
    return f"{key[0]}.{key[1][0][1]}".lstrip(".")


def refuse_left(recorded: Mapping[bool, Attributes]) -> None:
    """Raises `Untraceable` where one mode reads what the other puts into a container, which no graph does."""
    for mode, one in recorded.items():
        looked = recorded[not mode].looked if (not mode) in recorded else ()
        for part, source in one.lost_parts.items():
            if any(_meet(part, key, kind) for key, kind in looked):
                raise Untraceable(part[0], f"keeps state from one call to the next in {words(part)}", source)


def _meet(part: Read, key: Read, kind: str) -> bool:
    """True if a reading sees that a container was changed, or a part of one set."""
    if key[0] != part[0]:
        return False
    item, size = part[1][-1][0] == "item", kind in ("len", "keys")
    if key[1][: len(part[1])] == part[1]:
        return item or size or len(key[1]) > len(part[1])
    return item and size and key[1] == part[1][:-1]


class Attributes:
    """The attributes that one recording reads and sets.

    Args:
        stateful: Counts that forwards read and set.
        caches: What forwards set once, where nothing was, and read ever after.

    Attributes:
        reads: What was read and decides what the graph looks like, in order, with the kind of reading.
        lost: What the forward sets or changes, and the graph does not.
        ran: Functions of modules that the forward calls, or asks for.
        looked: What was read, tensors too, with the kind of reading; ``""`` of values.
        lost_parts: Containers that the forward changes and items of them that it sets, where the graph does not; with
            the source line.
    """

    def __init__(self, writer: Recording, stateful: set[Read], caches: Callable[[], set[Read]]) -> None:
        self.writer = writer
        self.reads: dict[tuple[Read, str], None] = {}
        self.lost: list[str] = []
        self.ran: dict[types.FunctionType, None] = {}
        self.looked: set[tuple[Read, str]] = set()
        self.lost_parts: dict[Read, str] = {}
        self._stateful = stateful
        self._caches = caches
        self._set: set[Read] = set()
        self._changed: set[Read] = set()
        self._grown: set[Read] = set()
        self._later: dict[Read, nn.Module] = {}
        self._nodes: dict[Read, Node] = {}
        self._containers: dict[Read, tuple[Any, Any]] = {}
        self._objects: list[tuple[Any, type]] = []

    # -- reading ---------------------------------------------------------------------------------------------------

    def called(self, path: str, module: nn.Module, leaf: bool) -> None:
        """Notes that a module is called: its kind must stay, and of a leaf what the graph may take out of it."""
        if not leaf:
            self.ran |= dict.fromkeys(functions_of(module, ("forward", *STAGE_METHODS)))
        if path:
            self.reads.setdefault(((path, ()), "class"))
            self._note(attribute_of(path, "forward"), "method")
        for name in STAGE_METHODS if isinstance(module, MessagePassing) else ():
            self._note(attribute_of(path, name), "method")
        for name, value in module._parameters.items() if leaf else ():
            if value is None:
                self._note(attribute_of(path, name), "none")
        for name in _TAKEN_OUT if leaf else ():
            if name in vars(module):
                self._note(attribute_of(path, name), "value")

    def attribute(self, module: nn.Module, name: str, value: Any) -> Any:
        """Returns what recorded code gets when it reads a plain attribute."""
        path = self._path(module, name)
        if path is None:
            return value
        key = attribute_of(path, name)
        is_property = isinstance(getattr(type(module), name, None), property)
        if is_property or isinstance(value, types.MethodType | types.FunctionType):
            self.ran |= dict.fromkeys(functions_of(module, (name,)))
        if name not in vars(module) and isinstance(value, types.MethodType | types.FunctionType):
            self._note(key, "method")
            return value
        if is_property:
            return value  # what it reads itself counts
        return self.value(key, value)

    def registered(self, module: nn.Module, name: str, value: Any) -> None:
        """Notes that a parameter, a buffer or a submodule was read: whether there is one must stay."""
        path = self._path(module, name)
        if path is not None:
            self._note(attribute_of(path, name), "none" if value is None else "some")

    def missing(self, module: nn.Module, name: str) -> None:
        """Notes that an attribute was asked for that is not there."""
        path = self._path(module, name)
        if path is not None and not name.startswith("_"):
            self._note(attribute_of(path, name), "absent")

    def value(self, key: Read, value: Any) -> Any:
        """Returns what recorded code gets for a value that it read, at any depth."""
        self._look(key, "")
        if self._began(key, self._set) or isinstance(value, Seen | Traced | Tensor | nn.Module):
            return value
        if self._began(key, self._changed):
            self._state(key)
        if isinstance(value, float | np.floating):
            self._note(key, "number")
            return self.writer.traced(float(value), self.node(key), key in self._stateful)
        if key in self._stateful and isinstance(value, int | np.integer):
            return self.writer.traced(int(value), self.node(key), True)
        if isinstance(literal(value), ATOMS):
            self._note(key, "value")
            return value
        if not isinstance(value, _OPAQUE):
            found = self._container(key, value)
            if found is not None:
                return found
        self._note(key, "equal" if isinstance(value, COLLECTIONS) else "object")
        return value

    def part(self, key: Read, kind: str) -> None:
        """Notes that something about a container was read: its length, its keys, whether a key is there."""
        self._look(key, kind)
        if self.writer.recording and not self._began(key, self._set):
            if self._began(key, self._changed) or (key in self._grown and kind in ("len", "keys")):
                self._state(key)
            self._note(key, kind)

    def of(self, *numbers: Any) -> str:
        """Returns the attributes that numbers were computed from, in words; ``""`` if from none, or also from sizes."""
        names = {node: words(key) for key, node in self._nodes.items()}
        found, pending = [], [number.node for number in numbers if isinstance(number, Traced)]
        while pending:
            node = pending.pop()
            if node in names:
                found.append(names[node])
            elif not node.all_input_nodes or any(note_of(n).is_tensor for n in node.all_input_nodes):
                return ""
            else:
                pending += node.all_input_nodes
        return " and ".join(dict.fromkeys(found))

    def node(self, key: Read) -> Node:
        """Returns the node that reads an attribute, or a part of one."""
        if key not in self._nodes:
            path, steps = key
            kind, name = steps[-1]
            graph = self.writer.graph
            if len(steps) == 1:
                node = graph.create_node("get_attr", f"{path}.{name}" if path else str(name))
            else:
                function = getattr if kind == "attr" else OPERATORS["__getitem__"][0]
                node = graph.create_node("call_function", function, (self.node((path, steps[:-1])), name))
            self._nodes[key] = annotate(node, Note(module=path, source=source_line()))
        return self._nodes[key]

    def _container(self, key: Read, value: Any) -> Any:
        known = self._containers.get(key)
        if known is None or known[0] is not value:
            kind = type(value)
            known = self._containers[key] = value, seen(value, key, self)
            if type(value) is not kind:
                self._objects.append((value, kind))
        return known[1]

    def release(self) -> None:
        """Gives objects of users' classes their class back."""
        for value, kind in reversed(self._objects):
            object.__setattr__(value, "__class__", kind)

    def _path(self, module: nn.Module, name: str) -> str | None:
        """Returns the path of a module, if its attribute of that name may be the user's."""
        if name in _TORCH or name in _BRACKETED or name.startswith("_cached") or name.endswith("_hooks"):
            return None
        path = self.writer.modules.get(id(module))
        return None if path == "" and name in RESERVED else path

    def _look(self, key: Read, kind: str) -> None:
        if self.writer.recording and not self._began(key, self._set):
            self.looked.add((key, kind))

    def _note(self, key: Read, kind: str) -> None:
        if key not in self._set:
            self.reads.setdefault((key, kind))

    def _state(self, key: Read) -> NoReturn:
        self.writer.fail(f"keeps state from one call to the next in {words(key)}")

    @staticmethod
    def _began(key: Read, among: set[Read]) -> bool:
        """Returns True if an attribute is, or is part of, one in a set."""
        return bool(among) and any((key[0], key[1][:end]) in among for end in range(1, len(key[1]) + 1))

    # -- setting ---------------------------------------------------------------------------------------------------

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Has the graph set what the forward is about to set."""
        path = self._path(module, name)
        if path is None:
            return
        key = attribute_of(path, name)
        with self.writer.paused():
            if isinstance(value, Tensor) and getattr(module, name, None) is value:
                return  # ``self.count += 1``: what was written into it is stored there
        if key not in self._set and self._was_read(key):
            self._set_what_was_read(key, getattr(module, name, None), value)
            return
        if key not in self._set and (key, "number") in self.reads and key not in self._stateful:
            raise Stateful(key)
        self._set.add(key)
        if isinstance(value, list | dict):  # what is in it at the end
            self._later[key] = module
        else:
            self._keep(key, value)

    def finish(self) -> None:
        """Has the graph set the containers that the forward made."""
        for key, module in self._later.items():
            value = vars(module).get(str(key[1][0][1]))
            if isinstance(value, list | dict):
                self._keep(key, value)

    def changed(self, key: Read) -> None:
        """Notes that a container was changed in place: the graph does not do that."""
        if self.writer.recording and not self._began(key, self._set):
            if any(other[0] == key[0] and other[1][: len(key[1])] == key[1] for other, _ in self.reads):
                self._state(key)
            self._changed.add(key)
            self.lost_parts.setdefault(key, source_line())
            self._lose(key, "changes")

    def put(self, key: Read, step: Step) -> None:
        """Records that an item of a container was set: what is read of it from now on is what was put there.

        The graph does not set it. A forward that read the item before, or how many there are, keeps state.
        """
        item: Read = (key[0], (*key[1], step))
        if not self.writer.recording or self._began(item, self._set):
            return
        size, end = ("len", "keys"), len(item[1])
        if any(
            other[0] == key[0] and (other[1][:end] == item[1] or (other[1] == key[1] and kind in size))
            for other, kind in self.reads
        ):
            self._state(key)
        self._set.add(item)
        self.lost_parts.setdefault(item, source_line())
        self._grown.add(key)
        self._lose(key, "changes")

    def _lose(self, key: Read, does: str) -> None:
        self.lost.append(dotted(key))
        self.writer.remarks[f"{words(key)} stays as it is, where the float model's forward {does} it"] = None

    def _keep(self, key: Read, value: Any) -> None:
        (_, name), path = key[1][0], key[0]
        if isinstance(value, nn.Module) or not self.writer.representable(value):
            self._lose(key, "sets")
            return
        owner = self.writer.graph.create_node("get_attr", path or ITSELF)
        annotate(owner, Note(module=path, source=source_line()))
        self.writer.node("call_function", keep, (owner, name, value), {})

    def _was_read(self, key: Read) -> bool:
        return any(other == key and kind not in ("some", "number") for other, kind in self.reads)

    def _set_what_was_read(self, key: Read, before: Any, value: Any) -> None:
        """Takes in that an attribute is set which was read before: a graph does not set it.

        Raises:
            Stateful: If it is a count.
            Untraceable: If it holds any other state.
        """
        if isinstance(literal(value), ATOMS) and type(value) is type(before) and plain(value) == plain(before):
            return  # to what it is
        if isinstance(before, int) and isinstance(value, int) and not isinstance(before, bool):
            raise Stateful(key)
        if before is not None or key not in self._caches():
            self._state(key)
        for kind in ("value", "none", "absent"):
            self.reads.pop((key, kind), None)
        self._set.add(key)
        self.writer.remarks[f"{words(key)}, which the float model computes once, is computed in each forward"] = None

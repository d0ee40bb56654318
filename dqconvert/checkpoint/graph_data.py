"""A graph as JSON-ready data and back.

Reading generates code from what a file says, and torch.fx writes some of its strings into that code as they are. So
nothing is taken on trust here: functions and methods come from the allow-list, names must be identifiers, paths must
exist in the module.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.checkpoint.functions import INTEGER_ONLY, allowed_functions, allowed_methods, function_name
from dqconvert.checkpoint.graph_words import (
    TORCH_WORDS,
    identifier,
    is_readable,
    known_namedtuple,
    torch_word,
    tuple_name,
)
from dqconvert.checkpoint.writes import check_writes
from dqconvert.errors import CheckpointError
from dqconvert.ops import qualified_name
from dqconvert.trace.globals import Globals, place_name, read_global
from dqconvert.trace.nested import is_named
from dqconvert.trace.note import Note, Stage, annotate, note_of
from dqconvert.trace.runtime import store, unchanged
from dqconvert.trace.unchanged import GLOBAL, ITSELF, reads_from, reads_of

Data = dict[str, Any]


def _may_read(owner: Any, name: Any) -> bool:
    """True if a graph may read an attribute: one that any value may have, or a field of an argument (``data.t``) whose
    name is that of a method which a graph may call anyway, and which writes nothing."""
    if is_readable(name):
        return True
    while isinstance(owner, Node) and owner.target is operator.getitem:
        owner = owner.args[0]
    of_argument = isinstance(owner, Node) and owner.op == "placeholder"
    return of_argument and isinstance(name, str) and name in allowed_methods() and not name.endswith("_")


# -- writing -----------------------------------------------------------------------------------------------------


def encode_graph(graph: Graph, held: Mapping[Any, str] = MappingProxyType({})) -> list[Data]:
    """Returns a graph as a list of dicts, one per node.

    Args:
        graph: A traced or rewritten graph.
        held: The paths of the constants that stand for global tensors, by the arguments of their ``read_global``.

    Raises:
        CheckpointError: If the graph calls a function, or holds a constant, that files have no word for.
    """
    encode = _Encoder(held)
    return [encode.node(node) for node in graph.nodes]


class _Encoder:
    def __init__(self, held: Mapping[Any, str]) -> None:
        self.held = held

    def node(self, node: Node) -> Data:
        if node.target is read_global and node.args in self.held:
            data = {"op": "get_attr", "name": node.name, "target": self.held[node.args], "args": [], "kwargs": {}}
            return {**data, "note": _encode_note(note_of(node))}
        given: tuple[Any, ...] = node.args
        if node.target is unchanged:  # of a program's global names a file says nothing
            given = tuple(tuple(entry) for entry in reads_of(node).entries if entry.kind not in GLOBAL)
        args = [self.value(arg, node) for arg in given]
        kwargs = {key: self.value(value, node) for key, value in node.kwargs.items()}
        data = {"op": node.op, "name": node.name, "target": self.target(node), "args": args, "kwargs": kwargs}
        return {**data, "note": _encode_note(note_of(node))}

    def target(self, node: Node) -> str:
        if node.op == "call_method" and node.target not in allowed_methods():
            raise self._unnamed(f"the method {node.target}() of a tensor", node)
        if node.op != "call_function":
            return str(node.target)
        if node.target is getattr and not _may_read(node.args[0], node.args[1]):
            raise self._unnamed(f"a read of the attribute {node.args[1]!r}", node)
        name = function_name(node.target)  # type: ignore[arg-type]
        if name is None:
            raise self._unnamed(f"the function {qualified_name(node)}", node)
        return name

    def value(self, value: Any, node: Node) -> Any:
        if isinstance(value, Node):
            return {"node": value.name}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, TORCH_WORDS):
            return {type(value).__name__: str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if value is ...:
            return {"ellipsis": True}
        return self._container(value, node)

    def _container(self, value: Any, node: Node) -> Any:
        if isinstance(value, slice):
            return {"slice": [self.value(part, node) for part in (value.start, value.stop, value.step)]}
        if is_named(value):
            return {"namedtuple": [tuple_name(type(value)), *(self.value(item, node) for item in value)]}
        if isinstance(value, tuple):
            return {"tuple": [self.value(item, node) for item in value]}
        if isinstance(value, list):
            return [self.value(item, node) for item in value]
        if isinstance(value, dict):
            return {"dict": [[self.value(key, node), self.value(item, node)] for key, item in value.items()]}
        raise self._unnamed(f"a {type(value).__name__}", node)

    def _unnamed(self, what: str, node: Node) -> CheckpointError:
        return CheckpointError(
            f"{note_of(node).source or node.name}: the graph holds {what}, which a file cannot name. Save "
            f"module.state_dict() instead, and prepare the model again to load it."
        )


def _encode_note(note: Note) -> Data:
    """Returns a note without the fields that say nothing."""
    data: Data = {"module": note.module, "call": note.call, "stage": note.stage.value, "source": note.source}
    data |= {"propagation": note.propagation, "sizes": [list(size) for size in note.sizes]}
    data |= {"dtype": None if note.dtype is None else str(note.dtype).removeprefix("torch."), "sparse": note.sparse}
    empty = {"module": "", "call": 0, "stage": "none", "source": "", "propagation": -1, "sizes": [], "dtype": None}
    empty["sparse"] = False
    return {key: value for key, value in data.items() if value != empty[key]}


# -- reading -----------------------------------------------------------------------------------------------------


@contextmanager
def wellformed(where: str) -> Iterator[None]:
    """Turns the errors that data of an unexpected shape causes into a :class:`CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except (Exception, MemoryError) as error:  # whatever data of an unexpected form makes torch and Python raise
        detail = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{where} is malformed ({detail}): the file was not written by dqconvert.") from error


def decode_graph(nodes: list[Data], root: nn.Module | None = None, *, integer: bool = False) -> Graph:
    """Returns the graph that :func:`encode_graph` wrote.

    Args:
        root: The module whose paths the graph must keep to; ``None`` if the graph is only to be looked at.
        integer: Whether it is the graph of an integer module, whose operands are looked at afterwards.

    Raises:
        CheckpointError: If the data is malformed, calls what is not allowed, or names a path that ``root`` lacks.
    """
    with wellformed("the graph in the file"):
        decode = _Decoder(root, integer or root is None)
        for data in nodes:
            decode.node(data)
        if not decode.nodes or list(decode.graph.nodes)[-1].op != "output":
            raise CheckpointError("the graph in the file has no output.")
        decode.graph.lint()
        check_writes(decode.graph)
        return decode.graph


class _Decoder:
    def __init__(self, root: nn.Module | None, integer: bool) -> None:
        self.root = root
        self.integer = integer
        self.graph = Graph()
        self.nodes: dict[str, Node] = {}
        self.words: dict[str, Callable[[Any], Any]] = {
            "node": lambda name: self.nodes[name],
            "float": float,
            "complex": lambda parts: complex(*map(float, parts)),
            "device": lambda name: torch.device(str(name)),
            "ellipsis": lambda _: ...,
            "slice": lambda parts: slice(*map(self.value, parts)),
            "tuple": lambda items: tuple(map(self.value, items)),
            "dict": lambda pairs: {self.value(key): self.value(item) for key, item in pairs},
            "namedtuple": self._namedtuple,
            **{kind.__name__: torch_word(kind) for kind in TORCH_WORDS},
        }

    def node(self, data: Data) -> None:
        op, name = data["op"], data["name"]
        args = tuple(map(self.value, data["args"]))
        kwargs = {identifier(key): self.value(value) for key, value in data["kwargs"].items()}
        if kwargs.get("out") is not None:
            raise CheckpointError(f"the graph in the file has {name!r} write into its out=, which is not allowed.")
        target = self.target(op, data["target"], args, kwargs)
        if name in self.nodes:
            raise CheckpointError(f"the graph in the file has two nodes called {name!r}.")
        self.check_call(op, target, name, args, kwargs)
        if target is unchanged:
            args = (reads_from(args),)
        if target is read_global and self.root is not None:
            args = self.places(args)
        node = self.graph.create_node(op, target, args, kwargs, name=identifier(name))
        self.nodes[name] = annotate(node, _decode_note(data["note"]))

    def target(self, op: str, target: Any, args: tuple[Any, ...], kwargs: Data) -> Any:
        if not isinstance(target, str):
            raise TypeError(f"a target is a {type(target).__name__}")
        if op == "call_function":
            function = _allowed(target)
            if function in INTEGER_ONLY and not self.integer:
                raise CheckpointError(f"the graph in the file calls {target!r}, which only integer graphs do.")
            if function is store and self.integer:
                raise CheckpointError(f"the graph in the file calls {target!r}, and integer graphs keep no state.")
            if function is getattr and not (len(args) == 2 and not kwargs and _may_read(args[0], args[1])):
                raise CheckpointError(f"the graph in the file reads the attribute {args[1:]!r}, which is not allowed.")
            return function
        if op == "call_method":
            if target not in allowed_methods():
                raise CheckpointError(f"the graph in the file calls the method {target!r}, which is not allowed.")
            return target
        if op in ("get_attr", "call_module"):
            return self._path(op, target)
        if op == "placeholder":
            identifier(target.lstrip("*") if target.count("*") <= 2 else target)
            return target
        if op == "output":
            return "output"
        raise CheckpointError(f"the graph in the file has a node of the unknown kind {op!r}.")

    def check_call(self, op: str, target: Any, name: str, args: tuple[Any, ...], kwargs: Data) -> None:
        """Raises unless what is called takes so many arguments, of such names."""
        if op == "call_method":
            if not args or not isinstance(args[0], Node):
                raise CheckpointError(f"{name} in the file calls the method {target!r} of no value.")
            return
        signature = None
        if op == "call_function":
            signature = _signature(target)
        elif op == "call_module" and self.root is not None:
            signature = _signature(self.root.get_submodule(target).forward)
        try:
            if signature is not None:
                signature.bind(*args, **kwargs)
        except TypeError as error:
            raise CheckpointError(f"{name} in the file calls {target!r} wrongly: {error}.") from error

    def places(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the arguments of a ``read_global``, of places that the given model's own code reads."""
        assert self.root is not None
        own, (module, name, path, *others) = Globals(self.root), args
        found = [own.found(place) for place in ((module, name, path), *others)]
        if None in found:
            raise CheckpointError(
                f"the forward reads the global {place_name(name, path)} of module {module!r}, and the given model's "
                f"code finds no tensor there: set it before loading the file."
            )
        return (*found[0], *found[1:])  # type: ignore[misc]

    def _path(self, op: str, target: str) -> str:
        if self.root is None or (op, target) == ("get_attr", ITSELF):
            return target
        owner, _, name = target.rpartition(".")
        try:
            found = getattr(self.root.get_submodule(owner), name)
        except AttributeError as error:
            raise CheckpointError(
                f"the graph in the file uses {target!r}, which the given model does not have: it is of another class, "
                f"or was made with other arguments."
            ) from error
        if op == "call_module":
            fits = isinstance(found, nn.Module)
        elif isinstance(found, bool):
            fits = name == "training"
        else:
            fits = isinstance(found, torch.Tensor | nn.Module) or _is_setting(
                self.root.get_submodule(owner), name, found
            )
        if not fits:
            raise CheckpointError(f"the graph in the file uses {target!r}, which is a {type(found).__name__} here.")
        return target

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            [(word, content)] = value.items()
            return self.words[word](content)
        return value

    def _namedtuple(self, content: list[Any]) -> Any:
        kind = known_namedtuple(content[0], self.root)
        items = tuple(map(self.value, content[1:]))
        return items if kind is None else kind(*items)


def _is_setting(owner: nn.Module, name: str, value: Any) -> bool:
    """True if a value is an attribute that a forward may follow: a number, or what holds numbers."""
    plain = name in vars(owner) or not hasattr(getattr(type(owner), name, None), "__get__")
    return plain and not name.startswith("_") and not callable(value) and not isinstance(value, str | bytes)


def _allowed(name: str) -> Callable[..., Any]:
    function = allowed_functions().get(name)
    if function is None:
        raise CheckpointError(
            f"the graph in the file calls {name!r}, which is not allowed: the file was written with other versions of "
            f"dqconvert, torch or torch_geometric, or not by dqconvert."
        )
    return function


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Returns the signature of a function; ``None`` where only C++ knows it."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _decode_note(data: Mapping[str, Any]) -> Note:
    dtype = data.get("dtype")
    return Note(
        module=str(data.get("module", "")),
        call=int(data.get("call", 0)),
        stage=Stage(data.get("stage", "none")),
        propagation=int(data.get("propagation", -1)),
        source=str(data.get("source", "")),
        sizes=tuple(tuple(int(part) for part in size) for size in data.get("sizes", [])),
        dtype=None if dtype is None else torch_word(torch.dtype)(dtype),
        sparse=bool(data.get("sparse", False)),
    )

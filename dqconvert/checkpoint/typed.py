"""The type check of an integer graph in a file: nothing reaches a compiled loop but what the loop relies on.

A checksum is no signature: whoever changes a file makes it anew. So a file is not believed that an order of edges is
one, nor that a table has an entry for each code. Every value of the graph has a kind here. An order of edges is made by
an operator that orders, its parts go into the operands that are meant for them and nowhere else, and the constants of
loops are read by loops alone: so nothing can write into them. What depends on the inputs (how many rows there are) the
loops check themselves.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.checkpoint import operands
from dqconvert.checkpoint.operands import RESULTS, SIGNATURES, AnyValue, ListOf, LiteralOf, Makes, OrderPart, OrNone
from dqconvert.errors import CheckpointError
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import MessageWeight
from dqconvert.lower.remember import Remember
from dqconvert.trace.nested import nodes_in

_ABSENT = object()


@dataclass(frozen=True)
class _Order:
    """An order of edges, of which ``parts`` are the names of the members; with ``levels``, a tuple of such."""

    made: object
    parts: tuple[str, ...]
    levels: int = 0


@dataclass(frozen=True)
class _Member:
    """A part of an order. Parts of one order are of the same ``made``."""

    made: object
    name: str


@dataclass(frozen=True)
class _Held:
    """A constant, by its name in the file."""

    name: str


_PLAIN = AnyValue()


def check_graphs(graphs: Iterable[Graph], root: nn.Module) -> None:
    """Makes sure that every operation of an integer module's graphs is given what its loops rely on.

    Args:
        graphs: Of all of its methods: what one writes, another reads.
        root: Holds its constants and the modules that it calls.

    Raises:
        CheckpointError: It names the node and the operand.
    """
    check = _Check(root)
    for graph in graphs:
        check.kinds |= {node: _PLAIN for node in graph.nodes if node.op == "placeholder"}
        check.run(graph)
    for name in sorted(check.read_by_loops & check.read_by_others.keys()):
        raise CheckpointError(
            f"{check.read_by_others[name]} in the file uses the constant {name!r}, which only loops may read: the file "
            f"was changed, or not written by dqconvert."
        )


class _Check:
    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.kinds: dict[Node, Any] = {}
        self.read_by_loops: set[str] = set()
        self.read_by_others: dict[str, str] = {}

    def run(self, graph: Graph, inside: bool = False) -> Any:
        """Gives every node its kind; the kind of what the graph returns, in a module that remembers."""
        for node in graph.nodes:
            if node.op == "output":
                return self._returned(node) if inside else self._plain(node)
            if node.op != "placeholder":
                self.kinds[node] = self._kind(node)
        return _PLAIN

    def _kind(self, node: Node) -> Any:
        if node.op == "get_attr":
            return _Held(str(node.target))
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            return self._remembered(node, module) if isinstance(module, Remember) else self._plain(node)
        if node.op == "call_function" and node.target in SIGNATURES:
            return self._operation(node, node.target)
        if node.target is operator.getitem and isinstance(source := node.args[0], Node):
            if not isinstance(self.kinds[source], AnyValue | _Held):
                return self._item(node, self.kinds[source])
        elif node.op == "call_method" and node.target == "index_select" and not node.kwargs and len(node.args) == 3:
            return self._selected(node)
        elif node.op == "call_method" and node.target == "size" and isinstance(node.args[0], Node):
            return self._plain(node, but=node.args[0])
        return self._plain(node)

    # -- other calls -------------------------------------------------------------------------------------------------

    def _plain(self, node: Node, but: Node | None = None) -> AnyValue:
        """Checks a call of anything else: it takes plain values, and makes one."""
        for given in node.all_input_nodes:
            kind = self.kinds[given]
            if isinstance(kind, _Held):
                if given is not but:
                    self.read_by_others.setdefault(kind.name, node.name)
            elif not isinstance(kind, AnyValue):
                raise self._wrong(node, given.name, "a plain value", kind)
        return _PLAIN

    def _item(self, node: Node, kind: Any) -> Any:
        """Checks an item of an order, of its levels, or of what a module remembers."""
        index = node.args[1]
        count = len(kind) if isinstance(kind, tuple) else getattr(kind, "levels", 0) or len(getattr(kind, "parts", ()))
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise self._wrong(node, "index", f"a number below {count}", index)
        if isinstance(kind, tuple):
            return kind[index]
        if kind.levels:
            return _Order((kind.made, index), kind.parts)
        return _Member(kind.made, kind.parts[index])

    def _selected(self, node: Node) -> AnyValue:
        """Rows of a plain value, by the positions of edges."""
        value, dim, index = node.args
        self._take(node, "input", value, _PLAIN, {})
        if isinstance(index, Node) and isinstance(self.kinds[index], _Member):
            self._take(node, "index", index, OrderPart(("edges",)), {})
            if not isinstance(dim, int):
                raise self._wrong(node, "dim", "a whole number", dim)
            return _PLAIN
        return self._plain(node)

    def _remembered(self, node: Node, module: Remember) -> Any:
        """Returns the kind of what a caching module returns: its own graph, run on the kinds of what is given."""
        inner: Any = module.inner
        places = [found for found in inner.graph.nodes if found.op == "placeholder"]
        if node.kwargs or len(places) != len(node.args):
            raise CheckpointError(f"{node.name} in the file gives {len(node.args)} arguments to {node.target}.")
        for place, given in zip(places, node.args, strict=True):
            self.kinds[place] = self.kinds[given] if isinstance(given, Node) else _PLAIN
        return self.run(inner.graph, inside=True)

    def _returned(self, node: Node) -> Any:
        found = node.args[0]
        if not isinstance(found, tuple):
            raise self._wrong(node, "result", "a tuple", found)
        return tuple(self.kinds[part] if isinstance(part, Node) else _PLAIN for part in found)

    # -- operations on codes and orders ------------------------------------------------------------------------------

    def _operation(self, node: Node, function: Callable[..., Any]) -> Any:
        try:
            bound = inspect.signature(function).bind(*node.args, **node.kwargs).arguments
        except TypeError as error:
            raise CheckpointError(f"{node.name} in the file calls {function.__name__} wrongly: {error}.") from error
        self._operands(node, "", SIGNATURES[function], bound)
        self._check_one_order(node, bound)
        makes = RESULTS.get(function, Makes())
        if makes.renames:
            return self.kinds[bound[makes.renames]]
        if not makes.parts:
            return _PLAIN
        part, flag = makes.unless
        parts = tuple(name for name in makes.parts if name != part or bound.get(flag, True))
        return _Order(node, parts, makes.levels(bound) if makes.levels else 0)

    def _operands(self, node: Node, before: str, kinds: dict[str, Any], given: dict[str, Any]) -> None:
        for name, kind in kinds.items():
            value = given.get(name, _ABSENT)
            if value is not _ABSENT:
                self._take(node, before + name, value, kind, given)

    def _take(self, node: Node, name: str, value: Any, kind: Any, given: dict[str, Any]) -> None:
        """Raises unless an operand is of the kind."""
        if isinstance(kind, OrNone):
            if value is not None:
                self._take(node, name, value, kind.kind, given)
        elif isinstance(kind, ListOf):
            if not isinstance(value, list | tuple):
                raise self._wrong(node, name, "a list", value)
            for number, item in enumerate(value):
                self._take(node, f"{name}[{number}]", item, kind.kind, given)
        elif isinstance(kind, dict):
            tuples: Any = Finish if kind is operands.FINISH else MessageWeight
            if not isinstance(value, tuples):
                raise self._wrong(node, name, f"a {tuples.__name__}", value)
            self._operands(node, f"{name}.", kind, {**given, **value._asdict()})
        elif isinstance(kind, LiteralOf):
            if not kind.holds(value):
                raise self._wrong(node, name, kind.words, value)
        elif isinstance(kind, OrderPart):
            found = self.kinds[value] if isinstance(value, Node) else None
            if not isinstance(found, _Member) or found.name not in kind.names:
                raise self._wrong(node, name, f"the {' or '.join(kind.names)} of an order of edges", value)
        elif isinstance(kind, AnyValue):
            self._take_value(node, name, value)
        else:
            self._take_constant(node, name, value, kind, given)

    def _take_value(self, node: Node, name: str, value: Any) -> None:
        for found in nodes_in(value):
            kind = self.kinds[found]
            if isinstance(kind, _Held):
                self.read_by_others.setdefault(kind.name, node.name)
            elif not isinstance(kind, AnyValue):
                raise self._wrong(node, name, "a plain value", found)

    def _take_constant(
        self, node: Node, name: str, value: Any, kind: operands.ConstantOf, given: dict[str, Any]
    ) -> None:
        held = self.kinds[value] if isinstance(value, Node) else None
        constant = self._tensor(held.name) if isinstance(held, _Held) else None
        if not isinstance(held, _Held) or constant is None or constant.layout != torch.strided:
            raise self._wrong(node, name, f"a constant, {kind.words}", value)
        if not kind.sound(given)(constant):
            raise CheckpointError(
                f"{node.name} in the file has a {name} that is damaged: {held.name} must be {kind.words}, and is "
                f"{str(constant.dtype)[6:]} {list(constant.shape)}."
            )
        self.read_by_loops.add(held.name)

    def _tensor(self, name: str) -> Tensor | None:
        owner, _, last = name.rpartition(".")
        return self.root.get_submodule(owner)._buffers.get(last)

    def _check_one_order(self, node: Node, given: dict[str, Any]) -> None:
        """Checks that the parts which one operation takes are of one order, but for rows that are taken."""
        parts = [
            self.kinds[given[name]]
            for name in ("ptr", "senders", "edges", "roots")
            if isinstance(given.get(name), Node)
        ]
        if any(part.made != parts[0].made for part in parts):
            raise CheckpointError(f"{node.name} in the file is given parts of several orders of edges.")

    def _wrong(self, node: Node, name: str, wanted: str, given: Any) -> CheckpointError:
        kind = self.kinds.get(given, given) if isinstance(given, Node) else given
        found = {_Held: "a constant", _Order: "an order of edges", AnyValue: "a plain value", tuple: "several values"}
        words = f"the {kind.name} of an order" if isinstance(kind, _Member) else found.get(type(kind), repr(given)[:80])
        return CheckpointError(
            f"{node.name} in the file ({_called(node)}) takes {wanted} as its {name}, and is given {words}: the file "
            f"was changed, or not written by dqconvert."
        )


def _called(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target))

"""The graph that a recording writes: nodes with their notes, and which node made which tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.nn.conv import MessagePassing

from dqconvert.ops import OPERATORS
from dqconvert.trace.attributes import Attributes
from dqconvert.trace.blocks import Blocks, overlap
from dqconvert.trace.constants import literal
from dqconvert.trace.containers import followed
from dqconvert.trace.foreign import Foreign
from dqconvert.trace.guards import COMPARISONS, guard
from dqconvert.trace.nested import is_named, leaves_in, map_items, tensors_in
from dqconvert.trace.note import Note, Stage, annotate, note_of
from dqconvert.trace.runtime import after, private
from dqconvert.trace.source import source_line
from dqconvert.trace.unchanged import Read
from dqconvert.trace.values import Traced, TracedFloat, TracedInt, Untraceable, plain
from dqconvert.words import kind_of


class Writer:
    """Writes one forward of ``root`` into ``graph``.

    Args:
        kept: Paths of modules to keep whole because an earlier attempt could not look inside.
        values: Where to keep a copy of every node's tensor by the node's name; ``None`` keeps none.
        stateful: Counts among the attributes that forwards read and set.
        caches: Gives the attributes that forwards set once and read ever after.

    Attributes:
        graph: The graph so far.
        recording: Whether calls are being written down right now.
        where: The modules that are running, innermost last: path, and which call of it.
        stage: The stages of message passing that are running, innermost last.
        edge_index: What the running propagate calls pass messages over, and the row that sends.
        attributes: What the forward reads off its modules and sets there.
        foreign: The tensors that no recorded call made.
        modules: Paths of the registered modules by ``id``.
        origin: For a device or dtype that was read off a tensor, the node that reads it.
        remarks: What the user should know of the recording.
        asked: Data objects among the arguments: their nodes, their names, and what was looked for in them.
    """

    def __init__(
        self,
        root: nn.Module,
        kept: frozenset[str] = frozenset(),
        values: dict[str, Tensor] | None = None,
        stateful: set[Read] | None = None,
        caches: Callable[[], set[Read]] = set,
    ) -> None:
        self.values = values
        self.root = root
        self.kept = kept
        self.graph = Graph()
        self.recording = False
        self.modules = {id(module): path for path, module in nn.Module.named_modules(root)}
        self.blocks = Blocks(self.graph, lambda: self.note(None), self.fail)
        self._guards: set[tuple[Any, ...]] = set()
        self.where: list[tuple[str, int]] = [("", 0)]
        self.calls: dict[str, int] = {}
        self.stage: list[Stage] = [Stage.NONE]
        self.edge_index: list[tuple[Any, int]] = []
        self.propagation: list[int] = [-1]
        self.propagations = 0
        self.origin: dict[Any, Node] = {}
        self.remarks: dict[str, None] = {}
        self.asked: list[tuple[Node, str, Any]] = []
        self._given: dict[int, tuple[Tensor, Tensor]] = {}
        self.foreign = Foreign(self)
        self.attributes = Attributes(self, set() if stateful is None else stateful, caches)

    def paused(self) -> _Paused:
        """Returns a context in which calls run as if nobody watched."""
        return _Paused(self)

    def fail(self, reason: str) -> NoReturn:
        """Gives up on the innermost module."""
        raise Untraceable(self.where[-1][0], reason, source_line())

    @contextmanager
    def inside(self, path: str, module: nn.Module) -> Iterator[None]:
        """Attributes the nodes recorded inside to the module at ``path``."""
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        self.where.append((path, call))
        self.stage.append(Stage.NONE if isinstance(module, MessagePassing) else self.stage[-1])
        try:
            yield
        finally:
            self.stage.pop()
            self.where.pop()

    # -- numbers ---------------------------------------------------------------------------------------------------

    def number(self, value: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Returns the result of arithmetic on traced numbers, with a node of its own."""
        from_values = any(isinstance(arg, Traced) and arg.from_values for arg in args)
        return self.traced(value, self.node("call_function", function, args, {}), from_values)

    def guard(self, left: Any, symbol: str, right: Any) -> bool:
        """Returns the outcome of comparing traced numbers; the comparison is repeated whenever the graph runs."""
        outcome = COMPARISONS[symbol](plain(left), plain(right))
        if isinstance(left, Traced) and isinstance(right, Traced) and left.node is right.node:
            return outcome
        # Numbers found equal were compared to see that inputs fit together: that check can be repeated.
        fits = outcome is (symbol in ("==", "<=", ">=")) and plain(left) == plain(right)
        if not fits and any(isinstance(side, Traced) and side.from_values for side in (left, right)):
            what = self.attributes.of(left, right) or "a number read out of a tensor"
            self.fail(f"branches on {what} ({plain(left)} {symbol} {plain(right)})")
        sides = tuple(side.node if isinstance(side, Traced) else side for side in (left, right))
        if (*sides, symbol) not in self._guards:
            self._guards.add((*sides, symbol))
            named = self.attributes.of(left, right)
            args = (left, symbol, right, outcome, source_line(), *([named] if named else []))
            self.node("call_function", guard, args, {})
        return outcome

    def traced(self, value: Any, node: Node, from_values: bool = False) -> Any:
        """Returns a number that remembers its node; other values as they are."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        number: Any = TracedInt(value) if isinstance(value, int) else TracedFloat(value)
        number.node, number.recorder, number.from_values = node, self, from_values
        return number

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Returns a tensor's shape as plain integers."""
        with UNWATCHED():
            return tuple(tensor.size())

    # -- nodes -----------------------------------------------------------------------------------------------------

    def bind_input(self, value: Any, node: Node) -> Any:
        """Connects an input's value (a tensor or a number) with the node that reads it.

        A tensor that already serves as another input is aliased: each argument has a node of its own.
        """
        if isinstance(value, Tensor) and self.knows(value):
            sparse = value.layout != torch.strided  # which has no storage to alias
            value = value.detach() if sparse else torch.ops.aten.alias.default(value)
        return self.bind(value, node, origin=True)

    def convert_input(self, value: Tensor, plain: Tensor, node: Node) -> None:
        """Remembers the form in which an input was given that the graph takes in another."""
        self._given[id(plain)] = plain, self.bind_input(value, node)

    def given(self, plain: Tensor) -> Tensor:
        """Returns an input in the form in which it was given."""
        entry = self._given.get(id(plain))
        return entry[1] if entry is not None and entry[0] is plain else plain

    def output(self, value: Any) -> None:
        """Ends the graph."""
        returned = self.argument(value)
        with self.paused():
            written = self.foreign.written()
        if written:
            self.fail(f"writes into the {written}: pass it as an argument")
        self.blocks.flush()
        annotate(self.graph.output(returned), Note())
        self.blocks.finish()

    def note(self, value: Any, source: str | None = None) -> Note:
        """Returns the note of a node that is made now and holds ``value``."""
        path, call = self.where[-1]
        stage, source = self.stage[-1], source or source_line()
        note = Note(module=path, call=call, stage=stage, propagation=self.propagation[-1], source=source)
        return self.with_value(note, value) if isinstance(value, Tensor) else note

    def with_value(self, note: Note, value: Tensor) -> Note:
        with UNWATCHED():
            return replace(note, sizes=(tuple(value.size()),), dtype=value.dtype, sparse=value.layout != torch.strided)

    def node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """Adds a node for a call that happens now."""
        fx_args = tuple(self.argument(arg) for arg in args)
        fx_kwargs = {key: self.argument(value) for key, value in kwargs.items()}
        return annotate(self.graph.create_node(op, target, fx_args, fx_kwargs), self.note(None))

    def bind(self, result: Any, node: Node, *, origin: bool = False) -> Any:
        """Connects a result with its node and returns it, numbers as traced numbers.

        Args:
            origin: Whether the node reads an argument of the forward.
        """
        if isinstance(result, Tensor):
            self._note_value(node, result)
            with UNWATCHED():
                return self.blocks.bind(result, node, origin=origin)
        if isinstance(result, tuple | list):
            items = [self._bind_item(item, node, index) for index, item in enumerate(result)]
            if not any(isinstance(item, Traced) for item in items):
                return result
            return type(result)(*items) if is_named(result) else type(result)(items)
        if isinstance(result, dict):
            return {key: self._bind_item(item, node, key) for key, item in result.items()}
        if isinstance(result, int | float) and not isinstance(result, bool):
            return self.traced(literal(result), node)
        if result is None or isinstance(result, bool | str):
            return result
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "a function")
        self.fail(f"calls {called}, which returns {kind_of(result)}")

    def _bind_item(self, item: Any, node: Node, key: Any) -> Any:
        if item is None or isinstance(item, bool | str):
            return item
        part = OPERATORS["__getitem__"][0]
        return self.bind(item, annotate(self.graph.create_node("call_function", part, (node, key)), self.note(None)))

    def write(self, tensor: Tensor, node: Node) -> None:
        """Says that a tensor was changed in place, and has the value of a node now."""
        self._tensor_argument(tensor)  # of a buffer, that it is one
        self._note_value(node, tensor)
        with self.paused():
            self.blocks.write(tensor, node)

    def take_view(self, tensor: Tensor, node: Node) -> None:
        """Says that a tensor became, in place, a view of what it was, which is the value of a node."""
        self._tensor_argument(tensor)
        annotate(node, self.with_value(note_of(node), tensor))
        with self.paused():
            self.blocks.take_view(tensor, node)

    def _note_value(self, node: Node, tensor: Tensor) -> None:
        annotate(node, self.with_value(note_of(node), tensor))
        if self.values is not None:
            with self.paused():
                self.values[node.name] = tensor.detach().clone()

    def store_for(self, module: nn.Module) -> None:
        """Stores what was written into the parameters and buffers of a module that is called as a whole next."""
        with self.paused():
            self.blocks.flush([*module.parameters(), *module.buffers()])

    def versions(self, arguments: Any) -> list[tuple[Tensor, int]]:
        """Returns the tensors among a call's arguments, and how often each was changed.

        Sparse ones are left out: that one is told to be in order counts as a change.
        """
        with UNWATCHED():
            tensors = {id(tensor): tensor for tensor in tensors_in(arguments)}
            found = (one for one in tensors.values() if one.layout == torch.strided and not one.is_inference())
            return [(one, one._version) for one in found]

    def changed(self, versions: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Returns which of these were changed since."""
        with UNWATCHED():
            return [tensor for tensor, version in versions if tensor._version != version]

    def changes(self, node: Node, result: Any, changed: list[Tensor]) -> Any:
        """Connects what a call returned, that changed arguments in a way nothing is known of, and these with its node.

        The call changes copies of them; an attribute that holds what it always held is changed for real.
        """
        with self.paused():
            shared = any(overlap(a, b) for a, b in combinations(changed, 2))
        if shared:
            self.fail("changes several tensors that share memory in one call")
        for tensor in changed:
            before = self._tensor_argument(tensor)
            with self.paused():
                if self.blocks.written_by_others(tensor):
                    continue
            with self.graph.inserting_before(node):
                own = annotate(self.graph.call_function(private, (before,)), note_of(before))
            node.replace_input_with(before, own)
            if tensor is result:
                self.write(tensor, node)
            else:
                self.write(tensor, annotate(self.graph.call_function(after, (own, node)), self.note(None)))
        return result if any(tensor is result for tensor in changed) else self.bind(result, node)

    def knows(self, tensor: Tensor) -> bool:
        """Returns True if a recorded call made a tensor."""
        return self.blocks.find(tensor) is not None or self.foreign.node_of(tensor) is not None

    def node_of(self, tensor: Tensor) -> Node | None:
        """Returns the node that has the value of a tensor now; ``None`` if no recorded call made it."""
        cell = self.blocks.find(tensor)
        return self.foreign.node_of(tensor) if cell is None else self.blocks.current(cell)

    def argument(self, value: Any) -> Any:
        """Returns a recorded call's argument in the graph's terms."""
        value = followed(value)
        if isinstance(value, Node):
            return value
        if isinstance(value, Tensor):
            return self._tensor_argument(value)
        if isinstance(value, Traced):
            return value.node
        if isinstance(value, torch.device | torch.dtype):
            return self.origin.get(value, value)
        if value is None or isinstance(value, _CONSTANTS):
            return literal(value)
        if isinstance(value, torch.Size):
            return tuple(self.argument(item) for item in value)
        if isinstance(value, dict):
            return {literal(key): self.argument(item) for key, item in value.items()}
        if isinstance(value, tuple | list | slice):
            return map_items(value, self.argument)
        self.fail(f"passes {kind_of(value)} to a recorded call")

    def _tensor_argument(self, tensor: Tensor) -> Node:
        return self.node_of(tensor) or self.foreign.attribute(tensor)

    def touches(self, args: Any, kwargs: Any) -> bool:
        """Returns True if a call has tensors or traced numbers among its arguments."""
        return any(isinstance(value, Tensor | Traced) for value in leaves_in((args, kwargs)))

    def representable(self, value: Any) -> bool:
        """Returns True if a value can be an argument in the graph."""
        return all(
            item is None
            or isinstance(item, (Traced, torch.device, torch.dtype, *_CONSTANTS))
            or (isinstance(item, Tensor) and (self.foreign.is_attribute(item) or self.knows(item)))
            for item in leaves_in(value)
        )


class _Paused:
    """Stops a writer's recording inside. Entered some ten thousand times: a generator would take twice the calls."""

    __slots__ = ("before", "writer")

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def __enter__(self) -> None:
        self.before = self.writer.recording
        self.writer.recording = False

    def __exit__(self, *error: object) -> None:
        self.writer.recording = self.before


UNWATCHED = torch._C.DisableTorchFunction
"""A context for our own looks at tensors: no mode is asked, ours or the user's, as it costs more than the look."""

_CONSTANTS = (bool, int, float, complex, str, type(...), np.generic, torch.layout, torch.memory_format)

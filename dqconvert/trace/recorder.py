"""Writes a real forward down as a ``torch.fx.Graph``, one node per call.

Symbolic tracing needs proxies, and proxies fail PyG's ``isinstance(x, Tensor)`` and its checks of sizes. Here the
forward runs on real tensors under a :class:`torch.overrides.TorchFunctionMode`; a map from each live tensor to the
node that made it turns the calls into a graph.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode, resolve_name
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.conv import MessagePassing

from dqconvert.trace import leaves
from dqconvert.trace.note import Note, Stage, annotate, describe, note_of
from dqconvert.trace.ops import OPERATORS
from dqconvert.trace.patching import namespaces, patched, replacements
from dqconvert.trace.runtime import COMPARISONS, check_sorted, guard, setitem, stage_output
from dqconvert.trace.values import KeptFloat, Traced, TracedFloat, TracedInt, Untraceable, plain

# Calls that answer with a Python value which follows from a tensor's contents.
_READS_VALUES = {
    "__bool__",
    "is_nonzero",
    "equal",
    "allclose",
    "__contains__",
    "tolist",
    "numpy",
    "__array__",
}
# Integers that never depend on the graph's size.
_PLAIN_INTS = {
    "dim",
    "ndimension",
    "element_size",
    "get_device",
    "stride",
    "storage_offset",
    "__hash__",
    "ndim",
}
_NO_RESULT = {"retain_grad", "requires_grad_", "_assert", "_assert_async", "_check", "__repr__", "__format__"}
_SIDE_EFFECTS = {torch._C._set_grad_enabled}


class Recorder(TorchFunctionMode):
    """Records one forward of ``root`` (a copy that may be changed) into ``self.graph``.

    Args:
        root: The model. Its message-passing layers get bracketed methods; throw the copy away afterwards.
        kept: Paths of modules to keep whole because an earlier attempt could not look inside.
        values: Where to keep a copy of every node's tensor by the node's name; ``None`` keeps none.
    """

    def __init__(
        self, root: nn.Module, kept: frozenset[str] = frozenset(), values: dict[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.values = values
        self.root = root
        self.kept = kept
        self.graph = Graph()
        self.recording = False
        self._nodes: dict[int, tuple[weakref.ref[Tensor], Node]] = {}
        self._modules = {id(module): path for path, module in root.named_modules()}
        self._attributes: dict[int, str] = {}
        for path, module in root.named_modules():
            for name, value in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
                if isinstance(value, Tensor):
                    self._attributes.setdefault(id(value), f"{path}.{name}" if path else name)
        self._get_attr: dict[str, Node] = {}
        self._sizes: dict[tuple[Node, int], Node] = {}
        self._guards: set[tuple[Any, ...]] = set()
        self._where: list[tuple[str, int]] = [("", 0)]
        self._calls: dict[str, int] = {}
        self._stage: list[Stage] = [Stage.NONE]
        self._edge_index: list[tuple[Any, int]] = []
        self._propagation: list[int] = [-1]
        self._propagations = 0
        self._origin: dict[Any, Node] = {}

    # -- running ---------------------------------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        """Records what runs inside."""
        functions = {id(fn): self._wrap_function(fn) for fn in leaves.leaf_functions()}
        for layer in leaves.message_passing_layers(self.root):
            self._bracket(layer)
        for module in self.root.modules():
            for name, value in list(vars(module).items()):
                if type(value) is float:
                    setattr_plain(module, name, KeptFloat(value))
        changes = [
            *replacements(namespaces(self.root), functions),
            (nn.Module, "__call__", self._module_call(nn.Module.__call__)),
            (Aggregation, "__call__", self._module_call(Aggregation.__call__)),
            (Function, "apply", self._autograd_function(Function.__dict__["apply"])),
            (Aggregation, "assert_sorted_index", lambda _, index: self._check_sorted(index)),
            *((vars(module), "use_segment_matmul_heuristic", self._unwatched(fn)) for module, fn in leaves.HEURISTICS),
        ]
        with patched(changes), self:
            self.recording = True
            try:
                yield
            finally:
                self.recording = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Runs what is inside as if nobody watched."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def fail(self, reason: str) -> NoReturn:
        """Gives up on the innermost module."""
        raise Untraceable(self._where[-1][0], reason, self.source())

    def source(self) -> str:
        """File and line of the innermost code that is neither torch's nor ours."""
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if not name.startswith(_INTERNAL) and not _GENERATED.search(name):
                break
            if frame.f_back is None:
                break
            frame = frame.f_back
        parts = frame.f_code.co_filename.replace("\\", "/").split("/site-packages/")[-1].split("/")
        return "/".join(parts if parts[0] == "torch_geometric" else parts[-2:]) + f":{frame.f_lineno}"

    # -- what the mode sees ----------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute_read((resolve_name(func) or "..").split(".")[-2], func, args[0])
        if name == "__set__" and not (resolve_name(func) or "").endswith("requires_grad.__set__"):
            self.fail(f"sets the attribute {(resolve_name(func) or '..').split('.')[-2]!r} of a tensor")
        if name in _READS_VALUES and self._touches(args, kwargs):
            what = "branches on the value of a tensor" if name == "__bool__" else f"reads values with {name}()"
            self.fail(what)
        if name == "register_hook":
            self.fail("registers a hook on a tensor")
        if name in ("size", "numel", "nelement", "__len__"):
            return self._size(name, args, kwargs)
        if name in ("__int__", "__float__", "__index__", "__complex__"):
            self.fail("turns a tensor into a Python number where the recording cannot follow")
        if name == "item":
            return self._item(args)
        with self.paused():
            result = func(*_plain(args), **_plain(kwargs))
        return self._record_torch(func, name, args, kwargs, result)

    def _record_torch(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        if func in _SIDE_EFFECTS:
            self._node("call_function", func, args, kwargs)
            return result
        if result is None:
            if name == "__setitem__":
                return self._setitem(args)
            if name not in _NO_RESULT and self._touches(args, kwargs):
                self.fail(f"calls {name}(), which returns nothing")
            return result
        if isinstance(result, bool | str | torch.dtype | torch.device | torch.layout) or name in _PLAIN_INTS:
            return result
        op, target, args = _spell(func, name, args, kwargs)
        return self._bind(result, self._node(op, target, args, kwargs))

    def _attribute_read(self, name: str, func: Any, owner: Tensor) -> Any:
        with self.paused():
            result = func(owner)
        if name == "shape":
            return self._size("size", (owner,), {})
        if isinstance(result, Tensor):
            return self._bind(result, self._node("call_function", getattr, (owner, name), {}))
        if isinstance(result, torch.device | torch.dtype) and self._node_of(owner) is not None:
            self._remember_origin(result, owner, name)
        return result

    def _remember_origin(self, value: Any, owner: Tensor, name: str) -> None:
        """``device=x.device`` and ``dtype=x.dtype`` follow ``x``: the graph must not pin what tracing saw."""
        if isinstance(value, torch.dtype) and not value.is_floating_point:
            return
        self._origin[value] = self._node("call_function", getattr, (owner, name), {})

    def _size(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        shape = self._shape(tensor)
        if self._node_of(tensor) is None:  # a parameter: its shape is part of the model
            return _plain_size(name, shape, args, kwargs)
        if name in ("numel", "nelement"):
            node = self._cached_size(tensor, -1, lambda: self._node("call_method", "numel", (tensor,), {}))
            return self._traced_int(_plain_size(name, shape, args, kwargs), node)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if name == "__len__":
            dim = 0
        if dim is None:
            return torch.Size([self._one_size(tensor, d, value) for d, value in enumerate(shape)])
        dim = int(dim)
        return self._one_size(tensor, dim % len(shape) if shape else dim, shape[dim])

    def _one_size(self, tensor: Tensor, dim: int, value: int) -> TracedInt:
        node = self._cached_size(tensor, dim, lambda: self._node("call_method", "size", (tensor, dim), {}))
        return self._traced_int(value, node)

    def _cached_size(self, tensor: Tensor, dim: int, make: Callable[[], Node]) -> Node:
        owner = self._node_of(tensor)
        assert owner is not None
        if (owner, dim) not in self._sizes:
            self._sizes[owner, dim] = make()
        return self._sizes[owner, dim]

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        with self.paused():
            return tuple(tensor.size())

    def _item(self, args: tuple[Any, ...]) -> Any:
        with self.paused():
            value = args[0].item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"reads a {type(value).__name__} out of a tensor")
        return self._traced(value, self._node("call_method", "item", args, {}), from_values=True)

    def _setitem(self, args: tuple[Any, ...]) -> None:
        node = self._node("call_function", setitem, args, {})
        self._bind(args[0], node)

    # -- modules, functions, stages --------------------------------------------------------------------------------

    def _module_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder, module_call = self, nn.Module.__call__

        @functools.wraps(original)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = recorder._modules.get(id(module))
            # An Aggregation's own __call__ comes first and calls nn.Module's, which then is not a call of its own.
            inner = original is module_call and isinstance(module, Aggregation)
            if not recorder.recording or path is None or inner:
                return original(module, *args, **kwargs)
            return recorder._call_module(module, path, functools.partial(original, module), args, kwargs)

        return call

    def _call_module(self, module: nn.Module, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if path and (path in self.kept or leaves.is_leaf_module(module)):
            with self.inside(path, module):
                with self.paused():
                    result = run(*_plain(args), **_plain(kwargs))
                return self._bind(result, self._node("call_module", path, args, kwargs))
        with self.inside(path, module):
            result = run(*args, **kwargs)
            return self._mark(result, Stage.LAYER) if isinstance(module, MessagePassing) else result

    @contextmanager
    def inside(self, path: str, module: nn.Module) -> Iterator[None]:
        """Nodes recorded inside belong to the module at ``path``."""
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        self._where.append((path, call))
        self._stage.append(Stage.NONE if isinstance(module, MessagePassing) else self._stage[-1])
        try:
            yield
        finally:
            self._stage.pop()
            self._where.pop()

    def _autograd_function(self, original: Any) -> Any:
        recorder = self

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if recorder.recording and recorder._touches(args, kwargs):
                recorder.fail(
                    f"calls the autograd function {cls.__name__}, whose backward a graph of its parts would lose"
                )
            return original.__func__(cls, *args, **kwargs)

        return classmethod(apply)

    def _wrap_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.recording or not self._touches(args, kwargs):
                return function(*args, **kwargs)
            if not self._representable((args, kwargs)):
                return function(*args, **kwargs)
            with self.paused():
                result = function(*_plain(args), **_plain(kwargs))
            if isinstance(result, bool | str | None):
                return result
            return self._bind(result, self._node("call_function", function, args, kwargs))

        return call

    def _unwatched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Runs a function that chooses between equal computations, whose choice the graph may hold."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.paused():
                return function(*_plain(args), **_plain(kwargs))

        return call

    def _check_sorted(self, index: Tensor | None) -> None:
        if index is not None:
            self._node("call_function", check_sorted, (index,), {})

    def _bracket(self, layer: MessagePassing) -> None:
        """Makes the layer say which part of it is running. The methods are set on the instance, which is a copy."""
        layer.fuse = False  # messages must be visible, also over a sparse adjacency
        for name in leaves.STAGE_METHODS:
            setattr_plain(layer, name, self._stage_method(getattr(layer, name), Stage(name)))
        for name in ("propagate", "edge_updater"):
            setattr_plain(layer, name, self._over_edges(getattr(layer, name)))

    def _stage_method(self, method: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.recording:
                return method(*args, **kwargs)
            self._stage.append(stage)
            try:
                return self._mark(method(*args, **kwargs), stage)
            finally:
                self._stage.pop()

        return run

    def _over_edges(self, method: Callable[..., Any]) -> Callable[..., Any]:
        layer: Any = getattr(method, "__self__", None)

        @functools.wraps(method)
        def run(edge_index: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.recording:
                return method(edge_index, *args, **kwargs)
            self._edge_index.append((edge_index, 0 if layer is None or layer.flow == "source_to_target" else 1))
            self._propagation.append(self._propagations)
            self._propagations += 1
            try:
                return method(edge_index, *args, **kwargs)
            finally:
                self._edge_index.pop()
                self._propagation.pop()

        return run

    def _mark(self, result: Any, stage: Stage) -> Any:
        """A node of its own for what a stage returns, also where it returns its input."""
        if isinstance(result, Tensor):
            if not result.is_floating_point() or not self._representable(result):
                return result
            edges: tuple[Any, ...] = ()
            if stage in (Stage.MESSAGE, Stage.EDGE_UPDATE) and self._edge_index:
                edges = self._edge_index[-1]
            node = self._node("call_function", stage_output, (result, stage.value, *edges), {})
            with self.paused():
                alias = torch.ops.aten.alias.default(result)
            return self._bind(alias, describe(node, stage=stage))
        if isinstance(result, tuple) and stage is Stage.LAYER:  # (out, attention weights): the layer's output is first
            return type(result)((self._mark(result[0], stage), *result[1:])) if result else result
        if isinstance(result, tuple | list):
            return type(result)(self._mark(item, stage) for item in result)
        if isinstance(result, dict) and stage is Stage.LAYER:
            return {key: self._mark(item, stage) for key, item in result.items()}
        return result

    # -- numbers ---------------------------------------------------------------------------------------------------

    def number(self, value: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The result of arithmetic on traced numbers, with a node of its own."""
        from_values = any(isinstance(arg, Traced) and arg.from_values for arg in args)
        return self._traced(value, self._node("call_function", function, args, {}), from_values)

    def guard(self, left: Any, symbol: str, right: Any) -> bool:
        """The outcome of comparing traced numbers; the comparison is repeated whenever the graph runs."""
        outcome = COMPARISONS[symbol](plain(left), plain(right))
        if isinstance(left, Traced) and isinstance(right, Traced) and left.node is right.node:
            return outcome
        # Numbers found equal were compared to see that inputs fit together: that check can be repeated.
        fits = outcome is (symbol in ("==", "<=", ">=")) and plain(left) == plain(right)
        if not fits and any(isinstance(side, Traced) and side.from_values for side in (left, right)):
            self.fail(f"branches on a number read out of a tensor ({plain(left)} {symbol} {plain(right)})")
        sides = tuple(side.node if isinstance(side, Traced) else side for side in (left, right))
        if (*sides, symbol) not in self._guards:
            self._guards.add((*sides, symbol))
            self._node("call_function", guard, (left, symbol, right, outcome, self.source()), {})
        return outcome

    def _traced(self, value: Any, node: Node, from_values: bool = False) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        number: Any = TracedInt(value) if isinstance(value, int) else TracedFloat(value)
        number.node, number.recorder, number.from_values = node, self, from_values
        return number

    def _traced_int(self, value: int, node: Node) -> TracedInt:
        return self._traced(value, node)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def placeholder(self, name: str, value: Any, default: tuple[Any, ...] = ()) -> Node:
        """A graph input; ``default`` holds its default value, if it has one."""
        node = self.graph.create_node("placeholder", name, default)
        return annotate(node, self._note(value, source=f"argument {name!r}"))

    def bind_input(self, value: Any, node: Node) -> Any:
        """Connects an input's value (a tensor or a number) with the node that reads it.

        A tensor that already serves as another input is aliased: each argument has a node of its own.
        """
        if isinstance(value, Tensor) and self._node_of(value) is not None:
            value = torch.ops.aten.alias.default(value)
        return self._bind(value, node)

    def input_node(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any, source: str) -> Node:
        """A node that takes one part out of an input (``data.x``, ``x_dict["paper"]``)."""
        node = self.graph.create_node("call_function", function, args)
        return annotate(node, self._note(value, source=source))

    def check_input(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """A check of an input that is repeated whenever the graph runs."""
        annotate(self.graph.create_node("call_function", function, args), Note())

    def call_root(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the method that is being recorded, inside :meth:`active`."""
        return self._call_module(self.root, "", method, args, kwargs)

    def output(self, value: Any) -> None:
        """Ends the graph."""
        annotate(self.graph.output(self._argument(value)), Note())

    def _note(self, value: Any, source: str | None = None) -> Note:
        path, call = self._where[-1]
        note = Note(
            module=path,
            call=call,
            stage=self._stage[-1],
            propagation=self._propagation[-1],
            source=source or self.source(),
        )
        if isinstance(value, Tensor):
            return _with_value(note, self._shape(value), value)
        return note

    def _node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        fx_args = tuple(self._argument(arg) for arg in args)
        fx_kwargs = {key: self._argument(value) for key, value in kwargs.items()}
        return annotate(self.graph.create_node(op, target, fx_args, fx_kwargs), self._note(None))

    def _bind(self, result: Any, node: Node) -> Any:
        """Connects a result with its node and returns it, numbers as traced numbers."""
        if isinstance(result, Tensor):
            annotate(node, _with_value(note_of(node), self._shape(result), result))
            self._nodes[id(result)] = (weakref.ref(result), node)
            if self.values is not None:
                with self.paused():
                    self.values[node.name] = result.detach().clone()
            return result
        if isinstance(result, tuple | list):
            items = [self._bind_item(item, node, index) for index, item in enumerate(result)]
            if not any(isinstance(item, Traced) for item in items):
                return result
            return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
        if isinstance(result, dict):
            return {key: self._bind_item(item, node, key) for key, item in result.items()}
        if isinstance(result, int | float) and not isinstance(result, bool):
            return self._traced(result, node)
        if result is None or isinstance(result, bool | str):
            return result
        self.fail(f"calls {node.target}, which returns a {type(result).__name__}")

    def _bind_item(self, item: Any, node: Node, key: Any) -> Any:
        if item is None or isinstance(item, bool | str):
            return item
        part = OPERATORS["__getitem__"][0]
        return self._bind(item, annotate(self.graph.create_node("call_function", part, (node, key)), self._note(None)))

    def _node_of(self, tensor: Tensor) -> Node | None:
        entry = self._nodes.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _argument(self, value: Any) -> Any:
        """A recorded call's argument in the graph's terms."""
        if isinstance(value, Tensor):
            return self._tensor_argument(value)
        if isinstance(value, Traced):
            return value.node
        if isinstance(value, KeptFloat):
            return float(value)
        if isinstance(value, torch.device | torch.dtype):
            return self._origin.get(value, value)
        if value is None or isinstance(value, _CONSTANTS):
            return value
        if isinstance(value, torch.Size):
            return tuple(self._argument(item) for item in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._argument(item) for item in value))
        if isinstance(value, tuple | list):
            return type(value)(self._argument(item) for item in value)
        if isinstance(value, dict):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(item) for item in (value.start, value.stop, value.step)))
        self.fail(f"passes a {type(value).__name__} to a recorded call")

    def _tensor_argument(self, tensor: Tensor) -> Node:
        node = self._node_of(tensor)
        if node is not None:
            return node
        path = self._attributes.get(id(tensor))
        if path is None:
            self.fail(
                f"uses a tensor of shape {list(self._shape(tensor))} that no recorded call made "
                f"(a global, or made by code that torch does not see): register it as a buffer"
            )
        if path not in self._get_attr:
            node = self.graph.create_node("get_attr", path)
            owner = path.rpartition(".")[0]
            note = Note(module=owner, source=self.source())
            self._get_attr[path] = annotate(node, _with_value(note, self._shape(tensor), tensor))
        return self._get_attr[path]

    def _touches(self, args: Any, kwargs: Any) -> bool:
        """Whether a call has to do with the model at all."""
        return any(isinstance(value, Tensor | Traced) for value in _leaves((args, kwargs)))

    def _representable(self, value: Any) -> bool:
        return all(
            item is None
            or isinstance(item, (Traced, torch.device, torch.dtype, *_CONSTANTS))
            or (isinstance(item, Tensor) and (self._node_of(item) is not None or id(item) in self._attributes))
            for item in _leaves(value)
        )


_INTERNAL = (
    torch.__path__[0] + os.sep,
    os.path.dirname(__file__) + os.sep,
    sys.modules[MessagePassing.__module__].__file__ or "",
    "<",
    contextmanager.__code__.co_filename,
    functools.__file__,
)
# PyG writes each layer's propagate to a temporary file; the line that calls it says more.
_GENERATED = re.compile(r"_(propagate|edge_updater)_\w+\.py$")
_CONSTANTS = (
    bool,
    int,
    float,
    complex,
    str,
    type(...),
    torch.layout,
    torch.memory_format,
)


def setattr_plain(module: nn.Module, name: str, value: Any) -> None:
    """Sets an attribute on the instance alone, past ``nn.Module.__setattr__``."""
    module.__dict__[name] = value


def _with_value(note: Note, shape: tuple[int, ...], value: Tensor) -> Note:
    return replace(note, sizes=(shape,), dtype=value.dtype, sparse=value.layout != torch.strided)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, slice):
        yield from _leaves((value.start, value.stop, value.step))
    else:
        yield value


def _plain(value: Any) -> Any:
    """Arguments as the called code wants them: traced numbers as plain ones."""
    if isinstance(value, Traced):
        return plain(value)
    if isinstance(value, torch.Size):
        return torch.Size(plain(item) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_plain(item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    return value


def _plain_size(name: str, shape: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name in ("numel", "nelement"):
        return functools.reduce(lambda a, b: a * b, shape, 1)
    dim = 0 if name == "__len__" else kwargs.get("dim", args[1] if len(args) > 1 else None)
    return torch.Size(shape) if dim is None else shape[dim]


def _spell(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, tuple[Any, ...]]:
    """How a call is written in the graph: as an operator, a method, or a function."""
    qualified = resolve_name(func) or ""
    if qualified.startswith("torch.Tensor."):
        method = qualified.rsplit(".", 1)[1]
        operands = 1 if method in ("neg", "__invert__") else 2
        if method in OPERATORS and len(args) == operands and not kwargs:
            operator, swapped = OPERATORS[method]
            return "call_function", operator, args[::-1] if swapped else args
        return "call_method", method, args
    return "call_function", func, args

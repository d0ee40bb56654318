"""What recording changes while a forward runs: calls of modules, of PyG's functions, and the stages of layers.

Torch calls are seen without this. Calls of modules and of Python functions are not, so they are replaced for the time
of the recording by ones that tell.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.conv import MessagePassing

from dqconvert.trace import leaves
from dqconvert.trace.adjacency import edge_product, edge_sizes, is_sparse
from dqconvert.trace.calls import bind_call
from dqconvert.trace.copies import deepcopy, set_mode
from dqconvert.trace.hooks import GLOBAL_REMARK, call_hook, global_hooks, has_tables, replace_hooks
from dqconvert.trace.in_place import runs_alike
from dqconvert.trace.inputs import Inputs, method_of
from dqconvert.trace.literals import literal_changes
from dqconvert.trace.note import Stage, describe
from dqconvert.trace.patching import in_place_of, namespaces, patched, replacements
from dqconvert.trace.recorder import Recorder
from dqconvert.trace.runtime import check_sorted, either, stage_output
from dqconvert.trace.unchanged import ITSELF, Read
from dqconvert.trace.values import Untraceable, plain_arguments
from dqconvert.trace.weighing import Values, is_unweighted, set_values, unweighted, values_of, weighed
from dqconvert.trace.writer import Writer

_OF_EVERY_MODULE = frozenset(name for name in dir(nn.Module) if name.startswith("__"))
"""Attributes that tell nothing of one module: ``__class__``, ``__dict__``."""


class NoProduct(Exception):  # noqa: N818  (a signal to the driver, not a user's error)
    """A layer's product does what a graph cannot hold: its messages alone are recorded."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class Interception:
    """Has forwards of a model recorded: names are changed once, for as many recordings as are made meanwhile.

    Args:
        root: The model.
        fused: Paths of layers that compute a product with a sparse adjacency where their messages would do.
        products: Paths of layers of which the product alone can be recorded.

    Attributes:
        met_sparse: Whether a layer's messages went over a sparse adjacency or an ``EdgeIndex``.
        stateful: Counts among the attributes that forwards read and set.
    """

    def __init__(
        self, root: nn.Module, fused: Collection[str] = frozenset(), products: Collection[str] = frozenset()
    ) -> None:
        self.root = root
        self.fused = fused
        self.products = products
        self.met_sparse = False
        self.stateful: set[Read] = set()
        self._caches: set[Read] | None = None
        self._writer: Writer | None = None
        self._thread = threading.get_ident()

    def caches(self, inputs: Inputs, method: str) -> set[Read]:
        """The attributes that the first of two forwards sets, and the second does not."""
        with self.writer.paused():
            if self._caches is None:
                self._caches = self._set_once(inputs, method)
        return self._caches

    def _set_once(self, inputs: Inputs, method: str) -> set[Read]:
        model = set_mode(deepcopy(self.root), False)
        paths = {id(module): path for path, module in nn.Module.named_modules(model)}
        found: list[set[Read]] = [set(), set()]
        usual = nn.Module.__setattr__
        args, kwargs = inputs.call()

        def run(into: set[Read]) -> None:
            def watch(module: nn.Module, name: str, value: Any) -> None:
                if id(module) in paths:
                    into.add((paths[id(module)], (("attr", name),)))
                usual(module, name, value)

            with patched([(nn.Module, "__setattr__", watch)]), torch.no_grad():
                method_of(model, method)(*args, **kwargs)

        for names in found:
            run(names)
        return found[0] - found[1]

    @property
    def writer(self) -> Writer:
        """What takes the nodes of the present recording."""
        assert self._writer is not None
        return self._writer

    @property
    def recording(self) -> bool:
        """Whether calls are being written down right now."""
        return self._writer is not None and self._writer.recording

    @contextmanager
    def active(self) -> Iterator[None]:
        """Changes the names that recorded code uses; without a recording they mean what they always mean."""
        functions: dict[int, Callable[..., Any]] = {id(fn): self._wrap_function(fn) for fn in leaves.leaf_functions()}
        functions |= {id(getattr(at, name)): self._seen_through(fn, why) for at, name, fn, why in leaves.SEEN_THROUGH}
        functions |= {id(fn): self._drawing(name, fn) for _, name, fn in leaves.RANDOM_FUNCTIONS}
        spaces = namespaces(self.root)
        changes = [
            *replacements(spaces, functions),
            *literal_changes(spaces, self.root),
            *((at, name, functions[id(getattr(at, name))]) for at, name, *_ in leaves.SEEN_THROUGH),
            *((at, name, functions[id(fn)]) for at, name, fn in leaves.RANDOM_FUNCTIONS),
            (nn.Module, "__call__", self._module_call(nn.Module.__call__)),
            (Aggregation, "__call__", self._module_call(Aggregation.__call__)),
            (EdgeIndex, "matmul", self._edge_product(EdgeIndex.matmul)),
            (Function, "apply", self._autograd_function(Function.__dict__["apply"])),
            (Aggregation, "assert_sorted_index", lambda _, index: self._check_sorted(index)),
            *((vars(module), "use_segment_matmul_heuristic", self._unwatched(fn)) for module, fn in leaves.HEURISTICS),
        ]
        with patched(changes):
            yield

    @contextmanager
    def into(self, writer: Writer) -> Iterator[None]:
        """Records what runs inside :meth:`active` and this. The writer's model, a copy, gets bracketed methods."""
        self._writer = writer
        for path, layer in list(nn.Module.named_modules(writer.root)):
            if isinstance(layer, MessagePassing) and not any(f"{path}.".startswith(f"{kept}.") for kept in writer.kept):
                self._bracket(layer, path)
            if has_tables(layer) and not self._whole(path, layer):
                replace_hooks(layer, self._recorded_hook)
        if global_hooks():
            writer.remarks[GLOBAL_REMARK] = None
        with self._attributes(writer), Recorder(writer):
            writer.recording = True
            try:
                yield
            finally:
                writer.recording = False
                self._writer = None
                writer.attributes.release()

    def call_root(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the method that is being recorded, of the model or of a part of it, inside :meth:`into`."""
        path, _, name = method.rpartition(".")
        module = self.writer.root.get_submodule(path)
        if path and name != "forward":  # neither a leaf, nor what a layer returns
            with self.writer.inside(path, module):
                return method_of(self.writer.root, method)(*args, **kwargs)
        return self._call_module(module, path, method_of(self.writer.root, method), args, kwargs)

    def _whole(self, path: str, module: nn.Module) -> bool:
        """Whether a module is called as it is, and runs its own hooks: a leaf, what is in one, and the root."""
        above = [path[:end] for end in (*(i for i, c in enumerate(path) if c == "."), len(path))]
        return not path or any(
            part in self.writer.kept or leaves.is_leaf_module(self.writer.root.get_submodule(part)) for part in above
        )

    def _recorded_hook(self, table: str, key: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def call(module: nn.Module, *args: Any) -> Any:
            if not self.recording:
                return hook(module, *args)
            if not self.writer.representable(args):
                self.writer.fail("runs a hook on what a graph cannot hold")
            with self.writer.paused():
                result = hook(module, *plain_arguments(args))
            path = self.writer.modules[id(module)]
            owner = self.writer.graph.create_node("get_attr", path or ITSELF)
            changes = result is not None
            node = self.writer.node("call_function", call_hook, (owner, table, key, changes, *args), {})
            return self.writer.bind(result, node) if changes else None

        return call

    def _attributes(self, writer: Writer) -> AbstractContextManager[None]:
        """Inside, the writer is told which attributes of modules are read and set."""
        told, thread, current = writer.attributes, self._thread, threading.get_ident
        read, registered, set_one = object.__getattribute__, nn.Module.__getattr__, nn.Module.__setattr__

        def on_read(module: nn.Module, name: str) -> Any:  # called some ten thousand times
            value = read(module, name)
            if writer.recording and name not in _OF_EVERY_MODULE and current() == thread:
                return told.attribute(module, name, value)
            return value

        def on_registered(module: nn.Module, name: str) -> Any:
            watched = writer.recording and name not in _OF_EVERY_MODULE and current() == thread
            try:
                value = registered(module, name)
            except AttributeError:
                if watched:
                    told.missing(module, name)
                raise
            if watched:
                told.registered(module, name, value)
            return value

        def on_set(module: nn.Module, name: str, value: Any) -> None:
            if writer.recording and name not in _OF_EVERY_MODULE and current() == thread:
                told.set(module, name, value)
            set_one(module, name, value)

        names = ("__getattribute__", on_read), ("__getattr__", on_registered), ("__setattr__", on_set)
        return patched((nn.Module, name, function) for name, function in names)

    def _module_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        module_call = nn.Module.__call__

        @functools.wraps(original)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self.writer.modules.get(id(module)) if self.recording else None
            # An Aggregation's own __call__ comes first and calls nn.Module's, which then is not a call of its own.
            inner = original is module_call and isinstance(module, Aggregation)
            if path is None or inner:
                return original(module, *args, **kwargs)
            return self._call_module(module, path, functools.partial(original, module), args, kwargs)

        return call

    def _call_module(self, module: nn.Module, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        leaf = bool(path) and (path in self.writer.kept or leaves.is_leaf_module(module))
        if path not in self.writer.kept:
            self.writer.attributes.called(path, module, leaf)
        if leaf:
            with self.writer.inside(path, module):
                return self._call_whole(module, path, run, *bind_call(module.forward, args, kwargs))
        with self.writer.inside(path, module):
            result = run(*args, **kwargs)
            return self._mark(result, Stage.LAYER) if isinstance(module, MessagePassing) else result

    def _call_whole(self, module: nn.Module, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A module that stays one node."""
        self.writer.store_for(module)
        before = self.writer.versions((args, kwargs))
        held = {id(tensor): tensor for tensor, *_ in self.writer.held(module)}
        with self.writer.paused():
            result = run(*plain_arguments(args), **plain_arguments(kwargs))
        node = self.writer.node("call_module", path, args, kwargs)
        self.writer.left_behind(module, node, held)
        changed = self.writer.changed(before)
        if not changed:
            return self.writer.bind(result, node)
        if len(changed) == 1 and changed[0] is result and runs_alike(module):
            self.writer.write(result, node)
            return result
        return self.writer.changes(node, result, changed)

    def _autograd_function(self, original: Any) -> Any:
        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if self.recording and self.writer.touches(args, kwargs):
                self.writer.fail(
                    f"calls the autograd function {cls.__name__}, whose backward a graph of its parts would lose"
                )
            return original.__func__(cls, *args, **kwargs)

        return classmethod(apply)

    def _wrap_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.recording or not self.writer.touches(args, kwargs):
                return function(*args, **kwargs)
            if not self.writer.representable((args, kwargs)):
                return function(*args, **kwargs)
            args, kwargs = bind_call(function, args, kwargs)
            before = self.writer.versions((args, kwargs))
            with self.writer.paused():
                result = function(*plain_arguments(args), **plain_arguments(kwargs))
            changed = self.writer.changed(before)
            if isinstance(result, bool | str | None) and not changed:
                return result
            node = self.writer.node("call_function", function, args, kwargs)
            return self.writer.changes(node, result, changed) if changed else self.writer.bind(result, node)

        return call

    def _seen_through(self, instead: Callable[..., Any], remark: str) -> Callable[..., Any]:
        """Calls what a function would call, so that it is recorded."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.recording:
                self.writer.remarks[remark] = None
            return instead(*args, **kwargs)

        return call

    def _drawing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Refuses random numbers that would become constants."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.recording and threading.get_ident() == self._thread:
                self.writer.fail(f"draws random numbers with {name}(), not with torch")
            return function(*args, **kwargs)

        return call

    def _unwatched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Runs a function that chooses between equal computations, whose choice the graph may hold."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.recording:
                return function(*args, **kwargs)
            with self.writer.paused():
                return function(*plain_arguments(args), **plain_arguments(kwargs))

        return call

    def _check_sorted(self, index: Tensor | None) -> None:
        if index is not None and self._writer is not None:  # also inside an aggregation that stays whole
            self.writer.node("call_function", check_sorted, (index,), {})

    def _bracket(self, layer: MessagePassing, path: str) -> None:
        """Makes the layer say which part of it is running. The methods are set on the instance, which is a copy."""
        layer.fuse = path in self.products  # messages must be visible, also over a sparse adjacency
        values = values_of(layer)
        set_values(layer, Values.OWN)  # what the float model does in hooks is recorded as part of the message
        if values is Values.MULTIPLY:
            setattr_plain(layer, "message", self._weighed(layer.message, layer.node_dim))
        for name in leaves.STAGE_METHODS:
            setattr_plain(layer, name, self._stage_method(getattr(layer, name), Stage(name)))
        for name in ("propagate", "edge_updater"):
            fused = name == "propagate" and path in self.fused
            setattr_plain(layer, name, self._over_edges(getattr(layer, name), values, fused))

    def _stage_method(self, method: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.recording or Stage.PRODUCT in self.writer.stage:
                return method(*args, **kwargs)
            self.writer.stage.append(stage)
            try:
                return self._mark(method(*args, **kwargs), stage)
            finally:
                self.writer.stage.pop()

        return run

    def _weighed(self, message: Callable[..., Any], node_dim: int) -> Callable[..., Any]:
        """Messages multiplied by the values of the adjacency that they go over."""

        @functools.wraps(message)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = message(*args, **kwargs)
            return weighed(result, self.writer.edge_index[-1][0], node_dim) if self.recording else result

        return run

    def _over_edges(self, method: Callable[..., Any], values: Values, fused: bool) -> Callable[..., Any]:
        layer: Any = getattr(method, "__self__", None)

        @functools.wraps(method)
        def run(edge_index: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.recording:
                return method(edge_index, *args, **kwargs)
            if is_sparse(edge_index) or isinstance(edge_index, EdgeIndex):
                self.met_sparse = True
                with self.writer.paused():
                    ones = values is Values.ONES and is_unweighted(edge_index)
                if ones:
                    self.writer.node("call_function", unweighted, (edge_index,), {})
            self.writer.edge_index.append((edge_index, 0 if layer is None or layer.flow == "source_to_target" else 1))
            self.writer.propagation.append(self.writer.propagations)
            self.writer.propagations += 1
            try:
                multiplies = fused and self._multiplies(layer, edge_index)
                product = self._product(layer, method, edge_index, args, kwargs) if multiplies else None
                messages = method(edge_index, *args, **(kwargs | self._sizes(edge_index, kwargs)))
                return self._either(messages, product) if multiplies else messages
            finally:
                self.writer.edge_index.pop()
                self.writer.propagation.pop()

        return run

    def _multiplies(self, layer: Any, edge_index: Any) -> bool:
        """Whether the layer computes a product over such a connectivity, if it may."""
        given = self.writer.given(edge_index)
        sorted_edges = isinstance(given, EdgeIndex) and layer.SUPPORTS_FUSED_EDGE_INDEX and given.is_sorted_by_col
        return is_sparse(given) or bool(sorted_edges)

    def _sizes(self, edge_index: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What an ``EdgeIndex`` tells a layer that has features on one side alone: ``(x, None)``."""
        given = self.writer.given(edge_index)
        one_sided = any(
            isinstance(value, tuple | list) and any(side is None for side in value)
            for name, value in kwargs.items()
            if name != "size"
        )
        if not one_sided or not isinstance(given, EdgeIndex) or given.sparse_size() == (None, None):
            return {}
        with self.writer.paused():
            sizes = given.sparse_size()
        known = tuple(size is not None for size in sizes)
        node = self.writer.node("call_function", edge_sizes, (given, known), {})
        return {"size": self.writer.bind(sizes, node)}

    def _edge_product(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(
            edge_index: Any,
            other: Any,
            input_value: Any = None,
            other_value: Any = None,
            reduce: Any = "sum",
            transpose: bool = False,
        ) -> Any:
            if not self.recording or isinstance(other, EdgeIndex):
                return original(edge_index, other, input_value, other_value, reduce, transpose)
            with self.writer.paused():
                result = original(edge_index, other, input_value, other_value, reduce, transpose)
            arguments = (edge_index, other, input_value, reduce, transpose)
            return self.writer.bind(result, self.writer.node("call_function", edge_product, arguments, {}))

        return call

    def _product(self, layer: Any, method: Callable[..., Any], edge_index: Tensor, args: Any, kwargs: Any) -> Any:
        """What the layer computes where PyG has its way: one product."""
        layer.fuse = True
        self.writer.stage.append(Stage.PRODUCT)
        try:
            return method(self.writer.given(edge_index), *args, **kwargs)
        except Untraceable:
            raise NoProduct(self.writer.modules[id(layer)]) from None
        finally:
            self.writer.stage.pop()
            layer.fuse = False

    def _either(self, messages: Any, product: Any) -> Any:
        if not isinstance(messages, Tensor) or not isinstance(product, Tensor):
            return messages
        node = self.writer.node("call_function", either, (messages, product), {})
        with self.writer.paused():
            alias = torch.ops.aten.alias.default(messages)
        return self.writer.bind(alias, node)

    def _mark(self, result: Any, stage: Stage) -> Any:
        """A node of its own for what a stage returns, also where it returns its input."""
        if isinstance(result, Tensor):
            if not result.is_floating_point() or not self.writer.representable(result):
                return result
            edges: tuple[Any, ...] = ()
            if stage in (Stage.MESSAGE, Stage.EDGE_UPDATE) and self.writer.edge_index:
                edges = self.writer.edge_index[-1]
            node = self.writer.node("call_function", stage_output, (result, stage.value, *edges), {})
            with self.writer.paused():
                alias = torch.ops.aten.alias.default(result)
            return self.writer.bind(alias, describe(node, stage=stage))
        if isinstance(result, tuple) and stage is Stage.LAYER:  # (out, attention weights): the layer's output is first
            return type(result)((self._mark(result[0], stage), *result[1:])) if result else result
        if isinstance(result, tuple | list):
            return type(result)(self._mark(item, stage) for item in result)
        if isinstance(result, dict) and stage is Stage.LAYER:
            return {key: self._mark(item, stage) for key, item in result.items()}
        return result


def setattr_plain(module: nn.Module, name: str, value: Any) -> None:
    """Sets an attribute on the instance alone, past ``nn.Module.__setattr__``."""
    module.__dict__[name] = value


@contextmanager
def seen_through(model: nn.Module) -> Iterator[None]:
    """Inside, the model calls directly what it calls through one of :data:`leaves.SEEN_THROUGH`, as its graph does."""
    functions = {id(getattr(place, name)): fn for place, name, fn, _ in leaves.SEEN_THROUGH}
    spaces = [*namespaces(model), *(vars(place) for place, *_ in leaves.SEEN_THROUGH)]
    with patched(change for names in spaces for change in in_place_of(names, functions)):
        yield

"""Interception of what torch does not see while a forward is recorded: modules, PyG's functions, attributes.

Torch calls are seen without this. Calls of modules and of Python functions are not, so they are replaced for the time
of the recording by ones that tell.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.conv import MessagePassing

from dqconvert.trace import leaves
from dqconvert.trace.adjacency import edge_product
from dqconvert.trace.brackets import Brackets, mark
from dqconvert.trace.caches import set_once
from dqconvert.trace.calls import bind_call
from dqconvert.trace.guards import check_sorted
from dqconvert.trace.hooks import GLOBAL_REMARK, call_hook, global_hooks, has_tables, replace_hooks
from dqconvert.trace.in_place import runs_alike
from dqconvert.trace.inputs import Inputs, method_of
from dqconvert.trace.literals import literal_changes
from dqconvert.trace.note import Stage
from dqconvert.trace.patching import in_place_of, namespaces, patched, replacements
from dqconvert.trace.recorder import Recorder
from dqconvert.trace.unchanged import ITSELF, Read
from dqconvert.trace.values import plain_arguments
from dqconvert.trace.writer import Writer

_OF_EVERY_MODULE = frozenset(name for name in dir(nn.Module) if name.startswith("__"))
"""Attributes that tell nothing of one module: ``__class__``, ``__dict__``."""


class Interception:
    """Has forwards of a model recorded: names are patched once, for any number of recordings.

    Args:
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
        self._watches = False
        self._thread = threading.get_ident()

    def caches(self, inputs: Inputs, method: str) -> set[Read]:
        """Returns the attributes that the first of two forwards sets, and the second does not."""
        with self.writer.paused():
            if self._caches is None:
                self._caches = set_once(self.root, inputs, method)
        return self._caches

    @property
    def writer(self) -> Writer:
        """The writer of the present recording."""
        assert self._writer is not None
        return self._writer

    @property
    def recording(self) -> bool:
        """True while calls are being written down."""
        return self._writer is not None and self._writer.recording

    @contextmanager
    def active(self) -> Iterator[None]:
        """Changes the names that recorded code uses; without a recording they mean what they always mean."""
        with patched(self._changes()):
            yield

    def _changes(self) -> Iterator[tuple[Any, str, Any]]:
        functions: dict[int, Callable[..., Any]] = {id(fn): self._wrap_function(fn) for fn in leaves.leaf_functions()}
        functions |= {id(getattr(at, name)): self._seen_through(fn, why) for at, name, fn, why in leaves.SEEN_THROUGH}
        functions |= {id(fn): self._drawing(name, fn) for _, name, fn in leaves.RANDOM_FUNCTIONS}
        spaces = namespaces(self.root)
        yield from replacements(spaces, functions)
        yield from literal_changes(spaces, self.root)
        yield from ((at, name, functions[id(getattr(at, name))]) for at, name, *_ in leaves.SEEN_THROUGH)
        yield from ((at, name, functions[id(fn)]) for at, name, fn in leaves.RANDOM_FUNCTIONS)
        yield nn.Module, "__call__", self._module_call(nn.Module.__call__)
        yield Aggregation, "__call__", self._module_call(Aggregation.__call__)
        yield EdgeIndex, "matmul", self._edge_product(EdgeIndex.matmul)
        yield Function, "apply", self._autograd_function(Function.__dict__["apply"])
        yield Aggregation, "assert_sorted_index", lambda _, index: self._check_sorted(index)
        for module, fn in leaves.HEURISTICS:
            yield vars(module), "use_segment_matmul_heuristic", self._unwatched(fn)

    @contextmanager
    def into(self, writer: Writer) -> Iterator[None]:
        """Records what runs inside :meth:`active` and this. The writer's model, a copy, gets bracketed methods."""
        self._writer = writer
        brackets = Brackets(writer, self.fused, self.products)
        for path, layer in list(nn.Module.named_modules(writer.root)):
            if isinstance(layer, MessagePassing) and not any(f"{path}.".startswith(f"{kept}.") for kept in writer.kept):
                brackets.bracket(layer, path)
            if has_tables(layer) and not self._whole(path, layer):
                replace_hooks(layer, self._recorded_hook)
        if global_hooks():
            writer.remarks[GLOBAL_REMARK] = None
        with nullcontext() if self._watches else self.watching(), Recorder(writer):
            writer.recording = True
            try:
                yield
            finally:
                writer.recording = False
                self._writer = None
                self.met_sparse = self.met_sparse or brackets.met_sparse
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
        """Returns True if a module runs its own hooks: a leaf, a part of one, the root."""
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

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reports to the writer of each recording inside which attributes of modules are read and set.

        Around several recordings, as Python goes through all classes of modules to set such a name on their base.
        """
        thread, current = self._thread, threading.get_ident
        read, registered, set_one = object.__getattribute__, nn.Module.__getattr__, nn.Module.__setattr__

        def on_read(module: nn.Module, name: str) -> Any:  # called some ten thousand times
            value, writer = read(module, name), self._writer
            if writer is not None and writer.recording and name not in _OF_EVERY_MODULE and current() == thread:
                return writer.attributes.attribute(module, name, value)
            return value

        def on_registered(module: nn.Module, name: str) -> Any:
            writer = self._writer
            watched = writer is not None and writer.recording and name not in _OF_EVERY_MODULE and current() == thread
            try:
                value = registered(module, name)
            except AttributeError:
                if writer is not None and watched:
                    writer.attributes.missing(module, name)
                raise
            if writer is not None and watched:
                writer.attributes.registered(module, name, value)
            return value

        def on_set(module: nn.Module, name: str, value: Any) -> None:
            writer = self._writer
            if writer is not None and writer.recording and name not in _OF_EVERY_MODULE and current() == thread:
                writer.attributes.set(module, name, value)
            set_one(module, name, value)

        names = ("__getattribute__", on_read), ("__getattr__", on_registered), ("__setattr__", on_set)
        with patched((nn.Module, name, function) for name, function in names):
            self._watches = True
            try:
                yield
            finally:
                self._watches = False

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
            return mark(self.writer, result, Stage.LAYER) if isinstance(module, MessagePassing) else result

    def _call_whole(self, module: nn.Module, path: str, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a module that stays one node."""
        self.writer.store_for(module)
        before = self.writer.versions((args, kwargs))
        held = {id(tensor): tensor for tensor, *_ in self.writer.foreign.held(module)}
        with self.writer.paused():
            result = run(*plain_arguments(args), **plain_arguments(kwargs))
        node = self.writer.node("call_module", path, args, kwargs)
        self.writer.foreign.left_behind(module, node, held)
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


@contextmanager
def seen_through(model: nn.Module) -> Iterator[None]:
    """Has the model call directly what it calls through one of :data:`leaves.SEEN_THROUGH`, as its graph does."""

    def changes() -> Iterator[tuple[Any, str, Any]]:
        functions = {id(getattr(place, name)): fn for place, name, fn, _ in leaves.SEEN_THROUGH}
        yield from in_place_of([*namespaces(model), *(vars(place) for place, *_ in leaves.SEEN_THROUGH)], functions)

    with patched(changes()):
        yield

"""Modules whose methods, and whose parts called from outside, run graphs as their forward does.

A *door* is where code from outside enters: a method of the root (``"encode"``), or one of a part of it
(``"encoder.forward"``, ``"convs.0.lin.forward"``). Each door has as many graphs as it was called in forms: without edge
weights and with them, say. Parts keep their class, in a subclass of one instance that knows the module they belong to.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.conv import MessagePassing

from dqconvert.errors import ArgumentError, ModeError, ObserverError, TraceError
from dqconvert.trace.check import Check
from dqconvert.trace.copies import deepcopy, set_state, unrepeated_names
from dqconvert.trace.hooks import Hook, hooks_of, new_hook_number, warn_of_lost
from dqconvert.trace.leaves import WEIGHTED_MODULES, is_leaf_module
from dqconvert.trace.method import Method, binds, fits
from dqconvert.trace.module import TracedModule, write_nowhere
from dqconvert.trace.names import module_of
from dqconvert.trace.unchanged import ASIDE, checks
from dqconvert.trace.watch import unwatched, watching

AS_IT_IS = object()
"""First argument of a part that a graph calls: the user's code, not a graph, is to run."""

MOST_FORMS = 16
"""Graphs of one door: more forms of arguments than that are not forms but values."""


class Undo(Protocol):
    """How a module was."""

    def restore(self) -> None:
        """Makes it so again."""


class Call(NamedTuple):
    """A call from outside.

    Attributes:
        door: Name of the door: ``"encode"``, ``"encoder.forward"``.
        part: The module whose method was called.
        user: The method in the user's class; ``None`` if that has none of the name.
        args: The positional arguments.
        kwargs: The keyword arguments.
    """

    door: str
    part: nn.Module
    user: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fits(self, graph: Graph) -> bool:
        """True if a graph is for these arguments."""
        return fits(graph, self.args, self.kwargs)

    def run_user(self) -> Any:
        """Runs the user's code on the arguments."""
        assert self.user is not None
        return self.user(self.part, *self.args, **self.kwargs)


class Running(NamedTuple):
    """A graph of a door, and the function that it generated."""

    graph: Graph
    function: Callable[..., Any]


_WHOLE: Any = "parts are copied with the whole"
"""The key in the memo of a deep copy that says so."""


class DoorModule(TracedModule):
    """A traced module whose other methods and parts run graphs of its own.

    Attributes:
        method: The door that ``graph`` and ``eval_graph`` are of.
        called_method: The door that calling the module enters.
        more_methods: Further graphs: of other doors, and of the same on arguments of another form.
        own_code: Doors that run the user's code, whose parts are doors again, and why.
    """

    method: str = "forward"
    called_method: str = "forward"
    more_methods: tuple[Method, ...] = ()
    own_code: Mapping[str, str] = MappingProxyType({})
    _running: dict[str, list[Running]]
    _hooks_seen: set[Hook]
    _hook_number: int

    @classmethod
    def _namespace(cls, user: type[nn.Module]) -> dict[str, Any]:
        return {**super()._namespace(user), "_running": {}}

    @classmethod
    def _assemble(
        cls, user: type[nn.Module], state: dict[str, Any], graph: Graph, eval_graph: Graph | None, **own: Any
    ) -> Any:
        module = super()._assemble(user, _set_aside(state, user), graph, eval_graph, **own)
        for name in method_names(user):
            if name != "forward" and not hasattr(cls, name):
                setattr(type(module), name, _door(_function(module, user, name), name, module))
        module._open_parts()
        return module

    # -- the graphs --------------------------------------------------------------------------------------------------

    def _write_code(self) -> Any:
        """Generates the code of every graph."""
        cls = type(self)
        running: dict[str, list[Running]] = {}
        for method in self.more_methods:
            running.setdefault(method.name, []).append(self._opened(method))
        code = super()._write_code()
        self.__dict__.update(_hooks_seen=hooks_of(self), _hook_number=new_hook_number())
        primary = Running(self._graph, cls.forward)
        cls._running = {**running, self.method: [primary, *running.get(self.method, ())]}
        called = self.called_method
        user = _function(self, self._user_class, called) if hasattr(self._user_class, called) else None
        cls.forward = _door(primary.function if called == self.method else user, called, user=user)
        return code

    def _opened(self, method: Method) -> Running:
        part = method.name.rpartition(".")[0]
        forward = type(self).forward
        write_nowhere(self, *method.graphs())
        try:
            return Running(method.graph, self._generate(method.graph, method.eval_graph, part)[0])
        finally:
            type(self).forward = forward

    def _look_for_hooks(self) -> None:
        """Lets hooks run that were registered since the code was generated, and warns of those that cannot."""
        before = self._hooks_seen
        self._hook_number = new_hook_number()
        if hooks_of(self) - before:
            self.recompile()
            warn_of_lost(self._hooks_seen - before, [g for method in self.all_methods() for g in method.graphs()])

    def check_unchanged(self) -> None:
        """Checks that what its methods read off its modules is what it was when they were traced.

        Raises:
            GuardError: If it is not; it names the attribute.
        """
        for method in self.all_methods():
            Check(self, checks(method.graphs()))(self)

    def add_method(self, method: Method) -> Running:
        """Takes one more graph; who calls the door on such arguments runs it."""
        before = self.more_methods
        self.more_methods = (*before, method)
        try:
            running = self._opened(method)
        except BaseException:
            self.more_methods = before
            raise
        self._running.setdefault(method.name, []).append(running)
        return running

    def all_methods(self) -> Iterator[Method]:
        """Every graph of the module; first the one that is ``graph``."""
        yield Method(name=self.method, graph=self._graph, eval_graph=self.eval_graph)
        yield from self.more_methods

    # -- the doors ---------------------------------------------------------------------------------------------------

    def _enter(self, call: Call) -> Any:
        """Runs the graph of a door; where there is none for the arguments, calls :meth:`_no_graph`."""
        if watching[0]:
            with unwatched():
                return self._entered(call)
        return self._entered(call)

    def _entered(self, call: Call) -> Any:
        if not torch.compiler.is_compiling() and self._hook_number != new_hook_number():
            self._look_for_hooks()
        was = self._before(call.part)
        if was is None:
            return self._taken(call, None)
        try:
            return self._taken(call, was)
        except BaseException:
            was.restore()
            raise

    def _taken(self, call: Call, was: Undo | None) -> Any:
        """Returns what :meth:`_chosen` returns; raises the float model's own error where that refuses the mode."""
        try:
            return self._chosen(call, was)
        except ModeError:
            if call.user is not None:
                call.run_user()
            raise

    def _chosen(self, call: Call, was: Undo | None) -> Any:
        """Runs the graph that is for the arguments.

        Args:
            call: The call.
            was: The state of the module before any graph was tried.
        """
        found = self._running.get(call.door)
        if not found or call.door in self.own_code:
            return self._no_graph(call)
        try:
            return self.run(found[0], call)
        except Exception as error:
            # What a graph refuses, or trips over, may be what another one is for.
            if call.fits(found[0].graph) or not binds(found[0].graph, call.args, call.kwargs):
                raise
            refusal = error
        try:
            if was is not None:  # the next one is the first that anybody sees
                was.restore()
            chosen = next((running for running in found[1:] if call.fits(running.graph)), None)
            if chosen is not None:
                return self.run(chosen, call)
            if len(found) >= MOST_FORMS:
                raise ArgumentError(
                    f"{call.door}: was called on arguments of more than {MOST_FORMS} forms (flags, words, absent "
                    f"tensors), each with a graph of its own; {refusal}"
                )
            return self._no_graph(call, refusal)
        finally:
            del refusal  # it holds this frame, and all tensors of the graph's

    def _before(self, part: nn.Module) -> Undo | None:
        """Returns how to undo a call of a part that fails; ``None`` if the call changes nothing."""
        return None

    def run(self, running: Running, call: Call) -> Any:
        """Runs a graph; where one of its quantizers has no range yet, the error names the door, too."""
        try:
            return running.function(self, *call.args, **call.kwargs)
        except ObserverError as error:
            if call.door == self.called_method:
                raise
            raise ObserverError(
                f"{error} It belongs to {call.door}, which the training did not call: train through it, too, or "
                f"calibrate with dqconvert.calibrate(module, data, method={call.door!r})."
            ) from error

    def _no_graph(self, call: Call, refusal: Exception | None = None) -> Any:
        """Answers a call that no graph is for.

        Args:
            call: The call.
            refusal: Why the door's graphs refused it; ``None`` where it has none.
        """
        raise NotImplementedError

    # -- the parts ---------------------------------------------------------------------------------------------------

    def _inserted(self, module: nn.Module) -> bool:
        """Whether a module is none of the user's."""
        return False

    def _open_parts(self) -> None:
        """Makes the parts of this module doors, each with the methods of its class."""
        open_parts(self, self, self._inserted)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[_WHOLE] = True  # what parts ask; of a shallow copy, they may be the original's
        return super().__deepcopy__(memo)

    def for_one_run(self) -> Any:
        """A deep copy: parts are doors of the module that they are in."""
        return copy.deepcopy(self)


def _door(shown: Any, door: str, host: DoorModule | None = None, *, user: Any = None) -> Callable[..., Any]:
    """A method of one instance's class, which runs the graphs of a door.

    Args:
        shown: What the method looks like from outside.
        door: The door.
        host: Has its graphs; ``None``: the instance itself.
        user: The method in the user's class, if that is not ``shown``.
    """
    own = user or shown

    @functools.wraps(shown)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is AS_IT_IS:
            return own(self, *args[1:], **kwargs)
        return (self if host is None else host)._enter(Call(door, self, own, args, kwargs))

    return call


def door_of(door: str, host: DoorModule) -> Callable[..., Any]:
    """A method that runs the graphs of a door, of a class that has no such method."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return host._enter(Call(door, self, None, args, kwargs))

    call.__name__ = door.rpartition(".")[2]
    return call


# -- parts ---------------------------------------------------------------------------------------------------------


class Part:
    """Mixin of the parts of a :class:`DoorModule`: called from outside, they run its graphs."""

    _user_class: type[nn.Module]
    _host: DoorModule | None
    _path: str

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        host, user = self._host, self._user_class
        if host is not None and _WHOLE not in memo:  # alone: its graphs are the whole module's
            return deepcopy(host, memo).get_submodule(self._path)
        if getattr(user, "__deepcopy__", None) is not None:
            alike: Any = object.__new__(user)  # GraphModules make the copy of the class that they find themselves in
            alike.__dict__ = self.__dict__
            memo.setdefault(id(memo), []).append(alike)  # lives as long as its id stands in the memo
            with unrepeated_names():
                copied = user.__deepcopy__(alike, memo)  # type: ignore[attr-defined]
            memo[id(self)] = copied
            return copied
        reduced: Any = super().__reduce_ex__(4)
        make, arguments, *rest = reduced
        copied = memo[id(self)] = make(user, *arguments[1:])
        state = deepcopy(rest[0], memo)
        set_state(copied, state)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        if issubclass(self._user_class, GraphModule):  # its class is its own, and made again from its code
            return self._user_class.__reduce__(self)  # type: ignore[arg-type]
        reduced: Any = super().__reduce_ex__(protocol)
        _, arguments, *rest = reduced
        return (_apart, (self._user_class, *arguments[1:]), *rest)


def _apart(user: type[nn.Module], *arguments: Any) -> Any:
    """A part without its module: that makes it a door again if it comes with it."""
    part = user.__new__(user, *arguments)
    part.__class__ = part_class(user, None, "", part)
    return part


def part_class(user: type[nn.Module], host: DoorModule | None, path: str, part: nn.Module) -> type[nn.Module]:
    """The class of a part: the user's, whose methods run the graphs of ``host``."""
    names: dict[str, Any] = {
        "__module__": user.__module__,
        "__qualname__": user.__qualname__,
        "__doc__": user.__doc__,
        "_user_class": user,
        "_host": host,
        "_path": path,
    }
    for name in method_names(user):
        door = f"{path}.{name}" if path else name
        function = _function(part, user, name)
        names[name] = _lost(function) if host is None else _door(function, door, host)
    return type(user.__name__, (Part, user), names)


def _lost(user: Any) -> Callable[..., Any]:
    @functools.wraps(user)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise TraceError(
            f"this {type(self).__name__} is a part of a prepared module, pickled without it: pickle the whole module, "
            f"and take the part of that."
        )

    return call


def open_parts(tree: nn.Module, host: DoorModule, inserted: Callable[[nn.Module], bool]) -> None:
    """Makes doors of host of the parts of a tree that compute with weights or pass messages, in place.

    Args:
        tree: A module; itself it stays as it is.
        host: Has the graphs.
        inserted: Whether a module is none of the user's, and stays as it is.
    """
    inner: set[nn.Module] = set()  # of layers that are computed as a whole
    for path, part in tree.named_modules():
        cls = type(part)
        if isinstance(part, WEIGHTED_MODULES):
            inner.update(child for child in part.modules() if child is not part)
        if part is tree or part in inner or isinstance(part, DoorModule | torch.jit.ScriptModule) or inserted(part):
            continue
        if isinstance(part, Part):
            if part._host is not None:
                continue
            cls = part._user_class
        if method_names(cls) and any(map(_computes, (m for m in part.modules() if not inserted(m)))):
            vars(part).update(_set_aside(vars(part), cls))
            part.__class__ = part_class(cls, host, path, part)


def _set_aside(state: dict[str, Any], user: type[nn.Module]) -> dict[str, Any]:
    """Takes methods that are set on an instance (PyG's ``Sequential`` has its forward there) out of the way of those of
    the class, in place."""
    own = {name: state.pop(name) for name in method_names(user) if callable(state.get(name))}
    if own:
        state[ASIDE] = {**state.get(ASIDE, {}), **own}
    return state


def put_back(state: dict[str, Any]) -> None:
    """Sets the methods on the instance again, in place, that were set aside."""
    state.update(state.pop(ASIDE, {}))


def _function(part: nn.Module, user: type[nn.Module], name: str) -> Callable[..., Any]:
    """A method of the user's, as a function that takes the module first."""
    method = vars(part).get(ASIDE, {}).get(name)
    function: Any = getattr(user, name) if method is None else getattr(method, "__func__", None)
    return function or functools.wraps(method)(lambda self, *args, **kwargs: method(*args, **kwargs))


def copy_apart(module: nn.Module) -> nn.Module:
    """A deep copy of a module, or of a part of one, in which nothing is a door."""
    host = module._host if isinstance(module, Part) else None
    copied = deepcopy(module, {} if host is None else {_WHOLE: True})
    close_parts(copied)
    return copied


def close_parts(tree: nn.Module) -> None:
    """Gives parts their user's class back, in place."""
    for part in tree.modules():
        if isinstance(part, Part):
            part.__class__ = part._user_class  # type: ignore[assignment]
            put_back(vars(part))


def _computes(module: nn.Module) -> bool:
    if isinstance(module, (*WEIGHTED_MODULES, MessagePassing)):
        return True
    return bool(module._parameters) and not is_leaf_module(module)


_BASES = (
    *(object, nn.Module, TracedModule, DoorModule, GraphModule, MessagePassing, Aggregation, Part, *WEIGHTED_MODULES),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict),
)
_MESSAGE_PASSING = frozenset(name for name in dir(MessagePassing) if not hasattr(nn.Module, name))
_NEVER = frozenset(("reset_parameters", "reset", "extra_repr"))


def method_names(user: type[nn.Module]) -> tuple[str, ...]:
    """The methods of a class that code from outside may call to compute something: its own and those of its bases,
    as far as they are not torch's and PyG's machinery; private ones of the user's.

    Example:
        >>> from torch_geometric.nn import GAE, GCNConv
        >>> method_names(GAE), method_names(GCNConv), method_names(nn.ModuleList)
        (('forward', 'encode', 'decode', 'recon_loss', 'test'), ('forward',), ())
    """
    cls: Any = user
    names: tuple[str, ...] = _method_names(cls)
    return names


@functools.cache
def _method_names(user: Any) -> tuple[str, ...]:
    found = {} if user.forward is nn.Module.forward else {"forward": None}
    for cls in user.__mro__:
        package = module_of(cls).split(".")[0]
        machinery = cls in _BASES or package in ("torch", "lightning", "pytorch_lightning")
        for name, value in vars(cls).items() if not machinery else ():
            private = name.startswith("_") and (name.startswith("__") or package == "torch_geometric")
            known = name in _NEVER or name in _MESSAGE_PASSING or hasattr(nn.Module, name)
            written = type(value) is FunctionType and module_of(value) == module_of(cls)  # not by PyG at run time
            if written and not private and not known and not _yields(value):
                found[name] = None
    return tuple(name for name in found if isinstance(inspect.getattr_static(user, name), FunctionType))


def _yields(function: FunctionType) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)

"""Parts of a module that, called from outside, run graphs of the whole: their classes, and how they are copied."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.conv import MessagePassing

from dqconvert.errors import TraceError
from dqconvert.trace.copies import deepcopy, set_state, unrepeated_names
from dqconvert.trace.leaves import WEIGHTED_MODULES, is_leaf_module
from dqconvert.trace.method import fits
from dqconvert.trace.module import TracedModule
from dqconvert.trace.names import module_of
from dqconvert.trace.unchanged import ASIDE

AS_IT_IS = object()
"""First argument of a part that a graph calls: the user's code, not a graph, is to run."""

WHOLE: Any = "parts are copied with the whole"
"""The key in the memo of a deep copy that says so."""


class DoorCall(NamedTuple):
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


class Host(Protocol):
    """The module that a part belongs to, which has its graphs: a :class:`~dqconvert.trace.doors.DoorModule`."""

    def _enter(self, call: DoorCall) -> Any: ...

    def get_submodule(self, target: str) -> nn.Module: ...


# -- doors -------------------------------------------------------------------------------------------------------


def door_method(shown: Any, door: str, host: Host | None = None, *, user: Any = None) -> Callable[..., Any]:
    """Makes a method of one instance's class, which runs the graphs of a door.

    Args:
        shown: What the method looks like from outside.
        host: Has its graphs; ``None``: the instance itself.
        user: The method in the user's class, if that is not ``shown``.
    """
    own = user or shown

    @functools.wraps(shown)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is AS_IT_IS:
            return own(self, *args[1:], **kwargs)
        return (self if host is None else host)._enter(DoorCall(door, self, own, args, kwargs))

    return call


def door_of(door: str, host: Host) -> Callable[..., Any]:
    """Makes a method that runs the graphs of a door, for a class that has no such method."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return host._enter(DoorCall(door, self, None, args, kwargs))

    call.__name__ = door.rpartition(".")[2]
    return call


# -- parts -------------------------------------------------------------------------------------------------------


class Part:
    """Mixin of the parts of a :class:`~dqconvert.trace.doors.DoorModule`: called from outside, they run its graphs."""

    _user_class: type[nn.Module]
    _host: Host | None
    _path: str

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        host, user = self._host, self._user_class
        if host is not None and WHOLE not in memo:  # alone: its graphs are the whole module's
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
    """Makes a part without its module, which makes it a door again if both are unpickled."""
    part = user.__new__(user, *arguments)
    part.__class__ = part_class(user, None, "", part)
    return part


def part_class(user: type[nn.Module], host: Host | None, path: str, part: nn.Module) -> type[nn.Module]:
    """Makes the class of a part: the user's, whose methods run the graphs of ``host``."""
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
        function = function_of(part, user, name)
        names[name] = _lost(function) if host is None else door_method(function, door, host)
    return type(user.__name__, (Part, user), names)


def _lost(user: Any) -> Callable[..., Any]:
    @functools.wraps(user)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise TraceError(
            f"this {type(self).__name__} is a part of a prepared module, pickled without it: pickle the whole module, "
            f"and take the part of that."
        )

    return call


def open_parts(tree: nn.Module, host: Host, inserted: Callable[[nn.Module], bool]) -> None:
    """Makes doors of host of the parts of a tree that compute with weights or pass messages, in place.

    Args:
        tree: A module; itself it stays as it is.
        inserted: Whether a module is none of the user's, and stays as it is.
    """
    inner: set[nn.Module] = set()  # of layers that are computed as a whole
    for path, part in tree.named_modules():
        cls = type(part)
        if isinstance(part, WEIGHTED_MODULES):
            inner.update(child for child in part.modules() if child is not part)
        if part is tree or part in inner or isinstance(part, TracedModule | torch.jit.ScriptModule) or inserted(part):
            continue
        if isinstance(part, Part):
            if part._host is not None:
                continue
            cls = part._user_class
        if method_names(cls) and any(map(_computes, (m for m in part.modules() if not inserted(m)))):
            vars(part).update(set_aside(vars(part), cls))
            part.__class__ = part_class(cls, host, path, part)


def set_aside(state: dict[str, Any], user: type[nn.Module]) -> dict[str, Any]:
    """Takes methods that are set on an instance (PyG's ``Sequential`` has its forward there) out of the way of those of
    the class, in place."""
    own = {name: state.pop(name) for name in method_names(user) if callable(state.get(name))}
    if own:
        state[ASIDE] = {**state.get(ASIDE, {}), **own}
    return state


def put_back(state: dict[str, Any]) -> None:
    """Puts the methods that were set aside back on the instance, in place."""
    state.update(state.pop(ASIDE, {}))


def function_of(part: nn.Module, user: type[nn.Module], name: str) -> Callable[..., Any]:
    """Returns a method of the user's as a function that takes the module first."""
    method = vars(part).get(ASIDE, {}).get(name)
    function: Any = getattr(user, name) if method is None else getattr(method, "__func__", None)
    return function or functools.wraps(method)(lambda self, *args, **kwargs: method(*args, **kwargs))


def copy_apart(module: nn.Module) -> nn.Module:
    """Returns a deep copy of a module, or of a part of one, in which nothing is a door."""
    host = module._host if isinstance(module, Part) else None
    copied = deepcopy(module, {} if host is None else {WHOLE: True})
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
    *(object, nn.Module, GraphModule, MessagePassing, Aggregation, Part, *WEIGHTED_MODULES),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict),
)
_MESSAGE_PASSING = frozenset(name for name in dir(MessagePassing) if not hasattr(nn.Module, name))
_NEVER = frozenset(("reset_parameters", "reset", "extra_repr"))


def method_names(user: type[nn.Module]) -> tuple[str, ...]:
    """Returns the methods of a class that code from outside may call to compute something.

    Its own and those of its bases, as far as they are not torch's and PyG's machinery; private ones of the user's.

    Example:
        >>> from torch_geometric.nn import GAE, GCNConv
        >>> method_names(GAE), method_names(GCNConv), method_names(nn.ModuleList)
        (('forward', 'encode', 'decode', 'recon_loss', 'test'), ('forward',), ())
    """
    cls: Any = user  # to mypy a class of modules has no hash
    return _method_names(cls)


@functools.cache
def _method_names(user: Any) -> tuple[str, ...]:
    found = {} if user.forward is nn.Module.forward else {"forward": None}
    for cls in user.__mro__:
        package = module_of(cls).split(".")[0]
        machinery = cls in _BASES or package in ("torch", "lightning", "pytorch_lightning")
        machinery = machinery or issubclass(cls, TracedModule)
        for name, value in vars(cls).items() if not machinery else ():
            private = name.startswith("_") and (name.startswith("__") or package == "torch_geometric")
            known = name in _NEVER or name in _MESSAGE_PASSING or hasattr(nn.Module, name)
            written = type(value) is FunctionType and module_of(value) == module_of(cls)  # not by PyG at run time
            yields = written and (inspect.isgeneratorfunction(value) or inspect.iscoroutinefunction(value))
            if written and not private and not known and not yields:
                found[name] = None
    return tuple(name for name in found if isinstance(inspect.getattr_static(user, name), FunctionType))

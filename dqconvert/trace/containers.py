"""Containers of settings that report which of their parts are read: lists, dicts, tuples, objects."""

from __future__ import annotations

import contextlib
import enum
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from dqconvert.trace.names import module_of

# A path to the module, and the steps from there: ("attr", name) or ("item", key).
_Key = tuple[str, tuple[tuple[str, Any], ...]]
_KEYS = (str, int, float, bool, type(None))


class Watching(Protocol):
    """The receiver of reports."""

    def value(self, key: _Key, value: Any) -> Any:
        """Returns what recorded code gets for a value that it read."""

    def part(self, key: _Key, kind: str) -> None:
        """Records that something about a container was read."""

    def changed(self, key: _Key) -> None:
        """Records that a container was changed."""

    def put(self, key: _Key, step: tuple[str, Any]) -> None:
        """Records that one item, or one attribute, of a container was set."""


class Seen:
    """Mixin of the containers below. A container that other code makes from one of them reports nothing.

    Attributes:
        _key: Where the container is; under a name that no field of a named tuple has.
        _watching: Who is told what is read.
    """

    _key: Any = None
    _watching: Any = None

    def _at(self, step: tuple[str, Any], value: Any) -> Any:
        return value if self._watching is None else self._watching.value((self._key[0], (*self._key[1], step)), value)

    def _tell(self, kind: str, *step: Any) -> None:
        if self._watching is not None:
            self._watching.part((self._key[0], (*self._key[1], *step)), kind)

    def _changes(self) -> None:
        if self._watching is not None:
            self._watching.changed(self._key)


class SeenDict(Seen, dict):
    """A dict of settings."""

    def __getitem__(self, name: Any) -> Any:
        if name in self:
            return self._at(("item", name), dict.__getitem__(self, name))
        return dict.__getitem__(self, name)

    def __setitem__(self, name: Any, value: Any) -> None:
        if self._watching is not None and isinstance(name, _KEYS):
            self._watching.put(self._key, ("item", name))
        else:
            self._changes()
        dict.__setitem__(self, name, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def get(self, name: Any, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  (it would be this)

    def __contains__(self, name: Any) -> bool:
        found = dict.__contains__(self, name)
        if isinstance(name, _KEYS):
            self._tell("in" if found else "not in", ("item", name))
        return found

    def __iter__(self) -> Iterator[Any]:
        self._tell("keys")
        return dict.__iter__(self)

    def __len__(self) -> int:
        self._tell("len")
        return dict.__len__(self)

    def keys(self) -> Any:
        return list(self)

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def __eq__(self, other: Any) -> bool:
        return dict(self.items()) == other

    def copy(self) -> Any:
        return dict(self.items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    __hash__ = None


class _SeenSequence(Seen):
    """Mixin of lists and tuples; ``_usual`` is which of the two."""

    _usual: Any

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._usual(self)[index]
        return self._at(("item", operator.index(index)), self._usual.__getitem__(self, index))

    def __iter__(self) -> Iterator[Any]:
        return iter([self[index] for index in range(len(self))])

    def __len__(self) -> int:
        self._tell("len")
        return self._usual.__len__(self)

    def __contains__(self, value: Any) -> bool:
        return value in list(self)

    def __eq__(self, other: Any) -> bool:
        return self._usual(self) == other

    __hash__ = None  # type: ignore[assignment]


class SeenList(_SeenSequence, list):
    """A list that reports which of its items are read."""

    _usual = list

    def __add__(self, other: Any) -> Any:
        return list(self) + list(other)

    def __mul__(self, times: Any) -> Any:
        return list(self) * times

    def __reversed__(self) -> Iterator[Any]:
        return reversed(list(self))

    def index(self, *args: Any) -> int:
        return list(self).index(*args)

    def count(self, value: Any) -> int:
        return list(self).count(value)

    def copy(self) -> Any:
        return list(self)


class SeenTuple(_SeenSequence, tuple):
    """A tuple of settings; of a named one, its fields."""

    _usual = tuple

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __add__(self, other: Any) -> Any:
        return tuple(self) + other

    def __getattribute__(self, name: str) -> Any:
        fields = type(self).__dict__.get("_own_fields", ())
        return self[fields.index(name)] if name in fields else super().__getattribute__(name)


def _changing(kind: type, name: str) -> Callable[..., Any]:
    usual = getattr(kind, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._changes()
        return usual(self, *args, **kwargs)

    return method


_DICT_CHANGES = ("__delitem__", "clear", "pop", "popitem", "setdefault", "__ior__")
_LIST_CHANGES = ("__setitem__", "__delitem__", "append", "clear", "extend", "insert", "pop", "remove", "reverse")
for _name in _DICT_CHANGES:
    setattr(SeenDict, _name, _changing(dict, _name))
for _name in (*_LIST_CHANGES, "sort", "__iadd__", "__imul__"):
    setattr(SeenList, _name, _changing(list, _name))


def seen(value: Any, key: _Key, watching: Watching) -> Any:
    """Returns a container of the same content that reports what is read of it; ``None`` if it cannot be made.

    An object of a user's class, or of ``argparse`` or ``types``, is changed itself: it must belong to a copy.
    """
    kind: Any = type(value)
    found: Any
    if isinstance(value, dict):
        found = SeenDict(value) if kind is dict and all(isinstance(name, _KEYS) for name in value) else None
    elif isinstance(value, list):
        found = SeenList(value) if kind is list else None
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        named = type(kind.__name__, (SeenTuple, kind), {"_own_fields": tuple(value._fields)})
        found = tuple.__new__(named, value)
    elif isinstance(value, tuple):
        found = tuple.__new__(SeenTuple, value) if kind is tuple else None
    else:
        return _seen_object(value, key, watching)
    if found is not None:
        found._key, found._watching = key, watching
    return found


def _seen_object(value: Any, key: _Key, watching: Watching) -> Any:
    """Gives an object a subclass of its class that reports reads, and returns it."""
    kind: Any = type(value)
    top = module_of(kind).split(".")[0]
    if isinstance(value, enum.Enum):  # one object each, which nobody changes
        return None
    if top in ("", "builtins", "torch", "torch_geometric", "numpy", "dqconvert", "collections", "enum"):
        return None
    usual = kind.__getattribute__

    def read(self: Any, name: str) -> Any:
        found = usual(self, name)
        if name.startswith("__") or name not in _own_names(usual, self, kind):
            return found
        return watching.value((key[0], (*key[1], ("attr", name))), found)

    def made(self: Any, name: str) -> Any:
        found = kind.__getattr__(self, name)
        return found if name.startswith("__") else watching.value((key[0], (*key[1], ("attr", name))), found)

    def write(self: Any, name: str, new: Any) -> None:
        watching.put(key, ("attr", name))
        kind.__setattr__(self, name, new)

    watched = {"__getattribute__": read, "__setattr__": write, "__slots__": (), "__module__": kind.__module__}
    watched |= {"__getattr__": made} if hasattr(kind, "__getattr__") else {}
    with contextlib.suppress(Exception):  # a class of C, one that takes no subclass, whatever a user's metaclass raises
        object.__setattr__(value, "__class__", _subclass(kind, watched))
        return value
    return _stand_in(value, kind, watched)


class _Unannounced:
    """Keeps a user's ``__init_subclass__``, which may register what it is told of, from being told."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        return None


def _subclass(kind: Any, body: dict[str, Any]) -> Any:
    meta: Any = type(kind)
    return meta(kind.__name__, (_Unannounced, kind), body)


def _stand_in(value: Any, kind: Any, watched: dict[str, Any]) -> Any:
    """Returns an object with the same attributes, where an object's class is fixed; ``None`` if none can be made."""
    own = getattr(value, "__dict__", None)
    if not isinstance(own, dict):
        return None
    with contextlib.suppress(TypeError):
        made = kind.__new__(_subclass(kind, {k: v for k, v in watched.items() if k != "__slots__"}))
        made.__dict__.update(own)
        return made
    return None


def _own_names(usual: Callable[..., Any], value: Any, kind: type) -> Any:
    """Returns the plain attributes of an object: its own, and those of its class that are no descriptors."""
    with contextlib.suppress(AttributeError):
        own = usual(value, "__dict__")
        return {*own, *(n for cls in kind.__mro__ for n, v in vars(cls).items() if not hasattr(type(v), "__get__"))}
    return {name for cls in kind.__mro__ for name in getattr(cls, "__slots__", ())}


def followed(value: Any) -> Any:
    """Returns a usual container of what recorded code sees in a reporting one; other values as they are."""
    if isinstance(value, SeenDict):
        return dict(value.items())
    if isinstance(value, SeenList):
        return list(value)
    return tuple.__new__(_usual_class(value), list(value)) if isinstance(value, SeenTuple) else value


def unseen(value: Any) -> Any:
    """Returns the content of a reporting container as a usual one; other values as they are."""
    if isinstance(value, SeenDict):
        return {name: dict.__getitem__(value, name) for name in dict.__iter__(value)}
    if isinstance(value, SeenList):
        return list(list.__iter__(value))
    return tuple.__new__(_usual_class(value), tuple.__iter__(value)) if isinstance(value, SeenTuple) else value


def _usual_class(value: SeenTuple) -> Any:
    return next(cls for cls in type(value).__mro__ if not issubclass(cls, Seen))

"""Python numbers that remember the graph node they came from.

``x.size(0)`` is a plain ``int`` to PyTorch. While recording it is a :class:`TracedInt`: it counts as an ``int``
wherever C code wants one, and arithmetic on it is written into the graph. What cannot be written down is either
re-checked at run time (a comparison becomes a guard) or refused (see :class:`Untraceable`), never lost silently.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

from dqconvert.trace.containers import unseen
from dqconvert.trace.guards import COMPARISONS
from dqconvert.trace.nested import map_items


class Untraceable(Exception):  # noqa: N818  (a signal between the recorder and its driver, not a user's error)
    """Something that a graph cannot hold: the module that does it must stay a float leaf.

    Attributes:
        module: Path of the innermost registered module that was running.
        reason: What it did.
        source: File and line.
    """

    def __init__(self, module: str, reason: str, source: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.module = module
        self.reason = reason
        self.source = source


class NumberRecording(Protocol):
    """The recording that traced numbers write their arithmetic to."""

    recording: bool

    def number(self, value: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Returns the result of arithmetic, as a traced number."""

    def guard(self, left: Any, symbol: str, right: Any) -> bool:
        """Returns the outcome of a comparison, which is repeated whenever the graph runs."""


class Traced:
    """Mixin of the numbers below.

    Attributes:
        node: The graph node that computes the number.
        recorder: The recording it belongs to; when that is over, the number behaves as a plain one.
        from_values: Whether it was read out of a tensor (``index.max().item()``) rather than off a shape.
    """

    node: Node
    recorder: NumberRecording
    from_values: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return (plain_type(self), (plain(self),))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return plain(self)

    def __hash__(self) -> int:
        return hash(plain(self))

    def __bool__(self) -> bool:
        return _compare("!=")(self, 0)

    def __str__(self) -> str:
        return self.__repr__()

    def __repr__(self) -> str:
        _leaves_graph(self)
        return repr(plain(self))

    def __format__(self, spec: str) -> str:
        self.__repr__()
        return format(plain(self), spec)

    def __array_ufunc__(self, ufunc: Any, how: str, *inputs: Any, **options: Any) -> Any:
        """Runs numpy's functions, and arithmetic with numpy's scalars, as Python's own where there is one."""
        own = _UFUNCS.get(ufunc.__name__)
        if own is not None and how == "__call__" and not options and all(isinstance(i, int | float) for i in inputs):
            return _apply(own, *inputs)
        for value in inputs:
            _leaves_graph(value)
        return getattr(ufunc, how)(*map(plain, inputs), **options)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __round__(self, digits: int | None = None) -> Any:
        return _apply(round, self) if digits is None else _apply(round, self, digits)

    def __trunc__(self) -> Any:
        return _apply(math.trunc, self)

    def __floor__(self) -> Any:
        return _apply(math.floor, self)

    def __ceil__(self) -> Any:
        return _apply(math.ceil, self)


class TracedInt(Traced, int):  # type: ignore[misc]
    """An ``int`` that knows its node."""


class TracedFloat(Traced, float):  # type: ignore[misc]
    """A ``float`` that knows its node."""


class KeptFloat(float):
    """A float that recorded code holds: a literal, a default, an attribute of a module.

    ``0.5 * x.size(0)`` asks the left operand first, and a plain ``float`` would swallow the traced number.
    """


def plain_type(value: Traced) -> type:
    """Returns ``int`` or ``float``."""
    return int if isinstance(value, int) else float


def plain(value: Any) -> Any:
    """Returns a traced number as a plain one; other values as they are."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    if isinstance(value, TracedFloat):
        return float.__float__(value)
    return value


def plain_arguments(value: Any) -> Any:
    """Returns arguments with traced numbers as plain ones, as the called code wants them."""
    value = unseen(value)
    return plain(value) if isinstance(value, Traced) else map_items(value, plain_arguments)


def _apply(function: Callable[..., Any], *args: Any) -> Any:
    """Computes a number from numbers and writes the call into the graph."""
    result = function(*map(plain, args))
    recorder = next(arg.recorder for arg in args if isinstance(arg, Traced))
    return recorder.number(result, function, args) if recorder.recording else result


def _binary(function: Callable[[Any, Any], Any], reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, int | float):
            return _apply(function, other, self) if reflected else _apply(function, self, other)
        if function is operator.mul and isinstance(other, list | tuple | str):
            _leaves_graph(self)  # as in ``[0.0] * n``
        return NotImplemented

    return method


def _leaves_graph(value: Any) -> None:
    """Guards a number that becomes text, or the length of a list or a loop."""
    if isinstance(value, Traced) and value.recorder.recording:
        value.recorder.guard(value, "==", plain(value))


def _unary(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: _apply(function, self)


def _compare(symbol: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        if self.recorder.recording:
            return self.recorder.guard(self, symbol, other)
        return COMPARISONS[symbol](plain(self), plain(other))

    return method


# numpy's functions that compute what Python's do. A product of numbers that numpy would wrap around stays exact.
_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "true_divide": operator.truediv,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "power": operator.pow,
    "negative": operator.neg,
    "absolute": operator.abs,
    "maximum": max,
    "minimum": min,
    **{name: getattr(math, name) for name in ("sqrt", "log", "log2", "log10", "log1p", "exp")},
}
_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"]
_BITS = ["lshift", "rshift", "and_", "or_", "xor"]
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
for _cls in (TracedInt, TracedFloat):
    for _name in _BINARY:
        setattr(_cls, f"__{_name}__", _binary(getattr(operator, _name)))
        setattr(_cls, f"__r{_name}__", _binary(getattr(operator, _name), reflected=True))
    for _name, _symbol in _COMPARE.items():
        setattr(_cls, f"__{_name}__", _compare(_symbol))
    for _name in ("neg", "pos", "abs"):
        setattr(_cls, f"__{_name}__", _unary(getattr(operator, _name)))
    setattr(_cls, "__hash__", Traced.__hash__)  # noqa: B010  (defining __eq__ took it away)
for _name in _BITS:
    setattr(TracedInt, f"__{_name.rstrip('_')}__", _binary(getattr(operator, _name)))
    setattr(TracedInt, f"__r{_name.rstrip('_')}__", _binary(getattr(operator, _name), reflected=True))
TracedInt.__invert__ = _unary(operator.invert)  # type: ignore[method-assign]


def _kept(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    usual = getattr(float, f"__{name}__")

    def method(self: float, other: Any) -> Any:
        if isinstance(other, Traced):
            return _apply(function, float(self), other)
        result = usual(self, other)
        return KeptFloat(result) if isinstance(result, float) else result

    return method


for _name in _BINARY:
    setattr(KeptFloat, f"__{_name}__", _kept(_name, getattr(operator, _name)))
    setattr(KeptFloat, f"__r{_name}__", _kept(f"r{_name}", getattr(operator, _name)))


# -- what the names `int`, `float`, `len` … mean to recorded code ------------------------------------------------
# Python converts the result of __int__ and __len__ to a plain int, so recorded modules see these instead.


class _NameOf(type):
    """The class of what stands for a builtin type."""

    builtin: type

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.builtin)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.builtin)

    def __eq__(cls, other: Any) -> bool:
        return other is cls.builtin or other is cls

    def __hash__(cls) -> int:
        return hash(cls.builtin)

    def __call__(cls, value: Any = 0, *args: Any) -> Any:
        return _convert(cls.builtin, value, *args)


class IntName(metaclass=_NameOf):
    """Stands for the builtin ``int`` in the modules that are recorded."""

    builtin = int


class FloatName(metaclass=_NameOf):
    """Stands for the builtin ``float`` in the modules that are recorded."""

    builtin = float


def _convert(kind: type, value: Any, *args: Any) -> Any:
    if isinstance(value, kind) and isinstance(value, Traced):
        return value
    if isinstance(value, Traced):
        return _apply(kind, value)
    if isinstance(value, Tensor):
        item = value.item()
        return item if isinstance(item, kind) else _apply(kind, item) if isinstance(item, Traced) else kind(item)
    return kind(value, *args)


def traced_len(value: Any) -> int:
    """Computes ``len``, and keeps the length of a tensor symbolic."""
    return value.size(0) if isinstance(value, Tensor) and value.dim() > 0 else len(value)


def traced_range(*args: int) -> range:
    """Computes ``range``, and guards its bounds: the loop is unrolled in the graph."""
    for arg in args:
        _leaves_graph(arg)
    return range(*map(plain, args))


def _extremum(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        values = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        numbers = not kwargs and len(values) > 1 and all(isinstance(value, int | float) for value in values)
        if numbers and any(isinstance(value, Traced) for value in values):
            first = values[0]
            for other in values[1:]:
                same = isinstance(first, Traced) and isinstance(other, Traced) and first.node is other.node
                if not same and (isinstance(first, Traced) or isinstance(other, Traced)):
                    first = _apply(function, first, other)
                elif not same:
                    first = function(first, other)
            return first
        return function(*args, **kwargs)

    return method


def _math(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(*args: Any) -> Any:
        if any(isinstance(arg, Traced) for arg in args):
            return _apply(function, *args)
        result = function(*args)
        kept = isinstance(result, float) and any(isinstance(arg, KeptFloat) for arg in args)
        return KeptFloat(result) if kept else result

    return method


BUILTIN_NAMES: dict[str, Any] = {
    "int": IntName,
    "float": FloatName,
    "len": traced_len,
    "range": traced_range,
    "min": _extremum(min),
    "max": _extremum(max),
}
"""Names that recorded modules see instead of the builtins."""

_NOT_OF_NUMBERS = ("trunc", "floor", "ceil", "fsum", "prod", "dist", "sumprod")  # or asked of the numbers by Python

MATH_NAMES: dict[str, Any] = {
    name: _math(function)
    for name, function in vars(math).items()
    if not name.startswith("_") and callable(function) and name not in _NOT_OF_NUMBERS
}
"""Functions of :mod:`math` that would otherwise turn a traced number into a plain one."""

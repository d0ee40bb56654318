"""The state of a file that is being written, which the writers of operations share, and the tables of writers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.errors import ExportError
from dqconvert.onnx.builder import Builder
from dqconvert.onnx.inputs import Given, Inputs
from dqconvert.onnx.stored import Stored
from dqconvert.onnx.values import Sparse, Wire
from dqconvert.ops import TORCH, Op, op_of_layer, package_of
from dqconvert.trace.leaves import has_hooks
from dqconvert.trace.nested import leaves_in
from dqconvert.trace.note import Note

Writer = Callable[..., Any]
"""Writes an operation: takes the :class:`Writing`, then the operation's own arguments; returns its value."""

OPERATIONS: dict[tuple[str, str], Writer] = {}
"""By package and name of the operation's record."""

LAYERS: dict[str, Writer] = {}
"""By the full name of a layer's class: takes the :class:`Writing`, the layer, then forward's arguments."""


def writes(*names: str, package: str = TORCH) -> Callable[[Writer], Writer]:
    """Registers the writer of operations, by the names of their records."""

    def register(writer: Writer) -> Writer:
        OPERATIONS.update({(package, name): writer for name in names})
        return writer

    return register


def writes_layer(*paths: str) -> Callable[[Writer], Writer]:
    """Registers the writer of layers, by the full names of their classes."""

    def register(writer: Writer) -> Writer:
        LAYERS.update(dict.fromkeys(paths, writer))
        return writer

    return register


class Writing:
    """One graph that is being written.

    Args:
        file: What it is written into.
        inputs: What the file takes.
        exact: Whether roundings are arithmetic.
        scatters: Whether the file is for a runtime that neither sorts, compresses nor computes in double precision.
        plain: Whether roundings are pairs of QuantizeLinear and DequantizeLinear and nothing else.

    Attributes:
        real: The type of Python's floats.
        note: Of the node that is being written.
        name: Of that node.
    """

    def __init__(self, file: Builder, inputs: Inputs, *, exact: bool, scatters: bool, plain: bool) -> None:
        self.file = file
        self.inputs = inputs
        self.exact = exact
        self.scatters = scatters
        self.plain = plain
        self.real = torch.float32 if scatters else torch.float64
        self.note = Note()
        self.name = ""
        self._sizes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def refusal(self, why: str) -> ExportError:
        """Returns the error that the node at hand cannot be written."""
        layer = self.note.module or "the model itself"
        return ExportError(f"{self.note.source or '?'}: {self.name}, of {layer}, cannot be written as ONNX: {why}.")

    def known(self, value: Any, note: Note) -> None:
        """Remembers what sizes a value had while tracing."""
        if isinstance(value, Wire):
            self._sizes.setdefault(value.name, note.sizes)

    def fixed_size(self, x: Wire, dim: int) -> int:
        """Returns a size of a value that does not follow the graph.

        Raises:
            ExportError: If it does, or nothing is known.
        """
        found = {sizes[dim] for sizes in self._sizes.get(x.name, ())}
        if len(found) != 1:
            raise self.refusal(f"dimension {dim} follows the graph, and ONNX needs its size")
        return found.pop()

    # -- values ------------------------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: Any, **how: Any) -> Wire:
        """Writes one operation, see :meth:`.builder.Builder.op`."""
        return self.file.op(kind, *(None if one is None else self.wire(one) for one in inputs), **how)

    def wire(self, value: Any) -> Wire:
        """Returns an argument as a value of the file."""
        if isinstance(value, Stored):
            return value.wire(self.file, plain=self.exact)
        if isinstance(value, Given):
            return self.inputs.number(value)
        if not isinstance(value, Wire | Tensor | float | int):
            raise self.refusal(f"an argument is {value!r}")
        return self.file.wire(value)

    def numbers(self, sizes: Any) -> list[int | Wire]:
        """Returns sizes as numbers: of a tuple, or of one that was unpacked."""
        spread = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        return [size if isinstance(size, int) else self.wire(size) for size in spread]

    def math(self, kind: str, *operands: Any, dtype: torch.dtype | None = None, **how: Any) -> Wire:
        """Writes an operation on each entry, of operands that broadcast, in the type that torch computes in.

        Args:
            dtype: Of the result, if it is another.
            how: The operator's attributes.
        """
        wires = self.promoted(*operands)
        result = self.op(kind, *wires, ndim=max(wire.ndim for wire in wires), dtype=dtype or wires[0].dtype, **how)
        return self.number_of(result, *operands)

    def number_of(self, result: Wire, *operands: Any) -> Wire:
        """Returns a result as one of Python's numbers, if what it was computed of are such."""
        return replace(result, number=True) if all(is_number(one) for one in operands) else result

    def whole(self, x: Any) -> Wire:
        """Returns one of Python's integers; of a fraction without what is behind the point."""
        return replace(self.file.cast(self.wire(x), torch.int64), number=True)

    def reals(self, x: Any) -> Wire:
        """Returns a value in the type in which torch computes functions that are no integers."""
        return self.promoted(x, floats=True)[0]

    def promoted(self, *operands: Any, floats: bool = False) -> list[Wire]:
        """Returns operands in the type that torch computes them in.

        Args:
            floats: Whether integers are computed as floats.
        """
        known = [one if isinstance(one, int | float) else self.wire(one) for one in operands]
        parts = [_stand_in(one) for one in known]
        if not any(isinstance(part, Tensor) for part in parts):
            whole = not floats and all(isinstance(part, int) for part in parts)
            return [self.file.cast(one, torch.int64 if whole else self.real) for one in known]
        dtype = torch.result_type(parts[0], parts[0])
        for index, part in enumerate(parts[1:], 1):
            so_far = torch.empty([1] * max(_dims(p) for p in parts[:index]), dtype=dtype, device="meta")
            dtype = torch.result_type(so_far if any(isinstance(p, Tensor) for p in parts[:index]) else parts[0], part)
        if floats and not dtype.is_floating_point:
            dtype = torch.float32
        return [self.file.cast(one, dtype) for one in known]

    def masked(self, x: Any, mask: Wire, axis: int) -> Wire:
        """Returns the slices of a value that a mask, bool ``[slices]``, has."""
        if not self.scatters:
            return self.op("Compress", x, mask, axis=axis)
        places = self.op("NonZero", self.file.cast(mask, torch.float32), dtype=torch.int64, ndim=2)
        return self.file.gather(self.wire(x), self.file.reshape(places, [-1]), axis)

    def require_places(self, index: Wire, name: str) -> None:
        """Has the file fail for a negative place, which ONNX counts from the end. Runtimes refuse too large ones.

        Args:
            index: Integers.
            name: Of the operation that fails, which runtimes say.
        """
        flat = self.op("Concat", self.file.reshape(index, [-1]), torch.tensor([0], dtype=index.dtype), axis=0)
        least = self.op("ReduceMin", flat, ndim=0, keepdims=0)
        self.file.require(self.math("GreaterOrEqual", least, 0, dtype=torch.bool), name)

    # -- operations --------------------------------------------------------------------------------------------------

    def call(self, op: Op, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Writes the call of a function or of a tensor's method; of what is known already, computes it."""
        if not any(isinstance(leaf, Wire | Stored | Given | Sparse) for leaf in leaves_in((args, kwargs))):
            with torch.no_grad():
                return (
                    function(*args, **kwargs) if callable(function) else getattr(args[0], function)(*args[1:], **kwargs)
                )
        if function in ("where", Tensor.where):  # whose condition is the second
            args = (args[1], args[0], *args[2:])
        if op.drops:
            return self._kept(op, function, args, kwargs)
        if op.identity:
            return args[0]
        package = package_of(function) if callable(function) else op.package
        writer = OPERATIONS.get((package, op.name))
        if writer is not None:
            return self.bound(writer, args, kwargs)
        if op.onnx and package == TORCH:
            return self._one(op, args, kwargs)
        raise self.refusal(f"there is no writer of {op.name} of {package}")

    def bound(self, writer: Writer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a writer, which takes what the operation takes."""
        try:
            bound = inspect.signature(writer).bind(self, *args, **kwargs)
        except TypeError as error:
            raise self.refusal(f"it has arguments that its writer does not know ({error})") from error
        return writer(*bound.args, **bound.kwargs)

    def _kept(self, op: Op, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns what a dropout is given: in evaluation it drops nothing, unless it is told to."""
        given = dict(zip(op.parameters, args, strict=False)) | kwargs
        always = function is not None and given.get("training", "alpha" not in op.name)
        if always and given.get("p", 0.5) != 0:
            raise self.refusal(f"{op.name} drops in evaluation, too: pass training=self.training")
        return given["input"]

    def _one(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Wire:
        """Writes an operation that one of ONNX's computes."""
        kind, number = op.onnx, 1 + (op.onnx in _OF_TWO)
        operands = [*args, *(value for name, value in kwargs.items() if name == "other")]
        if number == 1 and all(isinstance(one, bool) for one in operands[1:]):
            operands = operands[:1]  # without whether it is in place
        odd = [name for name, value in kwargs.items() if name not in ("inplace", "other") and value is not None]
        if odd or len(operands) != number:
            raise self.refusal(f"{op.name} with {', '.join(odd) or f'{len(operands)} operands'}")
        wires = self.promoted(*operands, floats=kind not in _ON_INTEGERS)
        truths = wires[0].dtype is torch.bool
        if kind in _LOGICAL and not truths:
            if not op.name.startswith("logical"):
                raise self.refusal(f"{op.name} of the bits of integers")
            wires = [self.file.cast(wire, torch.bool) for wire in wires]
        elif truths and kind in _OF_TRUTHS:
            kind = _OF_TRUTHS[kind]
        elif truths and kind in _ORDERS:
            wires = [self.file.cast(wire, torch.int32) for wire in wires]
        tells = kind in _TELLS or kind in _LOGICAL
        result = self.op(
            kind, *wires, ndim=max(wire.ndim for wire in wires), dtype=torch.bool if tells else wires[0].dtype
        )
        counted = self.number_of(result, *operands)
        return self.whole(counted) if counted.number and kind in _TO_INTEGERS else counted

    def layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Writes the call of a layer that stays whole in graphs."""
        if has_hooks(layer):
            raise self.refusal(f"a {type(layer).__name__} has hooks")
        kind = type(layer)
        writer = LAYERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if writer is not None:
            return self.bound(lambda writing, *a, **k: writer(writing, layer, *a, **k), args, kwargs)
        op = op_of_layer(layer)
        if not op.known:
            raise self.refusal(f"there is no writer of {kind.__module__}.{kind.__qualname__}")
        known = OPERATIONS.get((op.package, op.name))
        names = list(inspect.signature(known).parameters)[2 + len(args) - 1 :] if known is not None else []
        settings = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
        return self.call(op, None, args, {**settings, **kwargs})


_LOGICAL = ("And", "Or", "Xor", "Not")
_ORDERS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_TELLS = ("Equal", *_ORDERS, "IsNaN", "IsInf")
_OF_TWO = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Equal", *_ORDERS, "And", "Or", "Xor")
_ON_INTEGERS = ("Add", "Sub", "Mul", "Max", "Min", "Neg", "Abs", "Sign", "Pow", "Equal", *_ORDERS, *_LOGICAL)
"""What torch computes on integers as such."""
_TO_INTEGERS = ("Floor", "Ceil", "Round")
"""What makes integers of Python's floats."""
_OF_TRUTHS = {"Add": "Or", "Max": "Or", "Mul": "And", "Min": "And"}
"""What torch computes of booleans, which ONNX does not add up."""


def is_number(value: Any) -> bool:
    """Returns True for one of Python's numbers."""
    return value.number if isinstance(value, Wire) else isinstance(value, int | float)


def _stand_in(value: Any) -> Any:
    """Returns what torch takes for a value when it finds the type of a result."""
    if not isinstance(value, Wire):
        return value
    if value.number:
        return 1.0 if value.dtype.is_floating_point else 1
    return torch.empty([1] * value.ndim, dtype=value.dtype, device="meta")


def _dims(value: Any) -> int:
    return value.dim() if isinstance(value, Tensor) else 0

"""The ONNX file under construction: its operations, its constants, and what is known of each of its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from dqconvert.errors import ExportError
from dqconvert.onnx.values import BROADCAST, ENTRY_BY_ENTRY, TYPES, Dim, Operand, Size, Wire

SMALL = 64
"""Entries up to which equal constants are stored once."""


class Builder:
    """A graph of ONNX operations that is being written; equal operations on equal values are written once.

    Attributes:
        nodes: The operations, in order.
        initializers: The constants.
        opset: The lowest version of ONNX's operators that has all of them.
        scope: What the names of new values begin with: the path of the module that is being written.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opset = 18
        self.scope = ""
        self._names: Counter[str] = Counter()
        self._written: dict[Any, list[Wire]] = {}
        self._constants: dict[Any, Wire] = {}
        self._held: dict[str, Wire] = {}
        self._required: list[Wire] = []
        self._conditions: set[str] = set()
        self._numbers: dict[str, Dim] = {}
        self._sizes: dict[str, list[Dim]] = {}

    def name(self, stem: str) -> str:
        """Returns a name that nothing else has."""
        self._names[stem] += 1
        return stem if self._names[stem] == 1 else self.name(f"{stem}_{self._names[stem] - 1}")

    def op(
        self, kind: str, *inputs: Operand | None, dtype: torch.dtype | None = None, ndim: int | None = None, **how: Any
    ) -> Wire:
        """Writes one operation and returns its value.

        Args:
            kind: The operator, as ONNX calls it.
            inputs: What it is computed of; ``None``: an optional input that is left out.
            dtype: Of the result; by default that of the first input.
            ndim: Of the result, likewise.
            how: The operator's attributes.
        """
        wires = [None if one is None else self.wire(one) for one in inputs]
        first = next((wire for wire in wires if wire is not None), Wire("", torch.float32, 0))
        return self.ops(kind, wires, [(dtype or first.dtype, first.ndim if ndim is None else ndim)], **how)[0]

    def ops(
        self, kind: str, wires: Sequence[Wire | None], results: Sequence[tuple[torch.dtype, int]], **how: Any
    ) -> list[Wire]:
        """Writes one operation of several results, of which types and numbers of dimensions are given."""
        names = ["" if one is None else one.name for one in wires]
        while names and not names[-1]:  # where it is named and left out, ONNX Runtime's LayerNormalization crashes
            names.pop()
        key = kind, len(results), *names, *sorted((name, str(value)) for name, value in how.items())
        if key not in self._written:
            name = self.name(f"{self.scope}/{kind}" if self.scope else kind)
            given = [name] if len(results) == 1 else [self.name(f"{name}.{place}") for place in range(len(results))]
            self.nodes.append(helper.make_node(kind, names, given, **how))
            self._written[key] = [Wire(one, *known) for one, known in zip(given, results, strict=True)]
            if len(results) == 1:
                self._note_sizes(kind, [wire for wire in wires if wire is not None], self._written[key][0], how)
        return self._written[key]

    # -- sizes -------------------------------------------------------------------------------------------------------

    def sizes(self, x: Wire) -> list[Dim]:
        """Returns where each size of a value comes from: to ask there spares asking, and sizes that are equal are one.

        Asked for its size, a rounded value would keep runtimes from fusing what computes it.
        """
        return self._sizes.get(x.name) or [(x.name, dim) for dim in range(x.ndim)]

    def set_sizes(self, x: Wire, sizes: Sequence[Dim | None]) -> None:
        """Notes where sizes come from; ``None``: from the value itself."""
        self._sizes[x.name] = [(x.name, dim) if size is None else size for dim, size in enumerate(sizes)]

    def _note_sizes(self, kind: str, wires: list[Wire], result: Wire, how: dict[str, Any]) -> None:
        known = [self.sizes(wire) for wire in wires]
        sizes: list[Dim | None] = []
        if kind in ENTRY_BY_ENTRY:
            sizes = [*known[0]]
        elif kind in BROADCAST:
            for dim in range(-result.ndim, 0):
                found = {one[dim] for one in known if len(one) >= -dim} - {1}
                sizes.append(found.pop() if len(found) == 1 else None if found else 1)
        elif kind == "MatMul" and len(known[1]) == 2:
            sizes = [*known[0][:-1], known[1][-1]]
        elif kind == "Gather":
            axis = how["axis"]
            sizes = [*known[0][:axis], *known[1], *known[0][axis + 1 :]]
        elif kind == "Transpose":
            sizes = [known[0][dim] for dim in how["perm"]]
        elif kind in ("Concat", "Compress", "ScatterND", "ScatterElements"):
            sizes = [
                None if kind in ("Concat", "Compress") and dim == how["axis"] else one
                for dim, one in enumerate(known[0])
            ]
        if sizes:
            self.set_sizes(result, sizes)

    def wire(self, value: Operand) -> Wire:
        """Returns a value of the file: numbers and tensors become constants."""
        return value if isinstance(value, Wire) else self.constant(value)

    def constant(self, value: Tensor | float, dtype: torch.dtype | None = None, name: str = "") -> Wire:
        """Returns a constant; of numbers the type is float32, int64 or bool unless given."""
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().to(dtype or value.dtype).contiguous()
        else:
            tensor = torch.tensor(value, dtype=dtype or (torch.float32 if isinstance(value, float) else None))
        if tensor.dtype not in TYPES:
            raise ExportError(f"ONNX files are written in float32, and a constant is {tensor.dtype}: cast the module.")
        array = tensor.numpy()
        key = (tensor.dtype, tensor.shape, array.tobytes()) if tensor.numel() <= SMALL and not name else None
        if key is None or key not in self._constants:
            wire = Wire(
                self.name(name or (f"{self.scope}/constant" if self.scope else "constant")), tensor.dtype, tensor.dim()
            )
            self.initializers.append(numpy_helper.from_array(array, wire.name))
            self._sizes[wire.name] = list(tensor.shape)
            if key is None:
                return wire
            self._constants[key] = wire
        return self._constants[key]

    def held(self, tensor: Tensor, name: str, small: bool) -> Wire:
        """Returns a constant of a name, the same for the same name.

        Args:
            small: Whether it is of codes of 4 bits, int8 or uint8: they are stored two to a byte, as INT4 or UINT4.
        """
        if name not in self._held:
            self._held[name] = self._nibbles(tensor, name) if small else self.constant(tensor, name=name)
        return self._held[name]

    def _nibbles(self, codes: Tensor, name: str) -> Wire:
        self.opset = max(self.opset, 21)
        kind = TensorProto.INT4 if codes.dtype == torch.int8 else TensorProto.UINT4
        wire = Wire(self.name(name), codes.dtype, codes.dim())
        flat = codes.flatten().numpy().astype(np.uint8) & 15
        flat = np.concatenate([flat, np.zeros(len(flat) % 2, np.uint8)])
        packed = (flat[0::2] | flat[1::2] << 4).tobytes()
        self.initializers.append(helper.make_tensor(wire.name, kind, tuple(codes.shape), packed, raw=True))
        self._sizes[wire.name] = list(codes.shape)
        return wire

    def require(self, condition: Wire, name: str) -> None:
        """Has the file fail where a condition, bool ``[]``, does not hold: then it takes an entry that is not there.

        Args:
            name: Of the operation that fails, which runtimes say.
        """
        if condition.name in self._conditions:
            return
        self._conditions.add(condition.name)
        place = self.op("Where", condition, 0, 1, dtype=torch.int64, ndim=0)
        nothing = self.constant(torch.zeros(1, dtype=torch.int64))
        free = self.name(name)
        self.nodes.append(helper.make_node("Gather", [nothing.name, place.name], [free], name=free))
        self._required.append(Wire(self.nodes[-1].output[0], torch.int64, 0))

    def returned(self, name: str, x: Wire) -> str:
        """Has the file return a value, after everything that it requires, and returns the name that it has there."""
        free = self.name(name)
        self.scope = ""
        if self._required:
            shape = self.wire(self.shape(x))
            for nothing in self._required:
                shape = self.op("Add", shape, nothing)
            self.nodes.append(helper.make_node("Reshape", [x.name, shape.name], [free], allowzero=1))
        else:
            self.nodes.append(helper.make_node("Identity", [x.name], [free]))
        return free

    # -- what many operations need -----------------------------------------------------------------------------------

    def cast(self, value: Operand, dtype: torch.dtype) -> Wire:
        """Returns a value in another type; itself, if it has that."""
        if not isinstance(value, Wire):
            return self.constant(value, dtype)
        return value if value.dtype is dtype else self.op("Cast", value, dtype=dtype, to=TYPES[dtype])

    def shape(self, x: Wire, start: int = 0) -> Operand:
        """Returns sizes of a value from a dimension on, int64 ``[dimensions]``."""
        return self.vector([self.size(x, dim) for dim in range(start, x.ndim)])

    def size(self, x: Wire, dim: int) -> Size:
        """Returns one size of a value: a number, if it is always the same."""
        source = self.sizes(x)[dim]
        if isinstance(source, int):
            return source
        name, place = source
        held = self.op("Shape", Wire(name, x.dtype, place + 1), dtype=torch.int64, ndim=1, start=place, end=place + 1)
        taken = self.op("Squeeze", held, torch.tensor([0]), ndim=0)
        self._numbers[taken.name] = source
        return Wire(taken.name, torch.int64, 0, number=True)

    def vector(self, sizes: Sequence[Size]) -> Operand:
        """Returns numbers as int64 ``[numbers]``."""
        if all(isinstance(size, int) for size in sizes):
            return torch.tensor([int(size) for size in sizes if isinstance(size, int)], dtype=torch.int64)
        parts = [
            self.op("Reshape", size, torch.tensor([1]), ndim=1) if isinstance(size, Wire) else torch.tensor([size])
            for size in sizes
        ]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, dtype=torch.int64, ndim=1, axis=0)

    def reshape(self, x: Wire, sizes: Sequence[Size]) -> Wire:
        """Returns a value in another shape; -1 stands for what is left. A size of 0 is one."""
        result = self.op("Reshape", x, self.vector(sizes), ndim=len(sizes), allowzero=int(-1 not in sizes))
        self.set_sizes(result, [self._source(size) for size in sizes])
        return result

    def _source(self, size: Size) -> Dim | None:
        """Returns where a size comes from; ``None`` if that is not known."""
        if isinstance(size, Wire):
            return self._numbers.get(size.name)
        return None if size == -1 else size

    def unsqueeze(self, x: Wire, *dims: int) -> Wire:
        """Returns a value with further dimensions of size 1, at positions of the result."""
        if not dims:
            return x
        result = self.op("Unsqueeze", x, torch.tensor(dims), ndim=x.ndim + len(dims))
        left = iter(self.sizes(x))
        self.set_sizes(result, [1 if dim in dims else next(left) for dim in range(result.ndim)])
        return result

    def full(self, sizes: Sequence[Size], value: float, dtype: torch.dtype) -> Wire:
        """Returns a tensor of one value."""
        fill = numpy_helper.from_array(torch.tensor([value], dtype=dtype).numpy())
        result = self.op("ConstantOfShape", self.vector(sizes), dtype=dtype, ndim=len(sizes), value=fill)
        self.set_sizes(result, [self._source(size) for size in sizes])
        return result

    def arange(self, end: Size) -> Wire:
        """Returns int64 ``[end]``, from 0 on."""
        result = self.op("Range", 0, end, 1, dtype=torch.int64, ndim=1)
        self.set_sizes(result, [self._source(end)])
        return result

    def gather(self, x: Wire, index: Operand, dim: int = 0) -> Wire:
        """Returns rows of a value along a dimension; of none, if the index is a number."""
        at = self.wire(index)
        return self.op("Gather", x, at, ndim=x.ndim - 1 + at.ndim, axis=dim % x.ndim)

    def sort(self, x: Wire) -> list[Wire]:
        """Returns a vector in ascending order, and the positions of its entries before."""
        results = [(x.dtype, 1), (torch.int64, 1)]
        return self.ops("TopK", [x, self.wire(self.shape(x))], results, axis=0, largest=0, sorted=1)

"""The inputs of a file: forward's tensor arguments, and the tensors in what else it takes (fields of a data object)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from dqconvert.errors import ExportError, InputTypeError
from dqconvert.onnx.builder import Builder
from dqconvert.onnx.values import TYPES, Wire
from dqconvert.rewrite.derive import dimensions, grows
from dqconvert.trace.note import Note

Steps: TypeAlias = tuple[tuple[str, Any], ...]
"""The way to an input: ``("argument", "data")``, then ``("attr", "x")`` or ``("item", "paper")``."""


@dataclass(frozen=True)
class Given:
    """An argument of forward that is no tensor, or a part of one: a data object, a dict, a number."""

    steps: Steps


def name_of(steps: Steps) -> str:
    """Returns what an input is called: as the argument, or by its place in it.

    Example:
        >>> name_of((("argument", "x"),)), name_of((("argument", "data"), ("attr", "x")))
        ('x', 'x')
        >>> name_of((("argument", "edge_index_dict"), ("item", ("paper", "cites", "paper"))))
        'edge_index_dict.paper__cites__paper'
    """
    (_, argument), *parts = steps
    names = ["__".join(map(str, part)) if isinstance(part, tuple) else str(part) for _, part in parts]
    return ".".join(names if parts and parts[0][0] == "attr" else [str(argument), *names])


class Inputs:
    """The inputs of a file under construction.

    Attributes:
        steps: The way to each, by its name.
        infos: What the file says of each, likewise.
    """

    def __init__(self, file: Builder) -> None:
        self._file = file
        self.steps: dict[str, Steps] = {}
        self.infos: dict[str, onnx.ValueInfoProto] = {}

    def argument(self, name: str, note: Note) -> Wire | Given:
        """Returns an argument of forward."""
        steps: Steps = (("argument", name.lstrip("*")),)
        return self.tensor(steps, note) if note.is_tensor else Given(steps)

    def part(self, owner: Given, kind: str, key: Any, note: Note) -> Wire | Given:
        """Returns a part of an argument."""
        steps = (*owner.steps, (kind, key))
        return self.tensor(steps, note) if note.is_tensor else Given(steps)

    def tensor(self, steps: Steps, note: Note) -> Wire:
        """Returns a tensor that the file is given."""
        if note.dtype not in TYPES or note.sparse:
            form = "a sparse matrix" if note.sparse else str(note.dtype)
            raise ExportError(f"input {name_of(steps)!r} is {form}, which ONNX files written here do not take.")
        return self._input(steps, note.dtype, dimensions(note) or [()] * note.ndim)

    def number(self, given: Given) -> Wire:
        """Returns a number that the file is given."""
        wire = self._input(given.steps, torch.int64, [])
        return Wire(wire.name, wire.dtype, 0, number=True)

    def _input(self, steps: Steps, dtype: torch.dtype, sizes: Sequence[tuple[int, ...]]) -> Wire:
        name = name_of(steps)
        if self.steps.get(name, steps) != steps:
            name = ".".join(str(part) for _, part in steps)
        if name not in self.infos:
            self.steps[name] = steps
            shape = [size[0] if size and not grows(size) else f"{name}_{dim}" for dim, size in enumerate(sizes)]
            self.infos[name] = helper.make_tensor_value_info(name, TYPES[dtype], shape)
            self._file.name(name)
            fixed = [size if isinstance(size, int) else None for size in shape]
            self._file.set_sizes(Wire(name, dtype, len(sizes)), fixed)
        return Wire(name, dtype, len(sizes))


def read_steps(text: str) -> dict[str, Steps]:
    """Returns the way to each input, as a file's metadata has it.

    Example:
        >>> read_steps('{"x": [["argument", "data"], ["attr", "x"]]}')
        {'x': (('argument', 'data'), ('attr', 'x'))}
    """
    return {name: _tuples(steps) for name, steps in json.loads(text).items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def feed(
    steps: Mapping[str, Steps], arguments: Mapping[str, Any], types: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Returns what a session takes for a call of forward.

    Args:
        steps: The way to each input.
        arguments: Of forward, by name.
        types: The type of each input, as numpy calls it.

    Raises:
        InputTypeError: If a value is of another type, and would change.
    """
    found = {}
    for name, ((_, argument), *parts) in steps.items():
        value = arguments[str(argument)]
        for kind, key in parts:
            value = getattr(value, str(key)) if kind == "attr" else value[key]
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if not np.can_cast(array.dtype, types[name], casting="same_kind"):
            raise InputTypeError(f"input {name!r} is of {types[name]}, got {array.dtype}")
        cast = array.astype(types[name], copy=False)
        found[name] = np.ascontiguousarray(cast) if cast.ndim else cast
    return found

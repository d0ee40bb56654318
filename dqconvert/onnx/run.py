"""Running an ONNX file in ONNX Runtime, called as the float model's forward is."""

from __future__ import annotations

import inspect
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as pybind11_state

from dqconvert.errors import CheckpointError, InputTypeError, InputValueError
from dqconvert.files import open_file
from dqconvert.onnx.file import PREFIX
from dqconvert.onnx.inputs import Steps, feed, read_steps
from dqconvert.trace.callee import Callee

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
}
"""What numpy calls ONNX Runtime's types."""


_REFUSALS = tuple(getattr(pybind11_state, name) for name in ("Fail", "InvalidArgument", "RuntimeException"))
"""The errors of a call, which have no base of their own."""


class Session:
    """A session of ONNX Runtime over a file that :func:`dqconvert.export.export` wrote.

    Args:
        model: The file, or what is in it.
        threads: How many threads an operation may use; 0: as many as there are cores.
        optimized: Where to write the model as ONNX Runtime runs it.

    Raises:
        CheckpointError: If the file cannot be read, or dqconvert did not write it.
    """

    def __init__(self, model: str | Path | onnx.ModelProto, *, threads: int = 0, optimized: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if _saturates():  # products of uint8 by int8, unless asked not to
            options.add_session_config_entry("session.x64quantprecision", "1")
        if optimized is not None:
            options.optimized_model_filepath = os.fspath(optimized)
        name = "the model" if isinstance(model, onnx.ModelProto) else os.fspath(model)
        if isinstance(model, onnx.ModelProto):
            content = model.SerializeToString()
        else:
            with open_file(model) as file:
                content = file.read()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises errors of many kinds for damaged files
            raise CheckpointError(f"{name}: cannot be read as ONNX: {error}") from error
        about = self._session.get_modelmeta().custom_metadata_map
        if f"{PREFIX}inputs" not in about:
            raise CheckpointError(f"{name}: is an ONNX file that dqconvert did not write.")
        self.model: str = about[f"{PREFIX}model"]
        self.steps: Mapping[str, Steps] = read_steps(about[f"{PREFIX}inputs"])
        self._arguments: dict[str, Any] = json.loads(about[f"{PREFIX}arguments"])
        self._taken = frozenset(str(steps[0][1]) for steps in self.steps.values())
        self._inputs = {one.name: _TYPES[one.type] for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs()]

    @property
    def callee(self) -> Callee:
        """The forward that the file is of, as far as its inputs tell."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = dict.fromkeys([*self._arguments, *self._taken])
        defaults = {name: self._arguments.get(name) for name in names}
        parameters = [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]
        whole = frozenset(str(steps[0][1]) for steps in self.steps.values() if len(steps) == 1)
        parts = [steps for steps in self.steps.values() if len(steps) > 1 and steps[1][0] == "attr"]
        return Callee(
            name=f"{self.model}.forward",
            signature=inspect.Signature(parameters),
            absent=frozenset(names) - self._taken,
            needed=self._taken,
            tensors=whole,
            objects=frozenset(str(steps[0][1]) for steps in parts),
            reads=frozenset(str(steps[1][1]) for steps in parts),
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what forward returns, without anything that is no tensor.

        Raises:
            InputTypeError: If they are others than forward takes, or of other types.
            InputValueError: If ONNX Runtime refuses them.
        """
        try:
            arguments = self.callee.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InputTypeError(f"{self.model}: {error}") from error
        for name in {**dict.fromkeys(sorted(self._taken)), **arguments}:
            value, default = arguments.get(name), self._arguments.get(name)
            if name in self._taken and value is None:
                raise InputTypeError(f"{self.model}: the file takes {name!r}, which is missing")
            if name not in self._taken and value is not None and value is not default:
                raise InputTypeError(f"{self.model}: the file takes no {name!r}: export it with example_inputs that do")
        try:
            found = self._session.run(self._outputs, feed(self.steps, arguments, self._inputs))
        except _REFUSALS as error:
            raise InputValueError(f"{self.model}: ONNX Runtime refuses the inputs: {error}") from error
        result: dict[str, Any] = {}
        for name, value in zip(self._outputs, found, strict=True):
            *owners, last = name.split(".")
            place = result
            for owner in owners:
                place = place.setdefault(owner, {})
            place[last] = torch.from_numpy(value)
        return _nested(result).get("output")


def _saturates() -> bool:
    """True if the processor may lack VNNI instructions: on x86, unless the system says that it has them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True


def _nested(value: Any) -> Any:
    """Returns dicts whose keys are places as tuples."""
    if not isinstance(value, dict):
        return value
    items = {key: _nested(item) for key, item in value.items()}
    return tuple(items.values()) if list(items) == [str(place) for place in range(len(items))] else items

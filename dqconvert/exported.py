"""Exported files, called as the float model's forward is: ``.pt2`` by torch, ``.onnx`` by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from inspect import BoundArguments
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch_geometric.data import HeteroData
from torch_geometric.data.data import BaseData

from dqconvert.errors import CheckpointError, ConfigError, ExportError
from dqconvert.files import open_file
from dqconvert.pt2_inputs import name_of_part
from dqconvert.words import did_you_mean, listed

ENDINGS = (".pt2", ".onnx")


def open_exported(path: str | os.PathLike[str]) -> Callable[[BoundArguments], Any]:
    """Returns a function of the arguments of forward that runs an exported file.

    Raises:
        CheckpointError: If the file cannot be read.
        ConfigError: If it is of another kind.
        ExportError: If onnx or onnxruntime is missing.
    """
    ending = Path(path).suffix
    if ending not in ENDINGS:
        raise ConfigError(f"{path}: an exported file ends in {listed(ENDINGS)}{did_you_mean(ending, ENDINGS)}")
    with open_file(path):
        pass
    if ending == ".onnx":
        try:
            from dqconvert.onnx.run import Session
        except ModuleNotFoundError as error:
            raise ExportError(f"{path}: to run ONNX needs {error.name}: pip install 'dqconvert[onnx]'.") from error
        session = Session(Path(path))
        return lambda call: session(*call.args, **call.kwargs)
    try:
        program = torch.export.load(path)
    except Exception as error:  # whatever torch raises on a damaged archive
        raise CheckpointError(f"{path}: cannot be read by torch.export.load: {error}") from error
    return run_program(program)


def run_program(program: ExportedProgram) -> Callable[[BoundArguments], Any]:
    """Returns a function of the arguments of forward that runs a program, whose inputs have the names of those, or of
    the fields of a data object among them."""
    run, names = program.module(), [str(name) for name in program.graph_signature.user_inputs]

    def call_program(call: BoundArguments) -> Any:
        return run(*(_named(call, name) for name in names))

    return call_program


def _named(call: BoundArguments, name: str) -> Any:
    given = call.arguments
    if name in given:
        return given[name]
    for argument, value in given.items():
        for steps, part in _parts(value):
            if name_of_part(argument, *steps) == name or (isinstance(value, BaseData) and name_of_part(*steps) == name):
                return part
    raise ConfigError(f"the exported program takes {name!r}, which is not among the inputs: {listed(given)}.")


def _parts(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields what is in an argument, and the keys by which it is taken out."""
    if isinstance(value, HeteroData):
        for kind in (*value.node_types, *value.edge_types):
            for field, part in value[kind].items():
                yield (kind, field), part
                yield (f"{field}_dict", kind), part
    elif isinstance(value, BaseData | Mapping):
        items = value.to_dict() if isinstance(value, BaseData) else value
        for key, part in items.items():
            yield (key,), part

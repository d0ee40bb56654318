"""``--example FILE``, ``--calibrate FILE|FOLDER`` and ``--data FILE|FOLDER``: inputs that the user saved."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import BoundArguments
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.data import BaseData, DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import BaseStorage, EdgeStorage, GlobalStorage, NodeStorage

from dqconvert.calibrate import callee_of
from dqconvert.errors import CommandError, ConfigError, DQConvertError, GuardError, InputError
from dqconvert.files import open_file
from dqconvert.trace.given import calls_of, is_single
from dqconvert.weights.archive import load_archive
from dqconvert.words import kind_of, raised


def _new_batch(kind: type, base: type) -> Any:
    """Returns the object that a saved batch is filled into: PyG makes a class for each class of data."""
    if kind is not Batch or base not in (Data, HeteroData):
        raise TypeError(f"a batch of {base}")
    return Batch(_base_cls=base)


class _BatchMaker:
    """Stands for the object of PyG's that a saved batch calls, which may not be called without trust."""

    def __new__(cls) -> Any:
        return _new_batch


_PYG = (BaseStorage, EdgeStorage, GlobalStorage, NodeStorage, DataEdgeAttr, DataTensorAttr)
"""The classes of saved data objects, besides those that PyG itself declares safe to load."""

_BATCHES = (
    *(Batch, Data, HeteroData, type(Batch(_base_cls=Data)), type(Batch(_base_cls=HeteroData)), _new_batch),
    (_BatchMaker, "torch_geometric.data.batch.DynamicInheritanceGetter"),
)
"""The classes of saved batches."""

_ADVICE = "save a Data, a Batch, a list of them, or a tuple or dict of forward's arguments instead"
_ENDINGS = (".pt", ".pth", ".safetensors")


def read_inputs(path: str | os.PathLike[str]) -> Any:
    """Reads inputs: a ``Data``, a ``Batch``, a tuple or dict of tensors, or a list of such. Runs no code of the file.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything else.

    Example:
        >>> import torch
        >>> torch.save((torch.ones(2, 1), torch.tensor([[0], [1]])), "/tmp/example.pt")
        >>> [tuple(tensor.shape) for tensor in read_inputs("/tmp/example.pt")]
        [(2, 1), (2, 1)]
    """
    if os.fspath(path).endswith(".safetensors"):
        with open_file(path):  # a pipe of that name would be waited for
            pass
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # the library raises errors of many kinds for damaged files
            raise CommandError(f"{path}: cannot be read as safetensors: {error}") from error
    return load_archive(path, classes=(*_PYG, *_BATCHES), advice=_ADVICE)


def read_example(path: str | os.PathLike[str]) -> Any:
    """Reads inputs from ``--example``, of which :func:`dqconvert.prepare` takes one call's worth.

    Raises:
        CheckpointError: As :func:`read_inputs`.
        CommandError: If the file holds no inputs.
    """
    return _checked(read_inputs(path), "--example", path)


class SavedInputs:
    """The inputs in a file, or in every file of a folder in the order of their names.

    Args:
        path: A file that :func:`read_inputs` reads, or a folder of such.
        option: What the user gave it as, for messages.

    Raises:
        CommandError: If there is nothing to read.
    """

    def __init__(self, path: str | os.PathLike[str], option: str) -> None:
        place = Path(path)
        self.option = option
        self._where = os.fspath(path)
        self.files = [place]
        if place.is_dir():
            self.files = sorted(file for file in place.iterdir() if file.suffix in _ENDINGS)
            if not self.files:
                raise CommandError(f"{option} {path}: the folder has no file that ends in {', '.join(_ENDINGS)}.")
        elif not place.exists():
            raise CommandError(f"{option} {path}: there is no such file or folder.")
        self.first = _checked(read_inputs(self.files[0]), option, self.files[0])

    def each(self, module: Any, use: Callable[[BoundArguments], Any]) -> Iterator[tuple[float, str, Any]]:
        """Calls ``use`` for one call of a module after the other; yields the share of the work that is done, what the
        inputs are called after their file, and what ``use`` returned.

        Raises:
            CommandError: If the data does not fit the module; it names the file.
        """
        stems = [file.stem for file in self.files]
        for index, file in enumerate(self.files):
            found = self.first if index == 0 else _checked(read_inputs(file), self.option, file)
            callee = callee_of(module)
            items = len(found) if isinstance(found, list | tuple) and not is_single(callee, found) else 1
            label = file.stem if stems.count(file.stem) == 1 else file.name
            calls = calls_of(callee, found)
            for number in itertools.count():
                several = items > 1
                self._where = f"{file}" + (f", number {number}" if several else "")
                with self.fitting():
                    call = next(calls, None)
                    result = None if call is None else use(call)
                if call is None:
                    break
                done = (index + min(number + 1, items) / items) / len(self.files)
                yield done, f"{label}.{number}" if several else label, result

    def calls(self, module: Any) -> Iterator[BoundArguments]:
        """Returns the calls of a module that the inputs stand for."""
        return (call for _, _, call in self.each(module, lambda call: call))

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Names the file that the inputs are from in what is raised."""
        try:
            yield
        except CommandError:
            raise
        except (InputError, ConfigError, GuardError) as error:
            raise CommandError(f"{self.option} {self._where}: does not fit the model: {error}") from error
        except DQConvertError:  # of the model, whatever the inputs are
            raise
        except Exception as error:  # whatever the model raises on inputs that it was not made for
            raise CommandError(f"{self.option} {self._where}: does not fit the model: {raised(error)}") from error


def _checked(found: Any, option: str, path: str | os.PathLike[str]) -> Any:
    """Returns what a file holds if it is inputs, and raises otherwise."""
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else [found]
    if not any(isinstance(part, BaseData | Tensor | dict | list | tuple) for part in parts):
        what = kind_of(found) + (" of nothing" if isinstance(found, list | tuple | dict) and not found else "")
        raise CommandError(f"{option} {path}: holds {what}, not a Data, nor a tuple or dict of tensors.")
    return found

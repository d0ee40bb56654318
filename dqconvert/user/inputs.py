"""``--example FILE``, ``--calibrate FILE|FOLDER`` and ``--data FILE|FOLDER``: inputs that the user saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.data.data import BaseData, DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import BaseStorage, EdgeStorage, GlobalStorage, NodeStorage

from dqconvert.calibrate import calibrate
from dqconvert.errors import CommandError, DQConvertError
from dqconvert.weights.archive import load_archive

_PYG = (BaseStorage, EdgeStorage, GlobalStorage, NodeStorage, DataEdgeAttr, DataTensorAttr)
"""What saved data objects are made of, besides the classes that PyG itself declares safe to load."""

_ADVICE = "save a Data, a list of them (batch.to_data_list()), or a tuple or dict of forward's arguments instead"
_ENDINGS = (".pt", ".pth", ".safetensors")


def read_inputs(path: str | os.PathLike[str]) -> Any:
    """Inputs from a file: a ``Data``, a tuple or dict of tensors, or a list of such. No code in it is run.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything else.

    Example:
        >>> import torch
        >>> torch.save((torch.ones(2, 1), torch.tensor([[0], [1]])), "/tmp/example.pt")
        >>> [tuple(tensor.shape) for tensor in read_inputs("/tmp/example.pt")]
        [(2, 1), (2, 1)]
    """
    if os.fspath(path).endswith(".safetensors"):
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # the library raises errors of many kinds for damaged files
            raise CommandError(f"{path}: cannot be read as safetensors: {error}") from error
    return load_archive(path, classes=_PYG, advice=_ADVICE)


def read_example(path: str | os.PathLike[str]) -> Any:
    """One call's worth of inputs, from ``--example``; of a list, the first.

    Raises:
        CheckpointError: As :func:`read_inputs`.
        CommandError: If the file holds no inputs.
    """
    found = read_inputs(path)
    inputs = _items(found)
    if not inputs:
        raise CommandError(f"--example {path}: holds {_words(found)}, not a Data, nor a tuple or dict of tensors.")
    return inputs[0]


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
        self.files = [place]
        if place.is_dir():
            self.files = sorted(file for file in place.iterdir() if file.suffix in _ENDINGS)
            if not self.files:
                raise CommandError(f"{option} {path}: the folder has no file that ends in {', '.join(_ENDINGS)}.")
        elif not place.exists():
            raise CommandError(f"{option} {path}: there is no such file or folder.")
        self.first = read_inputs(self.files[0])

    def each(self, use: Callable[[Any], Any]) -> Iterator[tuple[float, Any]]:
        """Calls ``use`` for one call's worth of inputs after the other; yields the share of the work that is done, and
        what it returned.

        Raises:
            CommandError: If the data does not fit the model; it names the file.
        """
        for index, file in enumerate(self.files):
            found = self.first if index == 0 else read_inputs(file)
            items = _items(found)
            if not items:
                raise CommandError(f"{self.option} {file}: holds {_words(found)}, not inputs of the model.")
            for number, item in enumerate(items):
                where = f"{file}" + (f", number {number}" if len(items) > 1 else "")
                result = self._used(use, item, where)
                yield (index + (number + 1) / len(items)) / len(self.files), result

    def calibrate(self, module: nn.Module) -> Iterator[float]:
        """Calibrates a module, and yields the share of the work that is done."""
        for done, _ in self.each(lambda item: calibrate(module, item)):
            yield done

    def _used(self, use: Callable[[Any], Any], item: Any, where: str) -> Any:
        try:
            return use(item)
        except DQConvertError as error:
            raise CommandError(f"{self.option} {where}: does not fit the model: {error}") from error
        except Exception as error:  # whatever the model raises on inputs that it was not made for
            first = (str(error).splitlines() or [""])[0]
            message = f"{self.option} {where}: does not fit the model: {type(error).__name__}: {first}"
            raise CommandError(message) from error


def _items(found: Any) -> list[Any]:
    """What a file holds, as a list of calls' inputs; empty if it is something else."""
    if _is_inputs(found):
        return [found]
    several = isinstance(found, list | tuple) and found and all(map(_is_inputs, found))
    # A graph of a list is a batch of one, as a loader would make it: with `batch`, `ptr` and `num_graphs`.
    return [Batch.from_data_list([item]) if type(item) is Data else item for item in found] if several else []


def _is_inputs(value: Any) -> bool:
    if isinstance(value, BaseData | Tensor):
        return True
    if isinstance(value, dict):
        return bool(value) and any(isinstance(item, Tensor | dict) for item in value.values())
    return isinstance(value, tuple) and any(isinstance(item, Tensor | dict) for item in value)


def _words(value: Any) -> str:
    return f"a {type(value).__name__}" + ("" if not isinstance(value, list | tuple | dict) or value else " of nothing")

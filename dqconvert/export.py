"""``export``: a module as a file for other runtimes, ONNX or torch.export's. Each format is a function here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from torch import nn

from dqconvert.errors import ExportError
from dqconvert.expect import expect_path, expect_quantized
from dqconvert.files import check_target, write_file
from dqconvert.pt2 import pt2_bytes
from dqconvert.words import did_you_mean, listed

Target: TypeAlias = Literal["onnxruntime", "tensorrt", "openvino"]


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    format: str | None = None,
    exact: bool = False,
    target: Target | None = None,
) -> None:
    """Writes a module as one file for other runtimes. The module is not changed.

    Args:
        module: A prepared module with ranges; as ``"pt2"`` also an integer module.
        path: Where to write: ``"model.onnx"``, ``"model.pt2"``. The file is written whole or not at all.
        example_inputs: Arguments of forward, as :func:`dqconvert.prepare` takes them: they choose among the graphs of a
            forward that was called on several forms of arguments. ``None``: those that it was prepared with.
        format: ``"onnx"`` or ``"pt2"``; ``None``: what the path ends in.
        exact: ONNX: write roundings as arithmetic whose ties fall as in training, which runtimes do not turn into
            integer operations.
        target: ONNX: the runtime that the file is for, ``"onnxruntime"``, ``"tensorrt"`` or ``"openvino"``: what that
            cannot take is refused.

    Raises:
        ExportError: If the format is unknown, what it needs is not installed, or the module holds what it cannot say;
            the message names the operation, its layer and its line.
        CheckpointError: If the file cannot be written.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4))
        >>> dqconvert.calibrate(module, (torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])))
        >>> dqconvert.export(module, "/tmp/sage.onnx")
        >>> dqconvert.export(module, "/tmp/sage.onx")
        Traceback (most recent call last):
            ...
        dqconvert.errors.ExportError: /tmp/sage.onx: its ending is no format; did you mean 'onnx'?: there are onnx, pt2.
    """
    expect_quantized(module, "export", error=ExportError)
    place = Path(expect_path(path, "export"))
    name = format_of(place, format)
    check_target(place)
    write_file(place, [FORMATS[name](module, example_inputs, exact, target)])


def format_of(path: str | os.PathLike[str], format: str | None = None) -> str:
    """Returns the format of a file: as given, or by the ending of its name.

    Raises:
        ExportError: If there is no such format.

    Example:
        >>> format_of("gcn.onnx"), format_of("gcn", "pt2")
        ('onnx', 'pt2')
    """
    name = format or Path(path).suffix.removeprefix(".")
    if name not in FORMATS:
        found = f"format={format!r}" if format else f"{os.fspath(path)}: its ending"
        raise ExportError(f"{found} is no format{did_you_mean(name, FORMATS)}: there are {listed(FORMATS)}.")
    return name


def _onnx(module: nn.Module, example_inputs: Any, exact: bool, target: Target | None) -> bytes:
    try:
        from dqconvert.onnx.file import file_of
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "onnx":
            raise
        raise ExportError("format='onnx' needs the package onnx: pip install 'dqconvert[onnx]'.") from error
    return file_of(module, example_inputs, exact=exact, target=target)


def _pt2(module: nn.Module, example_inputs: Any, exact: bool, target: Target | None) -> bytes:
    if exact or target is not None:
        raise ExportError("format='pt2': exact and target are about ONNX: every .pt2 is exact.")
    return pt2_bytes(module, example_inputs)


FORMATS: Mapping[str, Callable[[nn.Module, Any, bool, Target | None], bytes]] = MappingProxyType(
    {"onnx": _onnx, "pt2": _pt2}
)
"""By ending: what returns the bytes of a file of that format."""

"""``dqconvert run``: runs an integer file, or an exported one, on saved inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from inspect import BoundArguments
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from dqconvert.checkpoint import holds_integer, load
from dqconvert.checkpoint.container import plain_chunks
from dqconvert.commands.options import Output
from dqconvert.errors import CommandError, ConfigError, UsageError
from dqconvert.files import check_target, write_file
from dqconvert.infer import infer
from dqconvert.lower import IntegerModule
from dqconvert.user.inputs import SavedInputs
from dqconvert.words import count


def run(
    file: Path, data: Path, output: Output, *, out: Path | None = None, within: tuple[str, Path] | None = None
) -> None:
    """Runs an integer file, or an ONNX file, on saved inputs, and writes or describes what it returns.

    Args:
        data: Inputs, see :class:`dqconvert.user.inputs.SavedInputs`.
        output: Whether to replace a file, and what to print.
        out: Where to write the outputs as safetensors, named after the files of the inputs: ``graph`` for ``graph.pt``,
            ``graphs.0`` for the first of the list in ``graphs.pt``, with more parts to the name where there are several
            outputs; ``None``: nowhere.
        within: The memory to run in, and the folder for the rest, see :func:`dqconvert.infer`; ``None``: all there is.

    Raises:
        DQConvertError: If anything is wrong; its class says what.
    """
    if out is not None:
        check_target(out, overwrite=output.force)
    if within is not None and file.suffix == ".onnx":
        raise UsageError(f"{file}: --memory is for integer files, and ONNX Runtime takes what it needs.")
    module = session_of(file) if file.suffix == ".onnx" else load_integer(file)
    inputs = SavedInputs(data, "--data")
    found: dict[str, Tensor] = {}
    times: list[float] = []
    console = Console(stderr=True)
    silent = output.quiet or output.as_json or not console.is_terminal

    def call(given: BoundArguments) -> tuple[dict[str, Tensor], float]:
        if within is None:
            return _call(module, given)
        if times:
            raise CommandError(f"--data {data}: holds several graphs, and --memory runs one.")
        run_in = partial(infer, module, memory=within[0], store=within[1], progress=not silent)
        try:
            return _call(run_in, given, whole=True)
        except ConfigError as error:  # of the memory or the store, not of the data
            raise CommandError(str(error)) from error

    with Progress(console=console, transient=True, disable=silent or within is not None) as progress:
        task = progress.add_task("running", total=1.0)
        for done, label, (outputs, seconds) in inputs.each(module, call):
            found |= {f"{label}{name}": value for name, value in outputs.items()}
            times.append(seconds)
            progress.update(task, completed=done)
    if out is not None:
        check_target(out, overwrite=output.force)
        write_file(out, plain_chunks(found))
    if output.as_json:
        typer.echo(json.dumps(_summary(file, found, times, out), indent=2))
    elif not output.quiet:
        _show(found, times, out)


def session_of(file: Path) -> Any:
    """Returns an ONNX file, ready to run in ONNX Runtime.

    Raises:
        CheckpointError: If the file cannot be read, or dqconvert did not write it.
        CommandError: If ONNX Runtime is not installed.
    """
    try:
        from dqconvert.onnx.run import Session
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        raise CommandError(f"{file}: runs in ONNX Runtime: pip install 'dqconvert[onnx]'.") from error
    return Session(file)


def load_integer(file: Path) -> IntegerModule:
    """Returns the integer module in a file.

    Raises:
        CheckpointError: If the file cannot be read.
        CommandError: If it holds another kind of module.
    """
    if file.suffix == ".pt2" and file.exists():
        raise CommandError(
            f"{file}: is a program of torch.export: call torch.export.load({str(file)!r}).module(), or see what "
            f"`dqconvert evaluate` says of it."
        )
    if not holds_integer(file):
        raise CommandError(f"{file}: holds a prepared module: make integers of it with `dqconvert convert --integer`.")
    return load(file)


def _call(module: Callable[..., Any], call: BoundArguments, *, whole: bool = False) -> tuple[dict[str, Tensor], float]:
    """Returns the outputs by name, and the seconds; ``whole``: the module takes the call as it is."""
    start = time.perf_counter()
    result = module(call) if whole else module(*call.args, **call.kwargs)
    seconds = time.perf_counter() - start
    return dict(_tensors(result)), seconds


def _tensors(result: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Returns every tensor in what a forward returned, with its path."""
    if isinstance(result, Tensor):
        return [(name, result.detach().contiguous())]
    parts = (
        result.items() if isinstance(result, dict) else enumerate(result) if isinstance(result, list | tuple) else ()
    )
    return [found for key, value in parts for found in _tensors(value, f"{name}.{key}")]


def _summary(file: Path, found: dict[str, Tensor], times: list[float], out: Path | None) -> dict[str, Any]:
    return {
        "file": str(file),
        "outputs": [{"name": name, **_described(value)} for name, value in found.items()],
        "seconds": times,
        "out": None if out is None else str(out),
    }


def _described(value: Tensor) -> dict[str, Any]:
    numbers = value if value.numel() and not value.is_complex() else torch.zeros(1)
    ends = [float(end) if torch.isfinite(end) else None for end in numbers.aminmax()]
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "min": ends[0],
        "max": ends[1],
    }


def _show(found: dict[str, Tensor], times: list[float], out: Path | None) -> None:
    table = Table("output", "shape", "dtype", "smallest", "largest")
    for name, value in found.items():
        row = _described(value)
        ends = ["not finite" if row[end] is None else f"{row[end]:.4g}" for end in ("min", "max")]
        table.add_row(name, str(tuple(row["shape"])), row["dtype"], *ends)
    Console().print(table)
    first = f"{count(len(times), 'call')}: the first took {1000 * times[0]:.2f} ms, preparations included"
    typer.echo(first + (f", the fastest of the others {1000 * min(times[1:]):.2f} ms" if len(times) > 1 else ""))
    if out is not None:
        typer.echo(f"{out}: written")

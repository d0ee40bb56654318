"""``infer``: an integer module on a whole graph, in bounded memory: what does not fit lies in files."""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.fx import Graph

import dqconvert
from dqconvert.calibrate import callee_of
from dqconvert.errors import ArgumentError, ConfigError, LoweringError
from dqconvert.files import AnyPath
from dqconvert.lower import IntegerModule
from dqconvert.lower.replay import by_name
from dqconvert.lower.staged.kinds import is_argument
from dqconvert.lower.staged.run import Run, resident
from dqconvert.lower.staged.stages import Stages
from dqconvert.lower.staged.whole import WholeGraph
from dqconvert.ops import qualified_name
from dqconvert.prepared.arguments import tensor_inputs
from dqconvert.store import Store, digest
from dqconvert.trace.given import calls_of
from dqconvert.trace.hooks import of_torch, tables
from dqconvert.trace.method import fits
from dqconvert.trace.nested import map_items
from dqconvert.words import kind_of, shortened

_UNITS = {"B": 1, **{f"{prefix}iB": 1 << 10 * (k + 1) for k, prefix in enumerate("KMGT")}}
_UNITS |= {f"{prefix}B": 1000 ** (k + 1) for k, prefix in enumerate("kMGT")}


def infer(
    integer: Any,
    data: Any,
    *,
    memory: str | int = "2GiB",
    store: AnyPath,
    chunk: int | None = None,
    progress: bool = True,
) -> Any:
    """Runs an integer module on a whole graph within a given memory, and returns what its forward returns.

    The outputs are those of ``integer(...)``, bit for bit. The graph is cut into stages where an operation reads other
    nodes' rows, and each stage goes over chunks of nodes. Edges are sorted by receiver once; they and what one stage
    hands to the next, codes of 8 bits mostly, lie in files in ``store``. If the process is killed, the same call goes
    on behind the last chunk that was finished.

    Args:
        integer: What :func:`dqconvert.convert` returned, or :func:`dqconvert.load` of an integer file; on the CPU.
        data: One call's worth of inputs, as for :func:`dqconvert.calibrate`. Tensors and numpy arrays may lie in files
            that are mapped into memory: ``numpy.load(file, mmap_mode="r")``, ``torch.from_file(..., shared=True)``.
        memory: What the process may hold, all in all: bytes, or ``"1.5GiB"``, ``"800MB"``. It counts what is there
            already, the inputs that are no files among it. One thing is made of all edges at once: the norm of a GCN
            whose edges have weights, which takes 40 bytes an edge while it is made.
        store: A folder, made if it is missing, on a disk: of the inputs' size and more. It is left with the outputs.
        chunk: Rows of a chunk at most. ``None``: as many as the memory allows.
        progress: Show a progress bar, if standard error is a terminal.

    Returns:
        The outputs; rows of nodes as tensors over the files in ``store``, read where they are looked at.

    Raises:
        ConfigError: If the memory is too small (it says what is missing), the data is not one graph's, or the folder
            holds something else, say the work on another graph.
        LoweringError: If an operation may read other nodes' rows in a way that is not known; it names it.
        InputError: As the module raises it, for edges without an end, NaN, and features of another width or type.

    Example:
        >>> import tempfile, torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, report = dqconvert.prepare(GCN(16, 32, num_layers=2, out_channels=7), "int8-dq")
        >>> x, edge_index = torch.randn(50, 16), torch.randint(50, (2, 200))
        >>> dqconvert.calibrate(module, (x, edge_index))
        >>> integer = dqconvert.convert(module)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = dqconvert.infer(integer, (x, edge_index), memory="16GiB", store=folder)
        ...     torch.equal(found, integer(x, edge_index))
        True
    """
    module = _expected(integer)
    limit = bytes_of(memory)
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ConfigError(f"infer takes as chunk a whole number of rows from 1 on, or None, got {shortened(chunk)}.")
    graph, given = _call(module, data)
    stages = Stages(graph, module)
    whole = WholeGraph(stages.rows, module, given, lambda: limit - resident(release=True))
    folder = Store(store, _fingerprint(stages, whole, module))
    try:
        run = Run(stages, whole, module, folder, lambda: limit - resident(release=True), chunk)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not progress or not console.is_terminal) as bar:
            task = bar.add_task("sorting edges", total=run.total)
            for what, done in run.work():
                bar.update(task, description=what, completed=done)
        return run.result()
    finally:
        folder.close()


def bytes_of(memory: Any) -> int:
    """Returns an amount of memory in bytes.

    Raises:
        ConfigError: If it is none.

    Example:
        >>> bytes_of("1.5KiB"), bytes_of(7)
        (1536, 7)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", memory) if isinstance(memory, str) else None
    if found is not None and found[2] in _UNITS:
        size = int(float(found[1]) * _UNITS[found[2]])
    else:
        size = memory if isinstance(memory, int) and not isinstance(memory, bool) else 0
    if size < 1:
        units = ", ".join(_UNITS)
        raise ConfigError(
            f'memory is a number of bytes, or a text as "2GiB" (units: {units}), got {shortened(memory)}.'
        )
    return size


# -- what is given -------------------------------------------------------------------------------------------------


def _expected(integer: Any) -> IntegerModule:
    if not isinstance(integer, IntegerModule):
        raise ConfigError(
            f"infer takes an integer module, as dqconvert.convert returns it, got {kind_of(integer)}: convert it first."
        )
    for path, child in integer.named_modules():
        if any(not all(map(of_torch, hooks.values())) for _, hooks in tables(child)):
            raise LoweringError(f"infer runs no hooks, and {path or 'the module'!r} has some: remove them first.")
    if any(not value.is_cpu for value in (*integer.parameters(), *integer.buffers())):
        raise ConfigError("infer runs on the CPU: move the module there, integer.to('cpu').")
    return integer


def _call(module: IntegerModule, data: Any) -> tuple[Graph, Mapping[str, Any]]:
    """Returns the graph for the inputs, and these by the names of its arguments."""
    calls = list(itertools.islice(calls_of(callee_of(module), _tensors(data)), 2))
    if len(calls) != 1:
        raise ConfigError(f"infer takes the inputs of one call, got {'several' if calls else 'none'}.")
    args, kwargs = calls[0].args, calls[0].kwargs
    graphs = [method.graph for method in module.all_methods() if method.name == module.called_method]
    graph = next((graph for graph in graphs if fits(graph, args, kwargs)), None)
    if graph is None:
        raise ArgumentError(f"infer: no graph of {module.called_method} takes arguments of this form.")
    given = by_name(calls[0])
    for one in tensor_inputs(graph):
        value = one.of(args, kwargs)
        if not isinstance(value, Tensor):
            continue
        if one.index and one.note.ndim == 2:
            one.check(value[..., :0], module, squeezes=True)  # edges are made int64 block by block
            continue
        new = one.check(value, module, squeezes=True)
        if new is not value and not one.keys:
            given[one.keyword] = new
    return graph, given


def _tensors(data: Any) -> Any:
    """Returns inputs with tensors in the place of numpy arrays, over the same memory."""
    if isinstance(data, np.ndarray):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes into it
            return torch.from_numpy(data)
    return map_items(data, _tensors) if isinstance(data, tuple | list | dict) else data


def _fingerprint(stages: Stages, whole: WholeGraph, root: nn.Module) -> str:
    """Returns what stands for a module on a graph: operations, constants, arguments."""
    found = hashlib.sha256(dqconvert.__version__.encode())
    for node in stages.graph.nodes:
        found.update(f"{node.name} {node.op} {qualified_name(node)} {node.args} {node.kwargs}".encode())
        if node.op == "get_attr" and isinstance(value := whole.of(node), Tensor):
            found.update(digest(value, False).encode())
        elif node.op == "call_module":
            layer = root.get_submodule(str(node.target))
            found.update(repr(layer).encode())
            for name, value in layer.state_dict().items():
                found.update(f"{name} {digest(value, False)}".encode())
        elif is_argument(node):
            value = whole.of(node)
            tensor = isinstance(value, Tensor)
            found.update((digest(value, whole.lies_in_file(node)) if tensor else _written(value)).encode())
    return found.hexdigest()


def _written(value: Any) -> str:
    """Returns a number or a word as text; of what tensors are taken out of, nothing: these are looked at."""
    return repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__

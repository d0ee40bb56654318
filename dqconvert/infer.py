"""``infer``: an integer module on a whole graph, in bounded memory: what does not fit lies in files."""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

import dqconvert
from dqconvert.calibrate import callee_of
from dqconvert.errors import ArgumentError, ConfigError, LoweringError
from dqconvert.files import AnyPath
from dqconvert.kernels._buffers import release_memory
from dqconvert.lower import IntegerModule
from dqconvert.lower.replay import by_name
from dqconvert.lower.staged.chunks import Chunk, Costs
from dqconvert.lower.staged.csr import Orders
from dqconvert.lower.staged.kinds import Nodes, is_argument
from dqconvert.lower.staged.stages import Stage, Stages
from dqconvert.lower.staged.whole import WholeGraph
from dqconvert.ops import qualified_name
from dqconvert.prepared.arguments import tensor_inputs
from dqconvert.store import Array, Store, digest
from dqconvert.trace.given import calls_of
from dqconvert.trace.hooks import of_torch, tables
from dqconvert.trace.method import fits
from dqconvert.trace.nested import map_items
from dqconvert.words import kind_of, shortened

_ALIGNED = 64
"""Rows that chunks are multiples of, so that vectors of floats are the same as in the whole."""

_MOST = 1 << 20
"""Rows of a chunk whatever the memory: so many ends of lists of edges are read at once."""

_SPARE = 2
"""How much more than the rows themselves a chunk may take: what operations need on the way."""

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
            already, the inputs that are no files among it.
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
    whole = WholeGraph(stages.rows, module, given)
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


def resident(*, release: bool = False) -> int:
    """Returns the bytes of memory that this process holds; ``release``: what is free goes back to the system first."""
    if release:
        release_memory()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) << 10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # elsewhere the most that it ever held, in bytes
    return int(most)


class Run:
    """The work on one graph.

    Args:
        stages: The graph of operations in stages.
        whole: The graph of nodes and edges.
        root: The module.
        store: Holds what is between stages, and how much is done.
        room: Returns the bytes that may be used from now on.
        chunk: Rows of a chunk at most.

    Attributes:
        total: Rows of all stages.
    """

    def __init__(
        self,
        stages: Stages,
        whole: WholeGraph,
        root: nn.Module,
        store: Store,
        room: Callable[[], int],
        chunk: int | None = None,
    ) -> None:
        self._stages, self._whole, self._root, self._store = stages, whole, root, store
        self._room, self._chunk = room, _MOST if chunk is None else chunk
        orders = (order for stage in stages.stages for order in stage.orders)
        self._orders = Orders(whole, store, orders, stages.listed)
        self.total = sum(whole.count(stage.space) for stage in stages.stages)

    def work(self) -> Iterator[tuple[str, int]]:
        """Does what is left to do; yields what it is at, and how many rows are done."""
        stages, before = self._stages.stages, 0
        for number, stage in enumerate(stages, 1):
            name, rows = f"stage_{number}", self._whole.count(stage.space)
            if rows == 0 or self._store.done(name) < rows:
                for order in stage.orders:
                    yield "sorting edges", before
                    self._orders.sort(order, self._room())
                for done in self._stage(stage, name, rows):
                    yield f"stage {number} of {len(stages)}", before + done
            before += rows
            self._tidy(number)

    def result(self) -> Any:
        """Returns what the forward returns."""
        (output,) = self._stages.graph.find_nodes(op="output")
        return map_arg(output.args[0], self._output)

    def _output(self, node: Node) -> Any:
        kind = self._stages.rows.kinds[node]
        if not isinstance(kind, Nodes) or node in self._stages.rows.given:
            return self._whole.of(node)
        return self._array(node).mapped(private=True)

    def _array(self, node: Node) -> Array:
        return self._store.array(node.name)

    def _chunk_of(self, stage: Stage, start: int, stop: int, window: int | None) -> Chunk:
        parts = {"whole": self._whole, "root": self._root, "orders": self._orders, "array": self._array}
        return Chunk(stage, start, stop, window=window, **parts)  # type: ignore[arg-type]

    def _stage(self, stage: Stage, name: str, rows: int) -> Iterator[int]:
        """Computes the rows of a stage that are not there; yields how many are."""
        empty = self._chunk_of(stage, 0, 0, 1)
        for node, found in empty.run().items():
            self._store.array(node.name, (rows, *found.shape[1:]), found.dtype)
        room = self._room()
        crossing = sum(self._bytes(node) for node in dict.fromkeys(node for node, _ in stage.sent))
        window = None if crossing <= room // 3 else max(1, min(room // 8, 1 << 26))
        costs = Costs(empty, stage, self._whole, copies=window is not None)
        room -= crossing if window is None else window
        start = self._store.done(name)
        while start < rows:
            stop = start + self._fitting(stage, costs, start, rows, room)
            for node, found in self._chunk_of(stage, start, stop, window).run().items():
                self._array(node).write(start, found)
            self._store.finish(name, stop)
            start = stop
            yield start
        for node, _ in stage.sent:
            if node not in self._stages.rows.given:
                self._array(node).release()

    def _bytes(self, node: Node) -> int:
        """Returns how much of the memory all rows of a value take that is not taken already."""
        if node not in self._stages.rows.given:
            array = self._array(node)
            return array.shape[0] * array.row_bytes
        return int(self._whole.of(node).nbytes) if self._whole.lies_in_file(node) else 0

    def _fitting(self, stage: Stage, costs: Costs, start: int, rows: int, room: int) -> int:
        """Returns how many rows from one on fit into memory.

        Raises:
            ConfigError: If not even that one does.
        """
        count = min(rows - start, self._chunk)
        spent = torch.arange(1, count + 1) * costs.row
        for order, cost in costs.edge.items():
            ptr = self._orders.files(order).ptr.read(start, start + count + 1)
            spent += (ptr[1:] - ptr[0]) * cost
        fitting = int(torch.searchsorted(spent * _SPARE, max(room, 0), right=True))
        if fitting == 0:
            lacking = int(spent[0]) * _SPARE - room
            raise ConfigError(
                f"memory is too small: node {start} with its edges takes {int(spent[0]) * _SPARE:,} bytes, which is "
                f"{lacking:,} more than there are beside the {resident():,} that the process holds."
            )
        return fitting if fitting < _ALIGNED or fitting == count else fitting // _ALIGNED * _ALIGNED

    def _tidy(self, number: int) -> None:
        """Deletes what no stage behind one reads."""
        stages = self._stages.stages
        (output,) = self._stages.graph.find_nodes(op="output")
        needed = {*output.all_input_nodes}
        for stage in stages[number:]:
            needed |= {*stage.reads, *(node for node, _ in stage.sent)}
        for node in itertools.chain.from_iterable(stage.results for stage in stages[:number]):
            if node not in needed:
                self._store.drop(node.name)
        if number == len(stages):
            self._orders.drop()


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

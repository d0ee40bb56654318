"""The work on one graph: stage by stage, chunk by chunk, as many rows at once as the memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.errors import ConfigError
from dqconvert.kernels._buffers import release_memory
from dqconvert.lower.staged.chunks import Chunk, Costs
from dqconvert.lower.staged.csr import Orders
from dqconvert.lower.staged.kinds import Nodes
from dqconvert.lower.staged.stages import Stage, Stages
from dqconvert.lower.staged.whole import WholeGraph
from dqconvert.store import Array, Store

_ALIGNED = 64
"""Rows that chunks are multiples of, so that vectors of floats are the same as in the whole."""

_MOST = 1 << 20
"""Rows of a chunk whatever the memory: so many ends of lists of edges are read at once."""

_SPARE = 2
"""How much more than the rows themselves a chunk may take: what operations need on the way."""


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
        store: As given.
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
        self._stages, self._whole, self._root, self.store = stages, whole, root, store
        self._room, self._chunk = room, _MOST if chunk is None else chunk
        orders = (order for stage in stages.stages for order in stage.orders)
        self._orders = Orders(whole, store, orders, stages.listed)
        self.total = sum(whole.count(stage.space) for stage in stages.stages)

    def work(self) -> Iterator[tuple[str, int]]:
        """Does what is left to do; yields what it is at, and how many rows are done."""
        stages, before = self._stages.stages, 0
        for number, stage in enumerate(stages, 1):
            name, rows = f"stage_{number}", self._whole.count(stage.space)
            if rows == 0 or self.store.done(name) < rows:
                for order in stage.orders:
                    if not self._orders.done(order):
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
        return self.store.array(node.name)

    def _chunk_of(self, stage: Stage, start: int, stop: int, window: int | None) -> Chunk:
        parts = {"whole": self._whole, "root": self._root, "orders": self._orders, "array": self._array}
        return Chunk(stage, start, stop, window=window, **parts)  # type: ignore[arg-type]

    def _stage(self, stage: Stage, name: str, rows: int) -> Iterator[int]:
        """Computes the rows of a stage that are not there; yields how many are."""
        empty = self._chunk_of(stage, 0, 0, 1)
        for node, found in empty.run().items():
            self.store.array(node.name, (rows, *found.shape[1:]), found.dtype)
        room = self._room()
        crossing = sum(self._bytes(node) for node in dict.fromkeys(node for node, _ in stage.sent))
        window = None if crossing <= room // 3 else max(1, min(room // 8, 1 << 26))
        costs = Costs(empty, stage, self._whole, copies=window is not None)
        room -= crossing if window is None else window
        start = self.store.done(name)
        while start < rows:
            stop = start + self._fitting(stage, costs, start, rows, room)
            for node, found in self._chunk_of(stage, start, stop, window).run().items():
                self._array(node).write(start, found)
            self.store.finish(name, stop)
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
                self.store.drop(node.name)
        if number == len(stages):
            self._orders.drop()

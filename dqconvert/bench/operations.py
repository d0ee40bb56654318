"""The time of an integer module's forward by operation, beside the time that memory traffic alone would take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree

from dqconvert.kernels.integer.folding.fold import fold_nodes
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.lower.remember import Remember
from dqconvert.ops import qualified_name
from dqconvert.trace.inputs import Inputs

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One kind of operation in a forward.

    Attributes:
        name: The function called; ``remembered`` for look-ups of a known graph.
        calls: How often.
        ms: All calls together.
        share: Of the sum over all operations.
        moved_mib: Memory traffic at least: each input read once, each output written once.
        floor_ms: How long that takes at the bandwidth of a copy.
        gathered_mib: Rows read for every edge; much of that comes from the caches.
    """

    name: str
    calls: int
    ms: float
    share: float
    moved_mib: float
    floor_ms: float
    gathered_mib: float


def operations(
    module: GraphModule, inputs: Callable[[], Inputs], bandwidth: float, *, known: bool, repeats: int = 5
) -> tuple[Operation, ...]:
    """Runs the graph node by node; of each node counts the shortest time.

    Args:
        inputs: What to run on, asked for before each repetition.
        bandwidth: Bytes per second, from :func:`dqconvert.bench.bandwidth.copy_bandwidth`.
        known: True if the module knows the graph; else what depends on it is computed, and counted by operation.
        repeats: How many times to run.

    Returns:
        The operations, the longest first.
    """
    counts = _Counts()
    for _ in range(repeats):
        arguments = inputs().arguments
        given = [arguments.get(str(node.target)) for node in module.graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            _Counted(module, counts, known).run(*given)
    return counts.operations(bandwidth)


class _Counts:
    """Counts for each node; bytes are the same in every repetition."""

    def __init__(self) -> None:
        self.seconds: dict[Node, float] = {}
        self.name: dict[Node, str] = {}
        self.moved: dict[Node, int] = {}
        self.gathered: dict[Node, int] = {}

    def operations(self, bandwidth: float) -> tuple[Operation, ...]:
        calls = Counter(self.name.values())
        total = sum(self.seconds.values())
        found = []
        for name, number in calls.items():
            nodes = [node for node in self.name if self.name[node] == name]
            seconds = sum(self.seconds[node] for node in nodes)
            moved = sum(self.moved[node] for node in nodes)
            found.append(
                Operation(
                    name=name,
                    calls=number,
                    ms=1e3 * seconds,
                    share=seconds / total,
                    moved_mib=moved / _MIB,
                    floor_ms=1e3 * moved / bandwidth,
                    gathered_mib=sum(self.gathered[node] for node in nodes) / _MIB,
                )
            )
        return tuple(sorted(found, key=lambda operation: -operation.ms))


class _Counted(Interpreter):
    def __init__(self, module: Any, counts: _Counts, known: bool) -> None:
        super().__init__(module)
        self._counts = counts
        self._known = known

    def run_node(self, n: Node) -> Any:
        if not n.op.startswith("call"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        inner = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        remembers = isinstance(inner, Remember) or (n.target is fold_nodes and self._known)
        if isinstance(inner, Remember) and not self._known:
            return _Counted(inner.inner, self._counts, known=False).run(*args)
        start = time.perf_counter()
        result = getattr(self, n.op)(n.target, args, kwargs)
        seconds = time.perf_counter() - start
        counts = self._counts
        counts.seconds[n] = min(seconds, counts.seconds.get(n, seconds))
        counts.name[n] = "remembered" if remembers else _name(n, inner)
        counts.moved[n] = 0 if remembers else moved_bytes((args, kwargs), result)
        counts.gathered[n] = _gathered(args) if n.target is integer_propagate else 0
        return result


def _name(node: Node, module: Any) -> str:
    return qualified_name(node).rsplit(".", 1)[-1] if module is None else type(module).__name__


def moved_bytes(given: Any, result: Any) -> int:
    """Returns the bytes of inputs and outputs; 0 where the output is but another view."""
    taken = _storages(given)
    made = {place: size for place, size in _storages(result).items() if place not in taken}
    return sum(taken.values()) + sum(made.values()) if made else 0


def _storages(values: Any) -> dict[int, int]:
    """Returns the bytes of the tensors among values, by address."""
    tensors: Iterable[Any] = _pytree.tree_leaves(values)
    return {t.untyped_storage().data_ptr(): t.nbytes for t in tensors if isinstance(t, Tensor)}


def _gathered(args: tuple[Any, ...]) -> int:
    x, _, _, senders = args[:4]
    return int(senders.numel()) * int(x.size(1)) * int(x.element_size())

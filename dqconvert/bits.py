"""Average bits: how wide the codes of a prepared module are, counted by the elements that it rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from dqconvert.prepared.base import PreparedBase
from dqconvert.quant import FakeQuantize
from dqconvert.report import Entry
from dqconvert.rewrite.connectivity import is_input
from dqconvert.rewrite.sites import Grids, keeps_grid
from dqconvert.words import count, listed


class AverageBits(NamedTuple):
    """The average width of a module's codes: ``sum(b * n) / sum(n)`` over quantizers of ``b`` bits and ``n`` elements.

    ``n`` is how many elements a quantizer rounds in the forwards that were counted; of a weight, how many it has.
    An average of nothing is ``None``. What stays in float is in none of them: ``report.left_float`` names it.

    Attributes:
        activations: Of all values but weights: what MixQ's penalty counts.
        hidden: Of those, without what the module was given: an argument, cast, reshaped, dropped out or gathered along
            edges at most. A²Q's figures leave a model's bag-of-words input out, too; of the rest they count the node
            features that enter layers alone.
        weights: Of weights.
        quantizers: The mean over quantizers with ``n = 1`` for each, weights among them: what MixQ's tables give.
        elements: ``n`` of each quantizer, by path.
        uncounted: Paths of quantizers that are in none of these: the user's own, and those that no forward reached.

    Source:
        Zhu et al., *A²Q*, ICLR 2023, section 3 (memory of node features), and its code; Moustafa et al., *MixQ-GNN*,
        ICDE 2025, and its code.
    """

    activations: float | None
    hidden: float | None
    weights: float | None
    quantizers: float | None
    elements: Mapping[str, int]
    uncounted: tuple[str, ...] = ()

    def __str__(self) -> str:
        hidden = "" if self.hidden is None else f" (hidden {self.hidden:.2f})"
        each = {f"activations{hidden}": self.activations, "weights": self.weights, "per quantizer": self.quantizers}
        parts = [f"{value:.2f} {name}" for name, value in each.items() if value is not None]
        left = f"; not counted: {listed(self.uncounted, most=3)}" if self.uncounted else ""
        return (", ".join(parts) or "nothing was rounded") + left


class Elements:
    """Counts what quantizers of a module are called with.

    Attributes:
        values: Elements by path, of all calls.
        calls: Calls by path.
    """

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def see(self, path: str, quantizer: FakeQuantize, x: Tensor, groups: Tensor | None) -> None:
        """Counts one call, see :func:`dqconvert.advice.watching`."""
        self.values[path] += x.numel()
        self.calls[path] += 1

    def of(self, entry: Entry) -> int:
        """Returns the number of elements of a quantizer; a weight has those of one call."""
        values = self.values[entry.path]
        return values // self.calls[entry.path] if entry.role == "weight" and values else values


def averages(module: PreparedBase, found: Elements) -> AverageBits:
    """Returns the average bits of the elements that were counted."""
    entries = module.report.entries
    given = on_arguments(module)
    counted = [
        Counted(entry.path, entry.bits, found.of(entry), 1, entry.role == "weight", entry.path in given)
        for entry in entries
        if entry.bits is not None and found.values[entry.path]
    ]
    left = (entry.path for entry in entries if entry.bits is None or not found.values[entry.path])
    return averages_of(counted, tuple(left))


class Counted(NamedTuple):
    """One or several quantizers of one width: their name, what they rounded, and of what kind that is."""

    name: str
    bits: int
    elements: int
    quantizers: int
    is_weight: bool
    is_given: bool


def averages_of(counted: Iterable[Counted], uncounted: tuple[str, ...]) -> AverageBits:
    """Returns the average bits of quantizers that were counted; ``uncounted``: the paths of the others."""
    every = list(counted)
    rest = [one for one in every if not one.is_weight]
    return AverageBits(
        activations=_mean((one.bits, one.elements) for one in rest),
        hidden=_mean((one.bits, one.elements) for one in rest if not one.is_given),
        weights=_mean((one.bits, one.elements) for one in every if one.is_weight),
        quantizers=_mean((one.bits, one.quantizers) for one in every),
        elements={one.name: one.elements for one in every},
        uncounted=uncounted,
    )


def _mean(weighted: Iterable[tuple[int, int]]) -> float | None:
    pairs = list(weighted)
    total = sum(number for _, number in pairs)
    return sum(bits * number for bits, number in pairs) / total if total else None


def on_arguments(module: PreparedBase) -> frozenset[str]:
    """Returns the paths of quantizers of what the module is given, moved or dropped out at most."""
    grids, paths = Grids(module), {path for path, _ in module.quantizers()}
    calls = [
        node
        for method in module.all_methods()
        for graph in method.graphs()
        for node in graph.nodes
        if node.op == "call_module" and node.target in paths
    ]
    return frozenset(str(node.target) for node in calls if is_input(grids.through(node.args[0], keeps_grid)))


def words_of(found: AverageBits, batches: int) -> str:
    """Returns the averages as the report shows them."""
    return f"{found}; on {count(batches, 'batch', 'batches')}"

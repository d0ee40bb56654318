"""Laws: a quantity of a model as a function of the size of its graph, fitted to measurements on small ones.

It is a sum of a constant, so much per node, so much per edge, and, for time, so much per row that an edge reads from a
table of all nodes' rows, which takes the longer the less of that table a cache holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Constants of this machine.

    Attributes:
        bandwidth: Bytes per second of a copy, read and written ones.
        gather: Bytes of a table, and seconds per byte to read rows of it at random; the smallest table first.
        memory: Bytes that it has.
    """

    bandwidth: float
    gather: tuple[tuple[int, float], ...]
    memory: int

    def gathering(self, table: float) -> float:
        """Returns the seconds per byte of rows read from a table of so many bytes: between those measured, by size."""
        sizes, seconds = zip(*self.gather, strict=True)
        return float(np.interp(math.log(max(table, 1.0)), np.log(sizes), seconds))


@dataclass(frozen=True, kw_only=True)
class Law:
    """A quantity as a function of nodes and edges.

    Attributes:
        fixed, node, edge: The constant, and how much a node and an edge add.
        gather: Times the seconds that the machine takes to read a row for each edge.
        row: Bytes of such a row.
    """

    fixed: float
    node: float
    edge: float
    gather: float = 0.0
    row: int = FLOAT_BYTES

    def at(self, nodes: int, edges: int, machine: Machine) -> float:
        """Returns the quantity.

        Example:
            >>> machine = Machine(bandwidth=1.0, gather=((1, 1.0), (1 << 20, 3.0)), memory=1)
            >>> Law(fixed=1.0, node=2.0, edge=0.5, gather=1.0, row=1024).at(1024, 10, machine)
            32774.0
        """
        read = edges * self.row * machine.gathering(nodes * self.row) if self.gather else 0.0
        return self.fixed + self.node * nodes + self.edge * edges + self.gather * read


def fit(points: Sequence[tuple[int, int, float]], machine: Machine, row: int | None = None) -> Law:
    """Returns the law that comes nearest to measurements, relative to each; none of its factors is negative.

    Args:
        points: Nodes, edges, and what was measured.
        row: Bytes of a row that each edge reads; ``None``: what was measured does not depend on caches.

    Example:
        >>> machine = Machine(bandwidth=1.0, gather=((1, 0.0), (2, 0.0)), memory=1)
        >>> law = fit([(10, 10, 40.0), (20, 10, 60.0), (10, 30, 60.0), (40, 40, 130.0)], machine)
        >>> round(law.fixed, 6), round(law.node, 6), round(law.edge, 6)
        (10.0, 2.0, 1.0)
    """
    terms = np.array(
        [
            [1.0, nodes, edges, 0.0 if row is None else edges * row * machine.gathering(nodes * row)]
            for nodes, edges, _ in points
        ]
    )
    values = np.array([value for *_, value in points], float)
    weights = 1 / np.maximum(values, 1e-3 * values.max() + 1e-300)
    largest = np.maximum(terms.max(0), 1e-300)
    matrix, goal = terms / largest * weights[:, None], values * weights
    missed, factors = math.inf, np.zeros(4)
    # Non-negative least squares: of the few sets of terms that there are, the best whose factors are not negative.
    for chosen in itertools.product((0.0, 1.0), repeat=3 if row is None else 4):
        some = np.flatnonzero(chosen)
        if not len(some) or not values.any():
            continue
        found = np.linalg.lstsq(matrix[:, some], goal, rcond=None)[0]
        off = float(((matrix[:, some] @ found - goal) ** 2).sum())
        if (found >= 0).all() and off < missed - 1e-9:
            missed, factors = off, np.zeros(4)
            factors[some] = found
    fixed, node, edge, gather = map(float, factors / largest)
    return Law(fixed=fixed, node=node, edge=edge, gather=gather, row=row or FLOAT_BYTES)

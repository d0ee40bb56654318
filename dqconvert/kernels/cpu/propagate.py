"""Message passing on the CPU: what decides how often the edges are gone through. See :mod:`.propagate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.errors import InputShapeError
from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid
from dqconvert.kernels.cpu import propagate_loops as loops
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.beyond import Beyond
from dqconvert.kernels.cpu.chain import Source, flags, groups_of, has_loops, matrix, observe
from dqconvert.kernels.cpu.llvm.vectors import VECTOR
from dqconvert.kernels.cpu.node_loops import find_extremes, round_nodes
from dqconvert.kernels.cpu.select import Found, Messages, Rows, Values, ranks
from dqconvert.kernels.cpu.threads import balanced, parts, run
from dqconvert.kernels.cpu.tile import Caught, ChainArrays
from dqconvert.kernels.messages import Sent

_EVERY, _EDGES = 16, 1 << 9
"""Every 16th edge is looked at before all, if these are enough to say something."""


def serves(sent: Sent) -> bool:
    """True if the loops can do it."""
    return has_loops(sent.x.dtype) and (sent.weight is None or sent.weight.dtype == sent.x.dtype)


def check_heads(sizes: Mapping[str, int], _: object) -> None:
    """Raises unless each head has as many columns of the rows: each is multiplied by one weight of an edge."""
    heads, columns = sizes.get("heads", 1), sizes["columns"]
    if heads == 0 or columns % heads != 0:
        raise InputShapeError(f"messages of {columns} columns cannot be weighed by {heads} weights of each edge")


class Sums(Source):
    """The sums, or averages, of the quantized messages that reach each node: rows on the way into a chain.

    While the range of the messages stays as it was, the edges are gone through once.

    Attributes:
        grid: That of the messages; its range is final once `holds()` was asked.
        grew: True if the range of the messages was seen to grow before any sum.
        extremes: What the gradient wants to know again, `[0, 0, 0]` if that is nothing.
    """

    def __init__(self, sent: Sent, grid: Grid, mean: bool) -> None:
        self.grid, self.grew, self.extremes = grid, False, sent.x.new_empty((0, 0, 0))
        self._x, self._skip, self._mean = matrix(sent.x), flags(sent.protected), mean
        self._ptr, self._edges, self._senders = map(array, sent.by_receiver)
        columns = sent.x.size(1)
        super().__init__((sent.num_nodes, columns), sent.x.dtype, balanced(self._ptr, columns))

    def _moves(self, found: Found, total: int, full: bool) -> bool:
        """True if the range does not hold, by the messages beyond it, `total` in all; `full`: if these are not all."""
        beyond = Beyond({0: found}, total, full, self.grid.scheme.ranks)
        if beyond.full:
            return True
        ends = beyond.ends(0, self.grid.scheme.p)
        return ends.total > 0 and not (ends.lo is None and ends.hi is None)


class SumsOfRows(Sums):
    """Where a message is the row of the node that sends it: every message of a node is the same, rounded once."""

    def __init__(self, sent: Sent, grid: Grid, mean: bool) -> None:
        super().__init__(sent, grid, mean)
        self._often = np.diff(array(sent.by_sender[0]))
        scheme = self.grid.scheme
        # Codes of up to eight bits are sent as such: a quarter of the memory to gather from. They hold no NaN.
        self._coded = scheme.quant_max - scheme.quant_min < 256
        self._sent = self._place()
        if scheme.observe and not (self.grid.settled and self._round(catch=True)):
            observe(self.grid, Rows(self._x, self._skip if len(self._skip) else None, self._often))
            self._round(catch=False)
        elif not scheme.observe:
            self._round(catch=False)

    def _round(self, catch: bool) -> bool:
        """Rounds with the range as it is; whether, if values were to be caught, it stays so."""
        found = self._rounded(catch)
        if found is None:
            self._coded = False
            self._sent = self._place()
            found = self._rounded(catch)
        return bool(found)

    def _place(self) -> NDArray[Any]:
        """Returns memory for the rows that are sent; for codes with room behind them, as whole vectors are read."""
        if not self._coded:
            return array(empty(self._x.shape, self.dtype))
        self._codes = array(empty((self._x.size + VECTOR,), torch.uint8))
        self._codes[self._x.size :] = 0
        return self._codes[: self._x.size].reshape(self._x.shape)

    def _rounded(self, catch: bool) -> bool | None:
        """None: there is NaN among what was to become codes."""
        x, grid = self._x, self.grid
        parameters, (lo, hi) = grid.parameters(x.dtype.type), map(x.dtype.type, (grid.lo, grid.hi))
        cuts = parts(len(x), x.size)
        sent = self._often if not len(self._skip) else self._often[~self._skip]
        total = int(sent.sum()) * x.shape[1]
        size = 1536 + int(8 * x.size * grid.scheme.p) + x.shape[1] if catch else 0
        places = [(np.empty(size, x.dtype), np.empty(size, x.dtype)) for _ in cuts]
        counts = [(np.empty(size, np.int64), np.empty(size, np.int64)) for _ in cuts]

        def task(part: int, start: int, stop: int) -> Any:
            caught = (*places[part], *counts[part])
            args = (x, self._skip, self._often, parameters, catch, lo, hi, caught, self._sent)
            return round_nodes(*args, start, stop)

        ends = run(task, cuts)
        if any(nan for *_, nan in ends):
            return None
        if not catch:
            return True
        found = [
            [kind[part][side][: ends[part][side]] for part in range(len(cuts))]
            for side in (0, 1)
            for kind in (places, counts)
        ]
        under, under_often, over, over_often = map(np.concatenate, found)
        # A node that sends nothing has no message.
        beyond = Found(
            under[under_often > 0],
            over[over_often > 0],
            under_often[under_often > 0],
            over_often[over_often > 0],
            sum(int(end[2]) for end in ends),
        )
        return not self._moves(beyond, total, any(end[3] for end in ends))

    def go(self, y: NDArray[Any], chain: ChainArrays, caught: Sequence[Caught]) -> None:
        if self._coded:
            parameters = self.grid.parameters(self._x.dtype.type)
            coded = (self._codes, self._x, self._skip, parameters, self._senders, self._ptr, self._mean, y, chain)
            run(lambda part, start, stop: loops.sum_codes(*coded, caught[part], start, stop), self.cuts)
        else:
            args = (self._sent, self._senders, self._ptr, self._mean, y, chain)
            run(lambda part, start, stop: loops.sum_rows(*args, caught[part], start, stop), self.cuts)


class SumsOfProducts(Sums):
    """Where a message is such a row times a weight of the edge, per head.

    Attributes:
        extremes: `[2, nodes, heads]`, the smallest and the largest value of each row and head; NaN where there is one.
    """

    def __init__(self, sent: Sent, weight: Tensor, grid: Grid, mean: bool, groups: Tensor | None = None) -> None:
        super().__init__(sent, grid, mean)
        self._weight, self._group = array(weight), groups_of(groups)
        self.extremes = extremes_of(self._x, weight.size(1))
        self._unsure = self.grid.scheme.observe
        self._noted: list[Any] = []
        self.grew = self._unsure and self.grid.settled and self._grows()
        if self._unsure and (self.grew or not self.grid.settled):
            self._observe()

    def _grows(self) -> bool:
        """True if some of the edges say that the range will not hold: then to sum first would be in vain."""
        if len(self._senders) < _EDGES * _EVERY or self.grid.scheme.shared:  # which all ranks would have to say
            return False
        some, p = self._messages(_EVERY), self.grid.scheme.p
        found = some.beyond(self.grid.lo, self.grid.hi, 1024 + int(8 * some.total * p))
        if found is None:
            return True
        below, above = ranks(some.total - found.odd, p)
        return len(found.below) >= below or len(found.above) >= above

    def _observe(self) -> None:
        observe(self.grid, self._messages())
        self._unsure = False

    def _messages(self, every: int = 1) -> Messages:
        """Those of every so many edges."""
        least, most = array(self.extremes)
        skip = self._skip if len(self._skip) else None
        # In the order of the receivers, as the sum: the percentiles are those of all messages in any order.
        edges, senders = (np.ascontiguousarray(one[::every]) for one in (self._edges, self._senders))
        return Messages(self._x, self._weight, edges, senders, skip, least, most)

    def go(self, y: NDArray[Any], chain: ChainArrays, caught: Sequence[Caught]) -> None:
        x, grid = self._x, self.grid
        parameters, (lo, hi) = grid.table(x.dtype.type), map(x.dtype.type, (grid.lo, grid.hi))
        room = 1024 + int(8 * len(self._senders) * x.shape[1] * grid.scheme.p)
        size = room // len(self.cuts) + x.shape[1] + 512 if self._unsure else 0
        noted = [(np.empty(size, x.dtype), np.empty(size, x.dtype)) for _ in self.cuts]
        least, most = array(self.extremes)
        which = (self._skip, self._group)
        args = (x, self._weight, self._senders, self._ptr, self._edges, *which, parameters, least, most)

        def task(part: int, start: int, stop: int) -> Any:
            more = (self._unsure, lo, hi, noted[part], self._mean, y, chain, caught[part])
            found = loops.sum_products(*args, *more, start, stop)
            return noted[part][0][: found[0]], noted[part][1][: found[1]], *found[2:]

        self._noted = run(task, self.cuts)

    def holds(self) -> bool:
        if not self._unsure:
            return True
        sent = len(self._senders) - (int(np.count_nonzero(self._skip[self._senders])) if len(self._skip) else 0)
        under, over = (np.concatenate([part[side] for part in self._noted]) for side in (0, 1))
        found = Found(under, over, None, None, int(sum(part[2] for part in self._noted)))
        if not self._moves(found, sent * self._x.shape[1], any(full for *_, full in self._noted)):
            self._unsure = False
            return True
        self._observe()
        return False


def sums_of(sent: Sent, grid: Grid, mean: bool, groups: Tensor | None = None) -> Sums:
    """Returns the sums, or averages, of quantized messages, made when they are wanted.

    `groups`: of the receivers; weighted messages have the grid of their group.
    """
    if sent.weight is None:
        return SumsOfRows(sent, grid, mean)
    return SumsOfProducts(sent, sent.weight, grid, mean, groups)


def message_values(sent: Sent) -> Values:
    """Returns all messages, to take percentiles of."""
    skip, rows = None if sent.protected is None else flags(sent.protected), matrix(sent.x)
    if sent.weight is None:
        return Rows(rows, skip, np.diff(array(sent.by_sender[0])))
    least, most = array(extremes_of(rows, sent.weight.size(1)))
    _, edges, senders = map(array, sent.by_receiver)
    return Messages(rows, array(sent.weight), edges, senders, skip, least, most)


def propagate_grad(
    grad: Tensor,
    passes: Tensor,
    bit: int,
    sent: Sent,
    extremes: Tensor,
    groups: Tensor | None,
    grid: Grid,
    mean: bool,
    for_weight: bool,
    plus: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `x`, plus `plus`, and of the weights, by that of the sums where `passes` has the bit."""
    x, weight = sent[:2]
    skip = flags(sent.protected)
    grads, rows = matrix(grad), matrix(x)
    if mean or passes.numel() > 0:
        shares = array(empty(grad.shape, grad.dtype))
        sharing = (grads, matrix(passes), np.uint8(bit), array(sent.by_receiver[0]), mean, shares)
        run(lambda _, start, stop: loops.pass_shares(*sharing, start, stop), parts(len(grads), grads.size))
        grads = shares
    to_x = empty(x.shape, x.dtype)
    ptr, edges, receivers = map(array, sent.by_sender)
    clip = grid.scheme.clip
    if weight is None:
        parameters = grid.parameters(rows.dtype.type)
        more = rows[:0] if plus is None else matrix(plus)
        args: tuple[Any, ...] = (grads, rows, receivers, ptr, skip, parameters, clip, more, array(to_x))
        run(lambda _, start, stop: loops.sum_back(*args, start, stop), balanced(ptr, x.size(1)))
        return to_x, x.new_empty((0, 0))
    to_weight = torch.empty(weight.shape if for_weight else (0, 0), dtype=x.dtype)
    least, most = array(extremes)
    weights = array(weight)
    which = (skip, groups_of(groups), grid.table(rows.dtype.type))
    args = (grads, rows, weights, receivers, ptr, edges, *which, clip, least, most, array(to_x))
    run(lambda _, start, stop: loops.weighted_back(*args, array(to_weight), start, stop), balanced(ptr, x.size(1)))
    return to_x if plus is None else to_x.add_(plus), to_weight


def extremes_of(rows: NDArray[Any], heads: int) -> Tensor:
    """Returns the smallest and the largest value of each row and head, `[2, rows, heads]`; NaN where there is one."""
    found = torch.empty((2, len(rows), heads), dtype=torch.from_numpy(rows).dtype)
    least, most = array(found)
    run(lambda _, start, stop: find_extremes(rows, least, most, start, stop), parts(len(rows), rows.size))
    return found

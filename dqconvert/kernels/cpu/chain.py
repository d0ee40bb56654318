"""The chain of :mod:`dqconvert.kernels.chain` on the CPU: what decides how often the rows are gone through.

Once is enough where every range stays as it was: each grid rounds with the range so far and notes the values outside
of it. Only if these say that a range has grown, the rows are gone through again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._grid import Grid, grid_of
from dqconvert.kernels._steps import NO_CHAIN, Chain
from dqconvert.kernels.cpu import tile as tile
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.beyond import Beyond, percentiles_among
from dqconvert.kernels.cpu.llvm.chain_span import CLIP, GRID, NOTE
from dqconvert.kernels.cpu.narrow import is_narrow, round_narrow
from dqconvert.kernels.cpu.select import Ends, Found, Rows, Values
from dqconvert.kernels.cpu.threads import parts, run


def has_loops(dtype: torch.dtype) -> bool:
    """True if the loops know a type."""
    return dtype in (torch.float32, torch.float64)


def serves(shape: Sequence[int], dtype: torch.dtype, added: Sequence[Tensor | None]) -> bool:
    """True if the loops can do it, for rows of such a shape: bias, other and alpha in one type that they know, and
    shaped alike."""
    bias, other, alpha = added
    fits = bias is None or (len(shape) == 2 and bias.shape == shape[1:])
    fits = len(shape) > 0 and fits and (other is None or other.shape == shape) and (alpha is None or alpha.numel() == 1)
    for t in added:
        fits = fits and (t is None or t.dtype == dtype)
    return fits and has_loops(dtype)


def matrix(t: Tensor) -> NDArray[Any]:
    """Returns a tensor as a contiguous numpy matrix of its rows."""
    return array(t) if t.ndim == 2 else array(t).reshape(t.size(0), math.prod(t.shape[1:]))


def flags(mask: Tensor | None) -> NDArray[Any]:
    """Returns a mask as a vector; empty if there is none."""
    return np.empty(0, np.bool_) if mask is None else array(mask)


def groups_of(groups: Tensor | None) -> NDArray[Any]:
    """Returns the group of each row as a vector; empty if all are in one."""
    return np.empty(0, np.uint8) if groups is None else array(groups)


class Source:
    """Where the rows on the way into a chain come from.

    Args:
        shape: Of the result.
        dtype: Of the rows.
        cuts: The parts that they are gone through in.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, cuts: list[tuple[int, int]]) -> None:
        self.shape, self.dtype, self.cuts = tuple(shape), dtype, cuts

    def go(self, y: NDArray[Any], chain: tile.ChainArrays, caught: Sequence[tile.Caught]) -> None:
        """Sends all rows through the chain into `y`; what it notes goes into `caught`, one for each part."""
        raise NotImplementedError

    def holds(self) -> bool:
        """True if the rows are final; if not, `go` has to be called once more."""
        return True

    def rows(self) -> NDArray[Any]:
        """Returns all rows in memory, as they are before the chain."""
        y = matrix(empty(self.shape, self.dtype))
        nothing = arrays_of(NO_CHAIN, (None, None, None), False, y, None, {})
        self.go(y, nothing, [_nothing_caught(y)] * len(self.cuts))
        return y if self.holds() else self.rows()

    def stored(self) -> StoredRows:
        """Returns all rows, in memory, as a source."""
        return StoredRows(torch.from_numpy(self.rows()).view(self.shape))


class StoredRows(Source):
    """Rows that lie in memory."""

    def __init__(self, x: Tensor) -> None:
        self._x = matrix(x)
        super().__init__(x.shape, x.dtype, parts(len(self._x), self._x.size))

    def go(self, y: NDArray[Any], chain: tile.ChainArrays, caught: Sequence[tile.Caught]) -> None:
        if is_narrow(chain, y.shape[1]):
            args = self._x, chain.group, chain.grids, bool(chain.kinds[1] & CLIP), y, chain.bits
            run(lambda _, start, stop: round_narrow(*args, start, stop), self.cuts)
            return
        run(lambda part, start, stop: tile.chain_rows(self._x, y, chain, caught[part], start, stop), self.cuts)

    def rows(self) -> NDArray[Any]:
        return self._x


def quantize(source: Source, chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.chain.plain_quantize_chain`."""
    steps, grids = chain.steps, grids_of(chain)
    y = empty(source.shape, source.dtype)
    passes = empty(source.shape if steps.masked else (0,), torch.uint8)
    target, bits = matrix(y), matrix(passes) if steps.masked else None
    present = [grid for grid in grids if grid is not None]
    if not all(grid.settled for grid in present) or not _at_once(source, chain, grids, steps.relu, target, bits):
        _grid_by_grid(source, chain, grids, steps.relu, target, bits)
    if chain.ranges.ndim > 1:
        return y, chain.ranges.clone(), passes
    return y, torch.tensor([end for grid in present for end in (grid.lo, grid.hi)], dtype=torch.float32), passes


def grids_of(chain: Chain) -> list[Grid | None]:
    """Returns the grids of a chain, by place."""
    ends = iter(chain.ranges.tolist())
    return [None if scheme is None else grid_of(scheme, next(ends), next(ends)) for scheme in chain.steps.schemes]


def _at_once(
    source: Source,
    chain: Chain,
    grids: Sequence[Grid | None],
    relu: bool,
    target: NDArray[Any],
    bits: NDArray[Any] | None,
) -> bool:
    """Goes through the rows with the ranges as they are, and again while one grows; False if that cannot be said."""
    kept = len(target) - int(np.count_nonzero(flags(chain.protected)))
    total = kept * target.shape[1]
    observing = {place: grid for place, grid in enumerate(grids) if grid is not None and grid.scheme.observe}
    room = max([1024 + int(8 * total * grid.scheme.p) for grid in observing.values()], default=0)
    size = room + target.shape[1] + 512 if observing else 0  # for each part, as outliers come in few rows
    while True:
        caught = [tile.Caught(np.empty((3, 2, size), target.dtype), np.zeros((3, 4), np.int64)) for _ in source.cuts]
        source.go(target, arrays_of(chain, grids, relu, target, bits, observing), caught)
        if source.holds():
            if not observing:
                return True
            full = any(part.counts[place][3] for part in caught for place in observing)
            noted = {} if full else {place: _noted(caught, place) for place in observing}
            beyond = Beyond(noted, total, full, next(iter(observing.values())).scheme.ranks)
            if beyond.full:
                return False  # more values lie outside than there was room for
            if not _grown(beyond, grids, relu, observing, target.dtype.type):
                return True
        # Where one range grows, others often do: to make the rows takes longer than to go through them.
        source = source if isinstance(source, StoredRows) else source.stored()


def _grown(beyond: Beyond, grids: Sequence[Grid | None], relu: bool, observing: dict[int, Grid], dtype: Any) -> bool:
    """Updates the first range that a percentile lies outside of; True if there is one: then rows are rounded anew."""
    for place, grid in observing.items():
        ends = beyond.ends(place, grid.scheme.p)
        if ends.total > 0 and (ends.lo is not None or ends.hi is not None):
            before = grid.lo, grid.hi
            grid.merge(ends.lo, ends.hi)
            if (grid.lo, grid.hi) == before:
                continue  # ranges are float32, and a float64 value may lie outside by less than that shows
            if place == 1 and ends.odd == 0:
                _pass_on(grid, ends, relu, grids[2], dtype)
            return True
    return False


def _pass_on(grid: Grid, ends: Ends, relu: bool, following: Grid | None, dtype: Any) -> None:
    """Spares the next grid its turn: a percentile passes through the grid and the ReLU, which are monotone."""
    if following is None or not following.scheme.observe or following.scheme.p != grid.scheme.p:
        return
    lo, hi = (
        None if end is None else max(grid.apply(end, dtype), 0.0) if relu else grid.apply(end, dtype)
        for end in ends[:2]
    )
    following.merge(lo, hi)


def _noted(caught: Sequence[tile.Caught], place: int) -> Found:
    if len(caught) == 1:  # most calls on small inputs
        (under, over), count = caught[0].values[place], caught[0].counts[place]
        return Found(under[: count[0]], over[: count[1]], None, None, int(count[2]))
    counts = [part.counts[place] for part in caught]
    under, over = (
        np.concatenate([part.values[place, side, : count[side]] for part, count in zip(caught, counts, strict=True)])
        for side in (0, 1)
    )
    return Found(under, over, None, None, int(sum(count[2] for count in counts)))


def _grid_by_grid(
    source: Source,
    chain: Chain,
    grids: Sequence[Grid | None],
    relu: bool,
    target: NDArray[Any],
    bits: NDArray[Any] | None,
) -> None:
    """Updates the ranges one after the other, each by what the grids before it make of the rows."""
    one, two, three = grids
    stored = source if isinstance(source, StoredRows) else source.stored()
    rows, skip = stored.rows(), None if chain.protected is None else flags(chain.protected)

    def send(
        some: Sequence[Grid | None], relu: bool, target: NDArray[Any] | None = None, bits: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Returns the rows behind some of the grids, with the ranges as they are."""
        target = array(empty(rows.shape, source.dtype)) if target is None else target
        stored.go(target, arrays_of(chain, some, relu, target, bits, {}), [_nothing_caught(rows)] * len(stored.cuts))
        return target

    observe(one, Rows(rows, skip))
    behind = (grid for grid in (two, three) if grid is not None)
    if any(grid.scheme.observe for grid in behind):
        same = one is None and chain.bias is None and chain.other is None
        summed = rows if same else send((one, None, None), False)
        if not _observe_both(two, three, relu, summed, skip):
            observe(two, Rows(summed, skip))
            if three is not None and three.scheme.observe:
                observe(three, Rows(send((one, two, None), relu), skip))
    send(grids, relu, target, bits)


def _nothing_caught(y: NDArray[Any]) -> tile.Caught:
    """Returns a place for notes that has no room, as nothing is asked."""
    return tile.Caught(np.empty((3, 2, 0), y.dtype), np.zeros((3, 4), np.int64))


def arrays_of(
    chain: Chain,
    grids: Sequence[Grid | None],
    relu: bool,
    target: NDArray[Any],
    bits: NDArray[Any] | None,
    observing: dict[int, Grid],
) -> tile.ChainArrays:
    """Returns a chain as the loops take it; `observing`: the grids that note what lies outside of their ranges."""
    dtype = target.dtype.type
    tables = [None if grid is None else grid.table(dtype) for grid in grids]
    parameters = np.zeros((max([1 if table is None else len(table) for table in tables]), 3, 4), dtype)
    bounds, kinds = np.zeros((3, 2), dtype), np.zeros(3, np.uint8)
    for place, grid in enumerate(grids):
        if grid is not None:
            parameters[:, place] = tables[place]
            kinds[place] = GRID + CLIP * grid.scheme.clip + NOTE * (place in observing)
            bounds[place] = grid.lo, grid.hi
    nothing = np.empty((0, 0), dtype)
    return tile.ChainArrays(
        bias=nothing.reshape(-1) if chain.bias is None else array(chain.bias),
        other=nothing if chain.other is None else matrix(chain.other),
        alpha=dtype(1 if chain.alpha is None else float(chain.alpha)),
        scaled=chain.alpha is not None,
        skip=flags(chain.protected),
        group=groups_of(chain.groups),
        relu=relu,
        grids=parameters,
        kinds=kinds,
        bounds=bounds,
        bits=np.empty((0, 0), np.uint8) if bits is None else bits,
    )


def observe(grid: Grid | None, values: Values) -> None:
    """Updates a grid's range."""
    if grid is not None and grid.scheme.observe:
        bounds = (grid.lo, grid.hi) if grid.scheme.momentum < 0 else None
        ends = percentiles_among(values, grid.scheme.p, bounds, grid.scheme.ranks)
        grid.merge(ends.lo, ends.hi)


def _observe_both(
    first: Grid | None, second: Grid | None, relu: bool, values: NDArray[Any], skip: NDArray[Any] | None
) -> bool:
    """Updates both ranges in one pass, as percentiles pass through monotone maps; False if that cannot be done.

    The second range sees the rounded values: its percentile is the rounded percentile of the first.
    """
    if first is None or second is None:
        return False
    one, two = first.scheme, second.scheme
    if not (one.observe and two.observe) or one.p != two.p or (one.momentum < 0) != (two.momentum < 0):
        return False
    dtype = values.dtype.type

    def onward(value: float) -> float:
        rounded = first.apply(value, dtype)
        return max(rounded, 0.0) if relu else rounded

    bounds = None
    if one.momentum < 0 and not first.empty and not second.empty:
        # Two steps inside of the second range: whatever stays within, rounded, stays within that range.
        step = 2 * float(first.parameters(dtype)[0])
        reaches_low = not relu or second.lo > 0
        bounds = (max(first.lo, second.lo + step) if reaches_low else first.lo, min(first.hi, second.hi - step))
    before = (first.lo, first.hi)
    rows = Rows(values, skip)
    ends = percentiles_among(rows, one.p, bounds, one.ranks)
    if ends.odd:
        return False  # what is infinite is not observed at first, but behind the first grid it is finite
    first.merge(ends.lo, ends.hi)
    if bounds is not None:
        unsure_low = ends.lo is None and onward(bounds[0]) < second.lo
        unsure_high = ends.hi is None and onward(bounds[1]) > second.hi
        if unsure_low or unsure_high:
            first.lo, first.hi = before
            ends = percentiles_among(rows, one.p, None, one.ranks)
            first.merge(ends.lo, ends.hi)
    if ends.total > 0:
        lo = None if ends.lo is None else onward(ends.lo)
        hi = None if ends.hi is None else onward(ends.hi)
        second.merge(lo, hi)
    return True


def back(
    grad: Tensor, passes: Tensor, other: Tensor | None, alpha: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.chain.plain_quantize_chain_grad`."""
    columns = grad.size(-1)
    at_sum, at_x, at_other = (empty(grad.shape if wanted[i] else (0,), grad.dtype) for i in (0, 1, 3))
    cuts = parts(grad.numel() // columns, grad.numel())
    sums = torch.zeros((len(cuts), columns if wanted[2] else 0), dtype=grad.dtype)
    flat = [array(t).reshape(-1, columns) for t in (grad, passes, at_sum, at_x, at_other)]
    factor = np.dtype(flat[0].dtype).type(1 if alpha is None else float(alpha))
    partner = flat[0][:0] if other is None or not wanted[4] else matrix(other).reshape(-1, columns)

    def task(part: int, start: int, stop: int) -> float:
        return tile.pass_rows(*flat, array(sums[part]), factor, partner, start, stop)

    dots = run(task, cuts)
    at_alpha = torch.tensor([sum(dots)] if wanted[4] else [], dtype=grad.dtype)
    return at_sum, at_x, sums.sum(0), at_other, at_alpha

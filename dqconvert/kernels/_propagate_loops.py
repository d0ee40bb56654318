"""Message passing of :mod:`dqconvert.kernels.propagate` on the CPU: compiled loops over the edges of each node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._chain_loops import (
    add_scaled,
    add_values,
    back_values,
    divide_values,
    dot,
    has_loops,
    matrix,
    observe,
    round_values,
)
from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._memory import empty
from dqconvert.kernels._prefetch import AHEAD, LINE, prefetch
from dqconvert.kernels._select import Messages, Rows
from dqconvert.kernels._threads import loop, parts, run, run_balanced


def serves(x: Tensor, weight: Tensor | None) -> bool:
    """Whether the loops can do it."""
    return has_loops(x.dtype) and (weight is None or weight.dtype == x.dtype)


def propagate(
    x: Tensor,
    weight: Tensor | None,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    num_nodes: int,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dqconvert.kernels.propagate.plain_propagate`; and each row's smallest and largest value."""
    (scheme,) = Scheme.unpacked(ints, floats)
    grid = Grid(scheme, *range_.tolist())
    rows = matrix(x)
    skip = np.empty(0, np.bool_) if protected is None else protected.contiguous().numpy()
    out = empty((num_nodes, x.size(1)), x.dtype)
    ptr, edges, senders = (t.numpy() for t in by_receiver)
    extremes = x.new_empty((0, 0, 0))
    if weight is None:
        observe(grid, Rows(rows, skip if len(skip) else None, np.diff(by_sender[0].numpy())))
        # Every message of a node is the same, so it is rounded once.
        sent = matrix(empty(x.shape, x.dtype))
        parameters = grid.parameters(rows.dtype.type)
        run(
            lambda _, a, b: round_nodes(rows, skip, parameters, sent, a, b),
            parts(len(rows), rows.size),
        )
        run_balanced(lambda _, a, b: sum_rows(sent, senders, ptr, mean, out.numpy(), a, b), ptr)
    else:
        extremes = _extremes(rows, weight.size(1))
        least, most = extremes.numpy()
        weights = weight.detach().contiguous().numpy()
        if scheme.observe:
            # In the order of the receivers, as the sum: the percentiles are those of all messages in any order.
            observe(grid, Messages(rows, weights, edges, senders, skip if len(skip) else None, least, most))
        args = (rows, weights, senders, ptr, edges, skip, grid.parameters(rows.dtype.type), mean, out.numpy())
        run_balanced(lambda _, a, b: sum_products(*args, a, b), ptr)
    return out, torch.tensor([grid.lo, grid.hi]), extremes


def propagate_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    extremes: Tensor,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` and of the weights."""
    (scheme,) = Scheme.unpacked(ints, floats)
    grid = Grid(scheme, *range_.tolist())
    skip = np.empty(0, np.bool_) if protected is None else protected.contiguous().numpy()
    if mean:
        grad = grad / by_receiver[0].diff().to(grad.dtype).clamp(min=1).unsqueeze(1)
    grads, rows = matrix(grad), matrix(x)
    to_x = empty(x.shape, x.dtype)
    ptr, edges, receivers = (t.numpy() for t in by_sender)
    parameters = grid.parameters(rows.dtype.type)
    if weight is None:
        run_balanced(
            lambda _, a, b: sum_back(grads, rows, receivers, ptr, skip, parameters, scheme.clip, to_x.numpy(), a, b),
            ptr,
        )
        return to_x, x.new_empty((0, 0))
    to_weight = torch.empty(weight.shape if for_weight else (0, 0), dtype=x.dtype)
    least, most = extremes.numpy()
    weights = weight.detach().contiguous().numpy()
    args = (grads, rows, weights, receivers, ptr, edges, skip, parameters, scheme.clip, least, most)
    run_balanced(lambda _, a, b: products_back(*args, to_x.numpy(), to_weight.numpy(), a, b), ptr)
    return to_x, to_weight


def _extremes(rows: NDArray[Any], heads: int) -> Tensor:
    """The smallest and the largest value of each row and head, `[2, rows, heads]`; NaN where there is one."""
    found = torch.empty((2, len(rows), heads), dtype=torch.from_numpy(rows).dtype)
    least, most = found.numpy()
    run(lambda _, start, stop: find_extremes(rows, least, most, start, stop), parts(len(rows), rows.size))
    return found


@loop
def find_extremes(x, least, most, start, stop):  # type: ignore[no-untyped-def]
    heads = least.shape[1]
    channels = x.shape[1] // heads
    for r in range(start, stop):
        for h in range(heads):
            row = x[r, h * channels : (h + 1) * channels]
            odd = 0
            for c in range(channels):
                odd += row[c] != row[c]
            least[r, h] = np.nan if odd > 0 or channels == 0 else smallest(row)
            most[r, h] = np.nan if odd > 0 or channels == 0 else largest(row)


# Without NaN, which was looked for before, the order of comparisons may be left to the compiler.
@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})
def smallest(row):  # type: ignore[no-untyped-def]
    found = row[0]
    for c in range(row.size):
        found = min(found, row[c])
    return found


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})
def largest(row):  # type: ignore[no-untyped-def]
    found = row[0]
    for c in range(row.size):
        found = max(found, row[c])
    return found


@loop
def round_nodes(x, skip, grid, y, start, stop):  # type: ignore[no-untyped-def]
    """Rounds the rows of the nodes that are not skipped."""
    codes = np.empty(x.shape[1], x.dtype)
    for r in range(start, stop):
        if skip.size > 0 and skip[r]:
            y[r] = x[r]
        else:
            round_values(x[r], grid, codes)
            back_values(codes, grid, y[r])


@loop
def fetch_row(x, row):  # type: ignore[no-untyped-def]
    """Asks for a row that will be needed soon."""
    columns = x.shape[1]
    for c in range(0, columns, LINE // x.itemsize):
        prefetch(x, row * columns + c)


@loop
def sum_rows(sent, senders, ptr, mean, out, start, stop):  # type: ignore[no-untyped-def]
    """Adds up the rows that are sent to each node."""
    end = ptr[stop] - AHEAD
    for t in range(start, stop):
        row = out[t]
        row[:] = 0
        for place in range(ptr[t], ptr[t + 1]):
            if place < end:
                fetch_row(sent, senders[place + AHEAD])
            add_values(sent[senders[place]], row)
        if mean and ptr[t + 1] - ptr[t] > 1:
            divide_values(row, row.dtype.type(ptr[t + 1] - ptr[t]))


@loop
def sum_products(x, weight, senders, ptr, edges, skip, grid, mean, out, start, stop):  # type: ignore[no-untyped-def]
    """Adds up the quantized products that are sent to each node."""
    heads = weight.shape[1]
    channels = x.shape[1] // heads
    end = ptr[stop] - AHEAD
    for t in range(start, stop):
        row = out[t]
        row[:] = 0
        for place in range(ptr[t], ptr[t + 1]):
            if place < end:
                fetch_row(x, senders[place + AHEAD])
                prefetch(weight, edges[place + AHEAD] * heads)
            s, e = senders[place], edges[place]
            exact = skip.size > 0 and skip[s]
            for h in range(heads):
                a, b = h * channels, (h + 1) * channels
                if exact:
                    add_scaled(x[s, a:b], weight[e, h], row[a:b])
                else:
                    add_rounded(x[s, a:b], weight[e, h], grid, row[a:b])
        if mean and ptr[t + 1] - ptr[t] > 1:
            divide_values(row, row.dtype.type(ptr[t + 1] - ptr[t]))


@loop
def sum_back(grad, x, receivers, ptr, skip, grid, clip, to_x, start, stop):  # type: ignore[no-untyped-def]
    """What comes back to each node that sent its row: nothing where the row was clipped."""
    columns = x.shape[1]
    codes = np.empty(columns, x.dtype)
    low, high, zero = grid[2], grid[3], x.dtype.type(0)
    end = ptr[stop] - AHEAD
    for s in range(start, stop):
        row = to_x[s]
        row[:] = 0
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
            add_values(grad[receivers[place]], row)
        if clip and not (skip.size > 0 and skip[s]):
            round_values(x[s], grid, codes)
            for c in range(columns):
                row[c] = zero if (codes[c] <= low) | (codes[c] >= high) else row[c]


@loop
def products_back(  # type: ignore[no-untyped-def]
    grad, x, weight, receivers, ptr, edges, skip, grid, clip, least, most, to_x, to_weight, start, stop
):
    """What comes back to each node that sent its row, and to the weights of its edges."""
    heads = weight.shape[1]
    channels = x.shape[1] // heads
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    # Within these no value is clipped, so no row is whose extreme products are.
    inside_low, inside_high = (low + 1 - zero_point) * scale, (high - 1 - zero_point) * scale
    end = ptr[stop] - AHEAD
    for s in range(start, stop):
        to_x[s] = 0
        exact = not clip or (skip.size > 0 and skip[s])
        for place in range(ptr[s], ptr[s + 1]):
            if place < end:
                fetch_row(grad, receivers[place + AHEAD])
                prefetch(weight, edges[place + AHEAD] * heads)
            t, e = receivers[place], edges[place]
            for h in range(heads):
                w = weight[e, h]
                a, b = h * channels, (h + 1) * channels
                one, two = w * least[s, h], w * most[s, h]
                if exact or (min(one, two) > inside_low and max(one, two) < inside_high):
                    add_scaled(grad[t, a:b], w, to_x[s, a:b])
                    if to_weight.size > 0:
                        to_weight[e, h] = dot(grad[t, a:b], x[s, a:b])
                else:
                    total = x.dtype.type(0)
                    for c in range(a, b):
                        q = np.rint(w * x[s, c] / scale + zero_point)
                        if not (q <= low or q >= high):
                            to_x[s, c] += w * grad[t, c]
                            total += grad[t, c] * x[s, c]
                    if to_weight.size > 0:
                        to_weight[e, h] = total


@loop
def add_rounded(x, w, grid, out):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    for c in range(out.size):
        q = np.rint(w * x[c] / scale + zero_point)
        q = low if q < low else q
        q = high if q > high else q
        out[c] += (q - zero_point) * scale

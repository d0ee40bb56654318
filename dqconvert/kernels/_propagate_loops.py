"""Message passing of :mod:`dqconvert.kernels.propagate` on the CPU: compiled loops over the edges of each node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._chain_loops import back_row, has_loops, matrix, observe, round_row
from dqconvert.kernels._grid import Grid, Scheme
from dqconvert.kernels._memory import empty
from dqconvert.kernels._select import Messages, Rows
from dqconvert.kernels._threads import loop, parts, run, run_balanced


def serves(x: Tensor, weight: Tensor | None) -> bool:
    """Whether the loops can do it."""
    return has_loops(x.dtype) and (weight is None or weight.dtype == x.dtype)


def propagate(
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
    num_nodes: int,
    protected: Tensor | None,
    range_: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`dqconvert.kernels.propagate.plain_propagate`."""
    (scheme,) = Scheme.unpacked(ints, floats)
    grid = Grid(scheme, *range_.tolist())
    rows, senders = matrix(x), sender.contiguous().numpy()
    skip = np.empty(0, np.bool_) if protected is None else protected.contiguous().numpy()
    out = empty((num_nodes, x.size(1)), x.dtype)
    ptr, edges = (t.numpy() for t in by_receiver)
    if weight is None:
        observe(grid, Rows(rows, skip if len(skip) else None, np.diff(by_sender[0].numpy())))
        # Every message of a node is the same, so it is rounded once.
        sent = matrix(empty(x.shape, x.dtype))
        parameters = grid.parameters(rows.dtype.type)
        run(
            lambda _, a, b: round_nodes(rows, skip, parameters, sent, a, b),
            parts(len(rows), rows.size),
        )
        run_balanced(lambda _, a, b: sum_rows(sent, senders, ptr, edges, mean, out.numpy(), a, b), ptr)
    else:
        least, most = extremes(rows, weight.size(1))
        weights = weight.detach().contiguous().numpy()
        observe(grid, Messages(rows, weights, senders, skip if len(skip) else None, least, most))
        args = (rows, weights, senders, ptr, edges, skip, grid.parameters(rows.dtype.type), mean, out.numpy())
        run_balanced(lambda _, a, b: sum_products(*args, a, b), ptr)
    return out, torch.tensor([grid.lo, grid.hi])


def propagate_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Sequence[Tensor],
    by_sender: Sequence[Tensor],
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
    grads, rows, receivers = matrix(grad), matrix(x), receiver.contiguous().numpy()
    to_x = empty(x.shape, x.dtype)
    ptr, edges = (t.numpy() for t in by_sender)
    parameters = grid.parameters(rows.dtype.type)
    if weight is None:
        run_balanced(
            lambda _, a, b: sum_back(
                grads, rows, receivers, ptr, edges, skip, parameters, scheme.clip, to_x.numpy(), a, b
            ),
            ptr,
        )
        return to_x, x.new_empty((0, 0))
    to_weight = torch.empty(weight.shape if for_weight else (0, 0), dtype=x.dtype)
    least, most = extremes(rows, weight.size(1))
    weights = weight.detach().contiguous().numpy()
    args = (grads, rows, weights, receivers, ptr, edges, skip, parameters, scheme.clip, least, most)
    run_balanced(lambda _, a, b: products_back(*args, to_x.numpy(), to_weight.numpy(), a, b), ptr)
    return to_x, to_weight


def extremes(rows: NDArray[Any], heads: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and the largest value of each row and head, `[rows, heads]`; NaN where there is one."""
    if rows.size == 0:
        nothing = np.zeros((len(rows), heads), rows.dtype)
        return nothing, nothing
    ends = torch.aminmax(torch.from_numpy(rows).view(len(rows), heads, -1), dim=2)
    return ends.min.numpy(), ends.max.numpy()


@loop
def round_nodes(x, skip, grid, y, start, stop):  # type: ignore[no-untyped-def]
    """Rounds the rows of the nodes that are not skipped."""
    codes = np.empty(x.shape[1], x.dtype)
    for r in range(start, stop):
        if skip.size > 0 and skip[r]:
            y[r] = x[r]
        else:
            round_row(x[r], grid, codes)
            back_row(codes, grid, y[r])


@loop
def sum_rows(sent, sender, ptr, edges, mean, out, start, stop):  # type: ignore[no-untyped-def]
    """Adds up the rows that are sent to each node."""
    for t in range(start, stop):
        row = out[t]
        row[:] = 0
        for place in range(ptr[t], ptr[t + 1]):
            add_row(sent[sender[edges[place]]], row)
        if mean and ptr[t + 1] - ptr[t] > 1:
            divide_row(row, row.dtype.type(ptr[t + 1] - ptr[t]))


@loop
def sum_products(x, weight, sender, ptr, edges, skip, grid, mean, out, start, stop):  # type: ignore[no-untyped-def]
    """Adds up the quantized products that are sent to each node."""
    heads = weight.shape[1]
    channels = x.shape[1] // heads
    for t in range(start, stop):
        row = out[t]
        row[:] = 0
        for place in range(ptr[t], ptr[t + 1]):
            e = edges[place]
            s = sender[e]
            for h in range(heads):
                a, b = h * channels, (h + 1) * channels
                if skip.size > 0 and skip[s]:
                    add_scaled(x[s, a:b], weight[e, h], row[a:b])
                else:
                    add_rounded(x[s, a:b], weight[e, h], grid, row[a:b])
        if mean and ptr[t + 1] - ptr[t] > 1:
            divide_row(row, row.dtype.type(ptr[t + 1] - ptr[t]))


@loop
def sum_back(grad, x, receiver, ptr, edges, skip, grid, clip, to_x, start, stop):  # type: ignore[no-untyped-def]
    """What comes back to each node that sent its row: nothing where the row was clipped."""
    columns = x.shape[1]
    codes = np.empty(columns, x.dtype)
    low, high, zero = grid[2], grid[3], x.dtype.type(0)
    for s in range(start, stop):
        row = to_x[s]
        row[:] = 0
        for place in range(ptr[s], ptr[s + 1]):
            add_row(grad[receiver[edges[place]]], row)
        if clip and not (skip.size > 0 and skip[s]):
            round_row(x[s], grid, codes)
            for c in range(columns):
                row[c] = zero if (codes[c] <= low) | (codes[c] >= high) else row[c]


@loop
def products_back(  # type: ignore[no-untyped-def]
    grad, x, weight, receiver, ptr, edges, skip, grid, clip, least, most, to_x, to_weight, start, stop
):
    """What comes back to each node that sent its row, and to the weights of its edges."""
    heads = weight.shape[1]
    channels = x.shape[1] // heads
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    for s in range(start, stop):
        to_x[s] = 0
        for place in range(ptr[s], ptr[s + 1]):
            e = edges[place]
            t = receiver[e]
            for h in range(heads):
                w = weight[e, h]
                a, b = h * channels, (h + 1) * channels
                passes = not clip or (skip.size > 0 and skip[s])
                if not passes:  # no value of the row can be clipped if its extreme ones are not
                    one = np.rint(w * least[s, h] / scale + zero_point)
                    two = np.rint(w * most[s, h] / scale + zero_point)
                    passes = one > low and one < high and two > low and two < high
                if passes:
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
def add_row(x, out):  # type: ignore[no-untyped-def]
    for c in range(out.size):
        out[c] += x[c]


@loop
def add_scaled(x, w, out):  # type: ignore[no-untyped-def]
    for c in range(out.size):
        out[c] += w * x[c]


@loop
def add_rounded(x, w, grid, out):  # type: ignore[no-untyped-def]
    scale, zero_point, low, high = grid[0], grid[1], grid[2], grid[3]
    for c in range(out.size):
        q = np.rint(w * x[c] / scale + zero_point)
        q = low if q < low else q
        q = high if q > high else q
        out[c] += (q - zero_point) * scale


@loop
def divide_row(row, by):  # type: ignore[no-untyped-def]
    for c in range(row.size):
        row[c] /= by


@loop
def dot(a, b):  # type: ignore[no-untyped-def]
    # Eight sums side by side: one sum alone would have to be added to in order, one value at a time.
    total = np.zeros(8, a.dtype)
    whole = a.size // 8 * 8
    for c in range(0, whole, 8):
        for i in range(8):
            total[i] += a[c + i] * b[c + i]
    for c in range(whole, a.size):
        total[0] += a[c] * b[c]
    return ((total[0] + total[1]) + (total[2] + total[3])) + ((total[4] + total[5]) + (total[6] + total[7]))

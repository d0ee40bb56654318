"""Attention on codes: how much each neighbour weighs, by a softmax over the edges of a node, as codes.

    weight[e, h] = exp(logit[e, h] - peak[i, h]) / sum over the edges to i of exp(logit[e, h] - peak[i, h])

A node's logits are worked on together, and those of all edges are never stored.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._memory import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._pointer import pointer
from dqconvert.kernels._prefetch import prefetch
from dqconvert.kernels._threads import balanced, loop, run
from dqconvert.kernels.integer.codes import as_numbers, code_of_value, plain_quantize
from dqconvert.kernels.integer.finish import CODES

AHEAD = 32
"""How many edges ahead what they look up is asked for."""

_COST = 8
"""What a weight takes, in values that the threads count in."""


def plain_softmax_codes(logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`softmax_codes`."""
    return _quantized_softmax(logits.to(torch.float32)[edges], ptr, grid)


def _quantized_softmax(logits: Tensor, ptr: Tensor, grid: Tensor) -> Tensor:
    """Of logits in the order of the receivers."""
    receivers = _receivers(ptr)
    nodes = ptr.numel() - 1, logits.size(1)
    places = receivers.unsqueeze(1).expand_as(logits)
    peak = logits.new_zeros(nodes).scatter_reduce_(0, places, logits, "amax", include_self=False)
    grown = (logits - peak[receivers]).exp()
    sums = logits.new_zeros(nodes).index_add_(0, receivers, grown) + 1e-16
    return plain_quantize(grown / sums[receivers], grid, None, False)


def _receivers(ptr: Tensor) -> Tensor:
    return torch.arange(ptr.numel() - 1, device=ptr.device).repeat_interleave(ptr.diff())


def plain_attention_codes(
    source: Tensor, target: Tensor, table: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`attention_codes`."""
    logits = table[source[senders.long()].long(), target[_receivers(ptr)].long()]
    return _quantized_softmax(logits, ptr, grid)


def _softmax_on_cpu(logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    codes = empty((edges.numel(), logits.size(1)), torch.uint8)
    order = ptr.contiguous().numpy()
    args = (
        logits.detach().to(torch.float32).contiguous().numpy(),
        order,
        edges.contiguous().numpy(),
        as_numbers(grid, np.float32),
        codes.numpy(),
    )
    cuts = balanced(order, _COST * logits.size(1))
    run(lambda _, start, stop: softmax_nodes(*args, start, stop), cuts)
    return codes


def _attention_on_cpu(
    source: Tensor, target: Tensor, table: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    heads = source.size(1)
    codes = empty((senders.numel(), heads), torch.uint8)
    # What the edges of a node look up lies together in the table's columns.
    turn = codes.numel() > table.numel()
    by_code = (table.t() if turn else table).detach().contiguous()
    order = ptr.contiguous().numpy()
    args = (
        source.contiguous().numpy(),
        target.contiguous().numpy(),
        by_code.view(-1).numpy(),
        *((1, CODES) if turn else (CODES, 1)),
        order,
        senders.contiguous().numpy(),
        as_numbers(grid, np.float32),
        codes.numpy(),
    )
    run(lambda _, start, stop: attention_nodes(*args, start, stop), balanced(order, _COST * heads))
    return codes


@loop
def softmax_nodes(logits, ptr, edges, grid, codes, start, stop):  # type: ignore[no-untyped-def]
    """Nodes `start` to `stop`."""
    heads, last = logits.shape[1], edges.size - 1
    line, found = np.empty(0, np.float32), np.empty(0, np.uint8)
    for node in range(start, stop):
        first, count = ptr[node], ptr[node + 1] - ptr[node]
        if line.size < count * heads:
            line, found = np.empty(2 * count * heads, np.float32), np.empty(2 * count * heads, np.uint8)
        for k in range(count):
            prefetch(logits, edges[min(first + k + AHEAD, last)] * heads)
            from_, to = pointer(logits, edges[first + k] * heads), pointer(line, k)
            for h in range(heads):
                to[h * count] = from_[h]
        weigh_heads(line, count, heads, grid, found, pointer(codes, first * heads))


@loop
def attention_nodes(source, target, table, by_source, by_target, ptr, senders, grid, codes, start, stop):  # type: ignore[no-untyped-def]
    """Nodes `start` to `stop`; `by_source`, `by_target`: how far apart the table's entries are for codes of each."""
    heads, last = source.shape[1], senders.size - 1
    line, found = np.empty(0, np.float32), np.empty(0, np.uint8)
    for node in range(start, stop):
        first, count = ptr[node], ptr[node + 1] - ptr[node]
        if line.size < count * heads:
            line, found = np.empty(2 * count * heads, np.float32), np.empty(2 * count * heads, np.uint8)
        mine, entries = pointer(target, node * heads), pointer(table, 0)
        for k in range(count):
            prefetch(source, np.intp(senders[min(first + k + AHEAD, last)]) * heads)
            from_, to = pointer(source, np.intp(senders[first + k]) * heads), pointer(line, k)
            for h in range(heads):
                to[h * count] = entries[np.intp(from_[h]) * by_source + np.intp(mine[h]) * by_target]
        weigh_heads(line, count, heads, grid, found, pointer(codes, first * heads))


@loop
def weigh_heads(line, count, heads, grid, found, codes):  # type: ignore[no-untyped-def]
    """The codes `[count, heads]` of a softmax of each of the `heads` stretches of `line`.

    `line`, and `found`, uint8 of its size, are overwritten.
    """
    if heads == 1:
        weigh(pointer(line, 0), count, grid, codes)
        return
    for h in range(heads):
        weigh(pointer(line, h * count), count, grid, pointer(found, h * count))
    for k in range(count):
        for h in range(heads):
            codes[k * heads + h] = found[h * count + k]


@loop
def weigh(line, count, grid, codes):  # type: ignore[no-untyped-def]
    """The codes of a softmax of `line`, which is overwritten."""
    peak = np.float32(-np.inf)
    for k in range(count):
        peak = max(peak, line[k])
    for k in range(count):
        line[k] = exp(line[k] - peak)
    # In float32 and in this order, as the definition: halves should come out as halves, or not, in both.
    total = np.float32(0)
    for k in range(count):
        total += line[k]
    for k in range(count):
        codes[k] = np.uint8(np.int32(code_of_value(line[k] / total, grid)))


@loop
def exp(x):  # type: ignore[no-untyped-def]
    """Of a float32 that is not above zero, to about its last bit (Cephes' `expf`); 0 where that is below 1e-38."""
    x = max(x, np.float32(-88))
    power = np.rint(x * np.float32(1.44269504))
    r = x - power * np.float32(0.693359375) - power * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1)
    return y * np.int32((np.int32(power) + 127) << 23).view(np.float32)


def _fake_softmax(logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    return logits.new_empty((edges.numel(), logits.size(1)), dtype=torch.uint8)


def _fake_attention(
    source: Tensor, target: Tensor, table: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    return source.new_empty((senders.numel(), source.size(1)))


softmax_codes_operator = Operator("softmax_codes", plain_softmax_codes, fake=_fake_softmax, cpu=_softmax_on_cpu)
attention_codes_operator = Operator(
    "attention_codes", plain_attention_codes, fake=_fake_attention, cpu=_attention_on_cpu
)


def softmax_codes(logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    """The codes of a softmax over the edges to each node, of each head.

    Of float32 values, as :func:`torch_geometric.utils.softmax` computes them; where exponentials differ by a bit, a
    code in some thousands may differ by one from the definition's.

    **Arguments**

    - `logits`: floating `[num_edges, heads]`, finite, in the order of the list of edges.
    - `ptr`, `edges`: int64 `[num_nodes + 1]` and `[num_edges]`, the edges by their receivers, see
      :func:`dqconvert.kernels.edge_order.edge_order`.
    - `grid`: float32 `[4]`, of the result, see :func:`dqconvert.kernels.integer.codes.quantize`.

    **Returns** uint8 `[num_edges, heads]`, in the order of the receivers: weights for
    :func:`dqconvert.kernels.integer.propagate.integer_propagate`.

    **Raises** `ValueError` if shapes do not fit; `TypeError` for types that do not.

    ```python
    >>> logits = torch.tensor([[0.0], [1.0], [1.0]])
    >>> ptr, edges = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])
    >>> softmax_codes(logits, ptr, edges, torch.tensor([0.01, 0.0, 255.0, 0.0])).flatten().tolist()
    [100, 50, 50]

    ```
    """
    if logits.dim() != 2 or logits.size(0) != edges.numel():
        raise ValueError(f"{edges.numel()} edges take logits {('num_edges', 'heads')}, got {tuple(logits.shape)}")
    if not logits.is_floating_point() or edges.dtype != torch.int64:
        raise TypeError(f"expected floating logits and int64 edges, got {logits.dtype} and {edges.dtype}")
    _check(ptr, grid)
    result: Tensor = softmax_codes_operator(logits, ptr, edges, grid)
    return result


def attention_codes(
    source: Tensor, target: Tensor, table: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    """The codes of attention as graph attention networks have it: a logit for each pair of codes, and their softmax.

    **Arguments**

    - `source`: uint8 `[num_senders, heads]`, `target`: uint8 `[num_nodes, heads]`, codes.
    - `table`: float32 `[256, 256]`, finite: the logit of a source's code and a target's.
    - `ptr`, `senders`: see :func:`dqconvert.kernels.integer.propagate.integer_propagate`.
    - `grid`: float32 `[4]`, of the result.

    **Returns** uint8 `[num_edges, heads]`, in the order of the receivers; see :func:`softmax_codes`.

    **Raises** `ValueError` if shapes do not fit; `TypeError` for types that do not.

    ```python
    >>> source, target = torch.tensor([[0], [3]], dtype=torch.uint8), torch.tensor([[1]], dtype=torch.uint8)
    >>> table = torch.zeros(256, 256)
    >>> table[3, 1] = 1.0
    >>> ptr, senders = torch.tensor([0, 2]), torch.tensor([0, 1])
    >>> attention_codes(source, target, table, ptr, senders, torch.tensor([0.01, 0.0, 255.0, 0.0])).flatten().tolist()
    [27, 73]

    ```
    """
    if source.dim() != 2 or target.shape != (ptr.numel() - 1, source.size(1)) or table.shape != (CODES, CODES):
        shapes = ", ".join(str(tuple(t.shape)) for t in (source, target, table))
        raise ValueError(
            f"expected source {('num_senders', 'heads')}, target {('num_nodes', 'heads')}, of {ptr.numel() - 1} nodes, "
            f"and a table {(CODES, CODES)}, got {shapes}"
        )
    if (source.dtype, target.dtype, table.dtype) != (torch.uint8, torch.uint8, torch.float32):
        dtypes = source.dtype, target.dtype, table.dtype
        raise TypeError(f"expected uint8 codes and a float32 table, got {', '.join(map(str, dtypes))}")
    if senders.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"expected int32 or int64 senders, got {senders.dtype}")
    _check(ptr, grid)
    result: Tensor = attention_codes_operator(source, target, table, ptr, senders, grid)
    return result


def _check(ptr: Tensor, grid: Tensor) -> None:
    if ptr.dtype != torch.int64:
        raise TypeError(f"ptr must be int64, got {ptr.dtype}")
    if grid.shape != (4,):
        raise ValueError(f"the grid must have shape {(4,)}, got {tuple(grid.shape)}")

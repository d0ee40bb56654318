"""Attention on codes: how much each neighbour weighs, by a softmax over the edges of a node, as codes.

    weight[e, h] = exp(logit[e, h] - peak[i, h]) / sum over the edges to i of exp(logit[e, h] - peak[i, h])

Logits are codes, too, counted so that higher codes have higher logits: there are 256 of them, and the exponential of
every difference is looked up. Those of all edges are never stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.attention import softmax_nodes
from dqconvert.kernels.cpu.integer.finish import CODES
from dqconvert.kernels.cpu.threads import balanced, run
from dqconvert.kernels.derived import Derived
from dqconvert.kernels.integer.codes import for_loops, plain_quantize

_COST = 4
"""What a weight takes, in values that the threads count in."""


def plain_softmax_codes(codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`softmax_codes`."""
    return _quantized_softmax(logits[codes[edges].long()], ptr, grid)


def plain_attention_codes(
    source: Tensor, target: Tensor, table: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`attention_codes`."""
    codes = table[target[_receivers(ptr)].long(), source[senders.long()].long()]
    return _quantized_softmax(logits[codes.long()], ptr, grid)


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


def _make_grown(logits: Tensor) -> NDArray[Any]:
    """Returns float32 `[256, 256]`: the exponential of a code's logit less that of the highest code of a node."""
    return array((logits.detach() - logits.detach()[:, None]).exp_())


_grown = Derived(_make_grown)
"""Kept, as for small graphs it takes longer than the softmax."""


def _softmax_on_cpu(codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    return _run(edges, codes, None, None, logits, ptr, grid)


def _attention_on_cpu(
    source: Tensor, target: Tensor, table: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    return _run(senders, source, target, table, logits, ptr, grid)


def _run(
    rows: Tensor, codes: Tensor, target: Tensor | None, table: Tensor | None, logits: Tensor, ptr: Tensor, grid: Tensor
) -> Tensor:
    heads = codes.size(1)
    found, order = empty((rows.numel(), heads), torch.uint8), array(ptr)
    ranks = (None, None) if target is None or table is None else (array(target), array(table))
    args = array(rows), array(codes), *ranks, _grown((logits,)), order, for_loops(grid, np.float32), array(found)
    run(lambda _, start, stop: softmax_nodes(*args, start, stop), balanced(order, _COST * heads))
    return found


def _fake_softmax(codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    return codes.new_empty((edges.numel(), codes.size(1)))


def _fake_attention(
    source: Tensor, target: Tensor, table: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    return source.new_empty((senders.numel(), source.size(1)))


softmax_codes_operator = Operator(
    "softmax_codes",
    plain_softmax_codes,
    fake=_fake_softmax,
    cpu=_softmax_on_cpu,
    takes=Takes(
        "softmax_codes",
        codes="uint8 [entries, heads]",
        logits="float32 [256]",
        ptr="int64 [nodes + 1]",
        edges="int64 [entries]",
        grid="float32 [4]",
        orders=(("ptr", "edges", "entries"),),
    ),
)
attention_codes_operator = Operator(
    "attention_codes",
    plain_attention_codes,
    fake=_fake_attention,
    cpu=_attention_on_cpu,
    takes=Takes(
        "attention_codes",
        source="uint8 [rows, heads]",
        target="uint8 [nodes, heads]",
        table="uint8 [256, 256]",
        logits="float32 [256]",
        ptr="int64 [nodes + 1]",
        senders="index [edges]",
        grid="float32 [4]",
        orders=(("ptr", "senders", "rows"),),
    ),
)


def softmax_codes(codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    """Returns the codes of a softmax over the edges to each node, of each head.

    Of float32 values, as :func:`torch_geometric.utils.softmax` computes them.

    Args:
        codes: uint8 `[num_edges, heads]`, in the order of the list of edges.
        logits: float32 `[256]`, by the code; finite, and nowhere less than before.
        ptr, edges: int64 `[num_nodes + 1]` and `[num_edges]`, the edges by their receivers, see
            :func:`dqconvert.kernels.edge_order.edge_order`.
        grid: float32 `[4]`, of the result, see :func:`dqconvert.kernels.integer.codes.quantize`.

    Returns:
        uint8 `[num_edges, heads]`, in the order of the receivers: weights for
        :func:`dqconvert.kernels.integer.propagate.integer_propagate`.

    Example:
        >>> codes = torch.tensor([[0], [1], [1]], dtype=torch.uint8)
        >>> ptr, edges = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])
        >>> grid = torch.tensor([0.01, 0.0, 255.0, 0.0])
        >>> softmax_codes(codes, torch.arange(256.0), ptr, edges, grid).flatten().tolist()
        [100, 50, 50]
    """
    if codes.dim() != 2 or codes.size(0) != edges.numel():
        raise ValueError(f"{edges.numel()} edges take codes {('num_edges', 'heads')}, got {tuple(codes.shape)}")
    if codes.dtype != torch.uint8 or edges.dtype != torch.int64:
        raise TypeError(f"expected uint8 codes and int64 edges, got {codes.dtype} and {edges.dtype}")
    _check(logits, ptr, grid)
    return softmax_codes_operator(codes, logits, ptr, edges, grid)


def attention_codes(
    source: Tensor, target: Tensor, table: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    """Returns the codes of attention as in graph attention networks: logits by pairs of codes, and their softmax.

    Args:
        source: uint8 `[num_senders, heads]`, codes.
        target: uint8 `[num_nodes, heads]`, codes.
        table: uint8 `[256, 256]`, by a target's code and a source's: the code of their logit.
        logits: float32 `[256]`, by that code; finite, and nowhere less than before.
        ptr, senders: See :func:`dqconvert.kernels.integer.propagate.integer_propagate`.
        grid: float32 `[4]`, of the result.

    Returns:
        uint8 `[num_edges, heads]`, in the order of the receivers; see :func:`softmax_codes`.

    Example:
        >>> source, target = torch.tensor([[0], [3]], dtype=torch.uint8), torch.tensor([[1]], dtype=torch.uint8)
        >>> table = torch.zeros(256, 256, dtype=torch.uint8)
        >>> table[1, 3] = 1
        >>> graph = torch.tensor([0, 2]), torch.tensor([0, 1])
        >>> grid = torch.tensor([0.01, 0.0, 255.0, 0.0])
        >>> attention_codes(source, target, table, torch.arange(256.0), *graph, grid).flatten().tolist()
        [27, 73]
    """
    if source.dim() != 2 or target.shape != (ptr.numel() - 1, source.size(1)) or table.shape != (CODES, CODES):
        shapes = ", ".join(str(tuple(t.shape)) for t in (source, target, table))
        raise ValueError(
            f"expected source {('num_senders', 'heads')}, target {('num_nodes', 'heads')}, of {ptr.numel() - 1} nodes, "
            f"and a table {(CODES, CODES)}, got {shapes}"
        )
    if any(t.dtype != torch.uint8 for t in (source, target, table)):
        dtypes = source.dtype, target.dtype, table.dtype
        raise TypeError(f"expected uint8 codes and a uint8 table, got {', '.join(map(str, dtypes))}")
    if senders.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"expected int32 or int64 senders, got {senders.dtype}")
    _check(logits, ptr, grid)
    return attention_codes_operator(source, target, table, logits, ptr, senders, grid)


def _check(logits: Tensor, ptr: Tensor, grid: Tensor) -> None:
    if ptr.dtype != torch.int64 or logits.dtype != torch.float32:
        raise TypeError(f"expected int64 ptr and float32 logits, got {ptr.dtype} and {logits.dtype}")
    if logits.shape != (CODES,) or grid.shape != (4,):
        shapes = tuple(logits.shape), tuple(grid.shape)
        raise ValueError(f"expected logits {(CODES,)} and a grid {(4,)}, got {shapes[0]} and {shapes[1]}")

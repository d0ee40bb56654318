"""Attention on codes: how much each neighbour weighs, by a softmax over the edges of a node, as codes.

    weight[e, h] = exp(logit[e, h] - peak[i, h]) / sum over the edges to i of exp(logit[e, h] - peak[i, h])

Logits are codes, too, counted so that higher codes have higher logits: there are 256 of them, and the exponential of
every difference is looked up. Those of all edges are never stored. Where grids differ by group of in-degrees, an edge
has those of the node that receives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from dqconvert.kernels.integer.codes import plain_quantize

_COST = 4
"""What a weight takes, in values that the threads count in."""


def plain_softmax_codes(
    codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`softmax_codes`."""
    taken = codes[edges].long()
    return _quantized_softmax(
        logits[taken] if groups is None else _of_rows(logits, ptr, groups, taken), ptr, grid, groups
    )


def plain_attention_codes(
    source: Tensor, target: Tensor, table: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`attention_codes`."""
    codes = table[target[_receivers(ptr)].long(), source[senders.long()].long()]
    return _quantized_softmax(logits[codes.long()], ptr, grid, None)


def plain_attention_sums(
    source: Tensor,
    target: Tensor,
    steps: Tensor,
    logits: Tensor,
    ptr: Tensor,
    senders: Tensor,
    grid: Tensor,
    groups: Tensor,
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`attention_sums`."""
    sums = source[senders.long()] + target[_receivers(ptr)]
    codes = plain_quantize(sums, steps[_groups_of_edges(ptr, groups)].t(), 0, False)
    return _quantized_softmax(_of_rows(logits, ptr, groups, codes.long()), ptr, grid, groups)


def _of_rows(logits: Tensor, ptr: Tensor, groups: Tensor, codes: Tensor) -> Tensor:
    return logits[_groups_of_edges(ptr, groups).unsqueeze(1), codes]


def _quantized_softmax(logits: Tensor, ptr: Tensor, grid: Tensor, groups: Tensor | None) -> Tensor:
    """Of logits in the order of the receivers."""
    receivers = _receivers(ptr)
    nodes = ptr.numel() - 1, logits.size(1)
    places = receivers.unsqueeze(1).expand_as(logits)
    peak = logits.new_zeros(nodes).scatter_reduce_(0, places, logits, "amax", include_self=False)
    grown = (logits - peak[receivers]).exp()
    sums = logits.new_zeros(nodes).index_add_(0, receivers, grown) + 1e-16
    shares = grown / sums[receivers]
    if groups is None:
        return plain_quantize(shares, grid, None, False)
    return plain_quantize(shares, grid[_groups_of_edges(ptr, groups)].t(), 0, False)


def _receivers(ptr: Tensor) -> Tensor:
    return torch.arange(ptr.numel() - 1, device=ptr.device).repeat_interleave(ptr.diff())


def _groups_of_edges(ptr: Tensor, groups: Tensor) -> Tensor:
    return groups[_receivers(ptr)].long()


def _make_grown(logits: Tensor) -> NDArray[Any]:
    """Returns float32 `[groups, 256, 256]`: the exponential of a code's logit less that of a highest one."""
    rows = logits.detach().reshape(-1, CODES)
    return array((rows[:, None] - rows[:, :, None]).exp_())


_grown = Derived(_make_grown)
"""Kept, as for small graphs it takes longer than the softmax."""


def _softmax_on_cpu(
    codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor, groups: Tensor | None = None
) -> Tensor:
    return _run(edges, codes, None, None, None, logits, ptr, grid, groups)


def _attention_on_cpu(
    source: Tensor, target: Tensor, table: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, grid: Tensor
) -> Tensor:
    return _run(senders, source, target, table, None, logits, ptr, grid, None)


def _sums_on_cpu(
    source: Tensor,
    target: Tensor,
    steps: Tensor,
    logits: Tensor,
    ptr: Tensor,
    senders: Tensor,
    grid: Tensor,
    groups: Tensor,
) -> Tensor:
    return _run(senders, source, target, None, steps, logits, ptr, grid, groups)


def _run(
    rows: Tensor,
    given: Tensor,
    target: Tensor | None,
    table: Tensor | None,
    steps: Tensor | None,
    logits: Tensor,
    ptr: Tensor,
    grid: Tensor,
    groups: Tensor | None,
) -> Tensor:
    heads = given.size(1)
    found, order = empty((rows.numel(), heads), torch.uint8), array(ptr)
    how = [None if t is None else array(t) for t in (target, table, steps, groups)]
    args = array(rows), array(given), *how, _grown((logits,)), order, array(grid.reshape(-1, 4)), array(found)
    run(lambda _, start, stop: softmax_nodes(*args, start, stop), balanced(order, _COST * heads))
    return found


def _fake_softmax(codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, *_: Tensor | None) -> Tensor:
    return codes.new_empty((edges.numel(), codes.size(1)))


def _fake_attention(
    source: Tensor, target: Tensor, steps: Tensor, logits: Tensor, ptr: Tensor, senders: Tensor, *_: Tensor
) -> Tensor:
    return source.new_empty((senders.numel(), source.size(1)), dtype=torch.uint8)


def _check_groups(_: Mapping[str, int], args: Sequence[Any]) -> None:
    _, logits, ptr, _, grid, groups = args
    _check(logits, ptr, grid, groups)


softmax_codes_operator = Operator(
    "softmax_codes",
    plain_softmax_codes,
    fake=_fake_softmax,
    cpu=_softmax_on_cpu,
    takes=Takes(
        "softmax_codes",
        codes="uint8 [entries, heads]",
        logits="float32 [256] | [count, 256]",
        ptr="int64 [nodes + 1]",
        edges="int64 [entries]",
        grid="float32 [4] | [count, 4]",
        groups="uint8? [nodes]",
        orders=(("ptr", "edges", "entries"),),
        also=_check_groups,
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
attention_sums_operator = Operator(
    "attention_sums",
    plain_attention_sums,
    fake=_fake_attention,
    cpu=_sums_on_cpu,
    serves=lambda source, target, steps, *_: len(steps) > 0,
    takes=Takes(
        "attention_sums",
        source="float32 [rows, heads]",
        target="float32 [nodes, heads]",
        steps="float32 [count, 4]",
        logits="float32 [count, 256]",
        ptr="int64 [nodes + 1]",
        senders="index [edges]",
        grid="float32 [count, 4]",
        groups="uint8 [nodes]",
        orders=(("ptr", "senders", "rows"),),
    ),
)


def softmax_codes(
    codes: Tensor, logits: Tensor, ptr: Tensor, edges: Tensor, grid: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Returns the codes of a softmax over the edges to each node, of each head.

    Of float32 values, as :func:`torch_geometric.utils.softmax` computes them.

    Args:
        codes: uint8 `[num_edges, heads]`, in the order of the list of edges.
        logits: float32 `[256]`, by the code; finite, and nowhere less than before. With groups `[groups, 256]`.
        ptr, edges: int64 `[num_nodes + 1]` and `[num_edges]`, the edges by their receivers, see
            :func:`dqconvert.kernels.edge_order.edge_order`.
        grid: float32 `[4]`, of the result, see :func:`dqconvert.kernels.integer.codes.quantize`. With groups
            `[groups, 4]`.
        groups: uint8 `[num_nodes]`, the group of each receiver; None: there are none.

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
    _check(logits, ptr, grid, groups)
    return softmax_codes_operator(codes, logits, ptr, edges, grid, groups)


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


def attention_sums(
    source: Tensor,
    target: Tensor,
    steps: Tensor,
    logits: Tensor,
    ptr: Tensor,
    senders: Tensor,
    grid: Tensor,
    groups: Tensor,
) -> Tensor:
    """Returns the codes of attention whose grids differ by group of the receiver: sums of values, and their softmax.

    A table of pairs of codes would have to be there for each pair of groups; so logits are the codes of sums.

    Args:
        source: float32 `[num_senders, heads]`, values.
        target: float32 `[num_nodes, heads]`, what is added to those of each edge.
        steps: float32 `[groups, 4]`, the grids to which sums are rounded.
        logits: float32 `[groups, 256]`, by the code of a sum; finite, and nowhere less than before.
        ptr, senders: See :func:`dqconvert.kernels.integer.propagate.integer_propagate`.
        grid: float32 `[groups, 4]`, of the result.
        groups: uint8 `[num_nodes]`.

    Returns:
        uint8 `[num_edges, heads]`, in the order of the receivers; see :func:`softmax_codes`.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: For types that do not.

    Example:
        >>> source, target = torch.tensor([[0.0], [1.1]]), torch.tensor([[3.0]])
        >>> steps, grid = torch.tensor([[1.0, 0.0, 15.0, 0.0]]), torch.tensor([[0.01, 0.0, 255.0, 0.0]])
        >>> graph = torch.tensor([0, 2]), torch.tensor([0, 1])
        >>> logits, groups = torch.arange(256.0)[None], torch.zeros(1, dtype=torch.uint8)
        >>> attention_sums(source, target, steps, logits, *graph, grid, groups).flatten().tolist()
        [27, 73]
    """
    return attention_sums_operator(source, target, steps, logits, ptr, senders, grid, groups)


def _check(logits: Tensor, ptr: Tensor, grid: Tensor, groups: Tensor | None = None) -> None:
    if ptr.dtype != torch.int64 or logits.dtype != torch.float32:
        raise TypeError(f"expected int64 ptr and float32 logits, got {ptr.dtype} and {logits.dtype}")
    several = () if groups is None else (max(logits.size(0), 1),)
    if logits.shape != (*several, CODES) or grid.shape != (*several, 4):
        wanted = f"logits {(*several, CODES)} and a grid {(*several, 4)}"
        raise ValueError(f"expected {wanted}, got {tuple(logits.shape)} and {tuple(grid.shape)}")

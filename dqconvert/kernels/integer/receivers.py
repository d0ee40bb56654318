"""The edges of a new graph, in the order of their receivers, and the weights that a GCN layer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqconvert.errors import InputIndexError, InputShapeError
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.counting_sort import INT32, sort_edges
from dqconvert.kernels.cpu.integer.receivers import code_weights
from dqconvert.kernels.cpu.threads import balanced, run
from dqconvert.kernels.edge_order import plain_edge_order
from dqconvert.kernels.integer.codes import for_loops, plain_quantize
from dqconvert.kernels.order import vouch


def plain_receiver_order(
    sender: Tensor, receiver: Tensor, num_source: int, num_target: int, loops: bool, positions: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Defines what every implementation is held to.

    The arguments are those of :func:`receiver_order`; `loops`: whether edges from a node to itself are left out, and
    one is put behind the other edges of each node; then there are no positions in the list.
    """
    if _outside(sender, num_source) or _outside(receiver, num_target):
        raise _nowhere(sender, receiver, num_source, num_target)
    if loops:
        nodes = torch.arange(num_target, device=sender.device)
        kept = sender != receiver
        sender, receiver = torch.cat([sender[kept], nodes]), torch.cat([receiver[kept], nodes])
    ptr, edges, senders = plain_edge_order(receiver.long(), sender, num_target)
    return ptr, senders.to(_kind(num_source)), edges if positions and not loops else edges[:0].clone()


def _outside(index: Tensor, size: int) -> bool:
    return index.numel() > 0 and not 0 <= int(index.min()) <= int(index.max()) < size


def _nowhere(sender: Tensor, receiver: Tensor, num_source: int, num_target: int) -> InputIndexError:
    index, size = (sender, num_source) if _outside(sender, num_source) else (receiver, num_target)
    wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
    return InputIndexError(f"edge_index names node {wrong}, and there are {size} nodes: they are counted from 0")


def _kind(num_source: int) -> torch.dtype:
    return torch.int32 if num_source < INT32 else torch.int64


def _on_cpu(
    sender: Tensor, receiver: Tensor, num_source: int, num_target: int, loops: bool, positions: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kind = _kind(num_source)
    found = sort_edges(sender, receiver, num_source, num_target, kind, loops=loops, positions=positions and not loops)
    if found is None:
        raise _nowhere(sender, receiver, num_source, num_target)
    ptr, senders, places = found
    vouch(ptr, senders, num_source)
    return ptr, senders, places


def _fake(
    sender: Tensor, receiver: Tensor, num_source: int, num_target: int, loops: bool, positions: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size() if loops else sender.numel()
    ptr = sender.new_empty(num_target + 1, dtype=torch.int64)
    senders = sender.new_empty(count, dtype=_kind(num_source))
    return ptr, senders, sender.new_empty(count if positions and not loops else 0, dtype=torch.int64)


def _check(_: object, args: Sequence[Any]) -> None:
    if args[4] and args[2] != args[3]:
        raise InputShapeError(f"only among the same nodes has each an edge to itself, not of {args[2]} and {args[3]}")


receiver_order_operator = Operator(
    "receiver_order",
    plain_receiver_order,
    fake=_fake,
    cpu=_on_cpu,
    takes=Takes(
        "receiver_order",
        sender="index [edges]",
        receiver="index [edges]",
        num_source="size",
        num_target="size",
        loops="flag",
        positions="flag",
        also=_check,
    ),
)


def receiver_order(
    sender: Tensor, receiver: Tensor, num_source: int, num_target: int, *, positions: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the edges in the order of their receivers, else in the order of the list.

    Args:
        sender: int64 or int32 `[num_edges]`, which row of the source each message is made from.
        receiver: Likewise, which row of the result it goes to.
        num_source, num_target: How many rows the source and the result have.
        positions: True if anybody wants to know where in the list each edge was.

    Returns:
        Where the edges of each receiver begin, int64 `[num_target + 1]`; their senders, int32 if they fit; their
        positions, int64, empty if they are not wanted.

    Raises:
        IndexError: If a row is not there.

    Example:
        >>> receiver_order(torch.tensor([5, 6, 7]), torch.tensor([1, 0, 1]), 8, 2)
        (tensor([0, 1, 3]), tensor([6, 5, 7], dtype=torch.int32), tensor([1, 0, 2]))
    """
    ptr, senders, edges = receiver_order_operator(sender, receiver, num_source, num_target, False, positions)
    return ptr, senders, edges


def gcn_order(edge_index: Tensor, num_nodes: int, *, loops: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Computes :func:`torch_geometric.nn.conv.gcn_conv.gcn_norm` of edges without weights, in the order of receivers.

    Args:
        edge_index: int64 or int32 `[2, num_edges]`, senders and receivers.
        num_nodes: How many nodes there are.
        loops: True if every node has one edge to itself, behind its others.

    Returns:
        Where the edges of each receiver begin, int64 `[num_nodes + 1]`; their senders, int32 if they fit; float32
        `[num_nodes]`, one over the root of how many edges each node receives, 0 if it receives none: the weight of an
        edge is the product of the two ends' numbers.

    Raises:
        IndexError: If a node is not there.

    Example:
        >>> gcn_order(torch.tensor([[0, 1], [1, 1]]), 2, loops=True)
        (tensor([0, 1, 3]), tensor([0, 0, 1], dtype=torch.int32), tensor([1.0000, 0.7071]))
    """
    ptr, senders, _ = receiver_order_operator(edge_index[0], edge_index[1], num_nodes, num_nodes, loops, False)
    return ptr, senders, inverse_roots(ptr)


def inverse_roots(ptr: Tensor) -> Tensor:
    """Returns one over the root of how many edges each node receives, float32; 0 where it receives none.

    Example:
        >>> inverse_roots(torch.tensor([0, 4, 4]))
        tensor([0.5000, 0.0000])
    """
    roots = ptr.diff().float().pow_(-0.5)
    return roots.masked_fill_(roots == float("inf"), 0)


def plain_gcn_codes(ptr: Tensor, senders: Tensor, roots: Tensor, grid: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`gcn_codes`."""
    receivers = torch.repeat_interleave(ptr.diff())
    return plain_quantize(roots[senders.long()] * roots[receivers], grid, None, False)[:, None]


def _codes_on_cpu(ptr: Tensor, senders: Tensor, roots: Tensor, grid: Tensor) -> Tensor:
    codes = torch.empty(senders.numel(), 1, dtype=torch.uint8)
    starts = array(ptr)
    args = starts, array(senders), array(roots), for_loops(grid, np.float32), array(codes.view(-1))
    run(lambda _, start, stop: code_weights(*args, start, stop), balanced(starts, 1))
    return codes


gcn_codes_operator = Operator(
    "gcn_codes",
    plain_gcn_codes,
    fake=lambda ptr, senders, *_: senders.new_empty((senders.numel(), 1), dtype=torch.uint8),
    cpu=_codes_on_cpu,
    takes=Takes(
        "gcn_codes",
        ptr="int64 [nodes + 1]",
        senders="index [edges]",
        roots="float32 [nodes]",
        grid="float32 [4]",
        orders=(("ptr", "senders", "nodes"),),
    ),
)


def gcn_codes(ptr: Tensor, senders: Tensor, roots: Tensor, grid: Tensor) -> Tensor:
    """Returns the codes of the weights of edges, in the order of :func:`gcn_order`.

    Args:
        ptr, senders, roots: What that returned.
        grid: float32 `[4]`, see :func:`dqconvert.kernels.integer.codes.quantize`.

    Returns:
        uint8 `[num_edges, 1]`.

    Example:
        >>> order = gcn_order(torch.tensor([[0, 1], [1, 1]]), 2, loops=True)
        >>> gcn_codes(*order, torch.tensor([0.01, 0.0, 255.0, 0.0])).tolist()
        [[100], [71], [50]]
    """
    return gcn_codes_operator(ptr, senders, roots, grid)

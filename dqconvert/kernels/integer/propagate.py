"""Message passing on codes: every node adds up what its neighbours send, in integers, and no message is ever stored.

sums[i, c] = sum over the edges e to i of (x[sender[e], c] - zero)                                    exactly, or
sums[i, c] = sum over the edges e to i of round_to_grid((x[sender[e], c] - zero) * multipliers[weight[e]])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._grid import CodeGrid
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.integer.propagate import propagate_groups, propagate_rows
from dqconvert.kernels.cpu.llvm.edges import LEAST
from dqconvert.kernels.cpu.llvm.messages import SUM
from dqconvert.kernels.cpu.llvm.vectors import AVX2
from dqconvert.kernels.cpu.threads import balanced, run
from dqconvert.kernels.integer.codes import as_numbers
from dqconvert.kernels.integer.finish import TAKES, Finish, fake_room, finish_arrays, plain_finish, room, unpack
from dqconvert.kernels.integer.message_weights import (
    REDUCTIONS,
    STEEPEST,
    check_all,
    check_weight,
    check_width,
    group_messages,
    messages,
)

EXACT = 1 << 23
"""Messages whose sum fits into int32, whatever the codes: 2^23 * 255 < 2^31."""

_SHORT = 257
"""Bytes whose sum fits into 16 bits."""

_BYTES = 4
"""Codes that take as long as one value elsewhere: they decide whether a second thread is worth waking."""

_ALL = 1 << 62
"""There is no sum that could be too large."""

_ONE_WEIGHT = np.zeros((1, 1), np.uint8)
_NO_TABLE, _SAME = np.empty(0, np.int16), np.arange(16, dtype=np.uint8).reshape(1, 16)


class MessageWeight(NamedTuple):
    """What the messages of an edge are multiplied by.

    Attributes:
        codes: uint8 `[num_edges, heads]`, in the order of the receivers. Head `h` multiplies columns `h * columns /
            heads` to `(h + 1) * columns / heads`.
        multipliers: float32 `[256]`, finite, by the code: the weight's value times the scale of `x`, divided by the
            scale of the messages.
        grid: float32 `[4]`, of the messages: scale, zero, the highest code, and the lowest of training: they are
            rounded as :func:`dqconvert.kernels.integer.codes.quantize` does.
        groups: uint8 `[num_senders]`, the group of each sender, if rows are on grids of groups: then multipliers are
            `[groups of receivers, groups of senders, 256]`, `grid` is `[groups of receivers, 4]`, and that of `x`
            `[groups of senders, 4]`; who receives is in the group that the finish says. Where there is but one group
            of a kind, nobody has to say it.
    """

    codes: Tensor
    multipliers: Tensor
    grid: Tensor
    groups: Tensor | None = None


def plain_integer_propagate(
    x: Tensor,
    x_grid: Tensor,
    ptr: Tensor,
    senders: Tensor,
    columns: int,
    packed_input: bool,
    reduce: str,
    weight: MessageWeight | None,
    finish: Finish,
) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`integer_propagate`."""
    codes = unpack(x, columns) if packed_input else x
    degree = ptr.diff()
    receivers = torch.arange(degree.numel(), device=x.device).repeat_interleave(degree)
    if weight is None or weight.multipliers.dim() == 1:
        message = (codes.long() - CodeGrid(*x_grid).zero.long())[senders.long()]
    else:
        of_sender, of_receiver = _of_edges(weight, finish, senders.long(), receivers)
        message = codes.long()[senders.long()] - CodeGrid(*x_grid.t()).zero.long()[of_sender].unsqueeze(1)
    if weight is not None:
        rows, heads = weight.codes.shape
        # In float64, where the product is exact and rounded once.
        by_code, numbers = weight.multipliers.clamp(-STEEPEST, STEEPEST).to(torch.float64), weight.grid.double()
        if by_code.dim() == 1:
            factors = by_code[weight.codes.long()]
        else:
            factors = by_code[of_receiver.unsqueeze(1), of_sender.unsqueeze(1), weight.codes.long()]
            numbers = numbers[of_receiver].t()[:, :, None, None]
        product = message.view(rows, heads, columns // heads) * factors.unsqueeze(2)
        _, zero, top, low = CodeGrid(*numbers)
        steps = (product + (zero + low)).to(torch.float32).round()
        message = (steps.clamp(low, low + top) - (zero + low)).long().view(rows, columns)
    sums = message.new_zeros(degree.numel(), columns)
    if REDUCTIONS[reduce] == SUM:
        sums.index_add_(0, receivers, message)
    else:
        places = receivers.unsqueeze(1).expand_as(message)
        sums.scatter_reduce_(0, places, message, f"a{reduce}", include_self=False)
    shares = 1 / degree.clamp(min=1).to(torch.float32) if reduce == "mean" else None
    return plain_finish(sums, finish, shares)


def _of_edges(weight: MessageWeight, finish: Finish, senders: Tensor, receivers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the group of the sender and of the receiver of each edge."""
    ends = (senders, weight.groups, weight.multipliers.size(1)), (receivers, finish.groups, weight.multipliers.size(0))
    of_sender, of_receiver = (
        torch.zeros_like(nodes) if groups is None else groups.long()[nodes].clamp(max=count - 1)
        for nodes, groups, count in ends
    )
    return of_sender, of_receiver


def _on_cpu(
    x: Tensor,
    x_grid: Tensor,
    ptr: Tensor,
    senders: Tensor,
    columns: int,
    packed_input: bool,
    reduce: str,
    weight: MessageWeight | None,
    finish: Finish,
) -> Tensor:
    nodes = ptr.numel() - 1
    out = room(nodes, columns, finish)
    if out.numel() == 0:
        return out
    if weight is not None and weight.multipliers.dim() > 1:
        x = unpack(x, columns) if packed_input else x
        return _by_group(x, x_grid, ptr, senders, columns, reduce == "mean", weight, finish, out)
    zero, kind = int(as_numbers(x_grid, np.float32).zero), REDUCTIONS[reduce]
    if packed_input and not (AVX2 and (weight is None or _pack_whole(columns, weight.codes.size(1)))):
        x, packed_input = unpack(x, columns), False
    size = x.size(1)
    if size < LEAST:
        x = torch.nn.functional.pad(x, (0, LEAST - size))

    if weight is None:
        weights, by_code, numbers = _ONE_WEIGHT, _SAME if packed_input else _NO_TABLE, (0, 0, 0, 0, zero)
    else:
        weights = array(weight.codes)
        by_code, numbers = messages((weight.multipliers, weight.grid), zero, packed_input)
    most = EXACT if kind == SUM else _ALL
    block = most if kind != SUM or by_code.dtype == np.float32 else min(_SHORT, most)

    order = array(ptr)
    args = (
        array(x),
        order,
        array(senders),
        weights,
        by_code,
        2 if packed_input else 1,
        numbers,
        kind,
        reduce == "mean",
        block,
        most,
        size,
        columns,
        finish_arrays(finish, columns),
        array(out),
    )
    run(lambda _, start, stop: propagate_rows(*args, start, stop), balanced(order, -(-size // _BYTES)))
    return out


def _by_group(
    x: Tensor,
    x_grid: Tensor,
    ptr: Tensor,
    senders: Tensor,
    columns: int,
    mean: bool,
    weight: MessageWeight,
    finish: Finish,
    out: Tensor,
) -> Tensor:
    """Computes sums, or means, of messages on grids of groups."""
    x = torch.nn.functional.pad(x, (0, max(LEAST - columns, 0)))
    tables, zeros, numbers = group_messages((weight.multipliers, weight.grid, x_grid))
    order, own = array(ptr), np.empty(0, np.uint8) if weight.groups is None else array(weight.groups)
    made = array(x), order, array(senders), own, array(weight.codes), tables, zeros, numbers
    args = (*made, mean, EXACT, columns, finish_arrays(finish, columns), array(out))
    run(lambda _, start, stop: propagate_groups(*args, start, stop), balanced(order, -(-columns // _BYTES)))
    return out


def _pack_whole(columns: int, heads: int) -> bool:
    """True if the columns of each head, two to a byte, fill whole strips."""
    return heads == 1 or columns // heads % (2 * LEAST) == 0


def _fake(x: Tensor, x_grid: Tensor, ptr: Tensor, senders: Tensor, columns: int, *rest: Any) -> Tensor:
    return fake_room(x, ptr.numel() - 1, columns, rest[-1])


def _check_types(
    x: Tensor,
    x_grid: Tensor,
    ptr: Tensor,
    senders: Tensor,
    columns: int,
    packed_input: bool,
    reduce: str,
    weight: MessageWeight | None,
    finish: Finish,
) -> None:
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    check_width(x, columns, packed_input)
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 codes, got {x.dtype}")
    if ptr.dtype != torch.int64 or senders.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"expected int64 ptr and int32 or int64 senders, got {ptr.dtype} and {senders.dtype}")
    if weight is not None:
        check_weight(*weight[:3], senders.numel(), columns)


integer_propagate_operator = Operator(
    "integer_propagate",
    plain_integer_propagate,
    fake=_fake,
    cpu=_on_cpu,
    check=_check_types,
    takes=Takes(
        "integer_propagate",
        x="uint8 [rows, width]",
        x_grid="float32 [4] | [of_x, 4]",
        ptr="int64 [nodes + 1]",
        senders="index [edges]",
        columns="size",
        packed_input="flag",
        reduce="flag",
        weight="uint8? [edges, heads]",
        multipliers="float32? [256] | [of_messages, of_x, 256]",
        message_grid="float32? [4] | [of_messages, 4]",
        sender_groups="uint8? [rows]",
        **TAKES,
        orders=(("ptr", "senders", "rows"),),
        also=check_all,
    ),
)


def integer_propagate(
    x: Tensor,
    x_grid: Tensor,
    ptr: Tensor,
    senders: Tensor,
    columns: int,
    finish: Finish,
    *,
    weight: MessageWeight | None = None,
    reduce: str = "sum",
    packed_input: bool = False,
) -> Tensor:
    """Message passing on codes, in integers: exact, whatever the number of edges.

    The messages of an edge are the codes of its sender; with `weight`, they are multiplied and rounded to a grid of
    their own, as in training: to float32 when its zero point is added, then to integers, halves to even.

    Args:
        x: uint8 codes `[num_senders, columns]`; with `packed_input`, two to a byte, `[num_senders, (columns + 1) //
            2]`.
        x_grid: float32 `[4]`: scale, zero, the highest code, and the lowest of training; or one of each group.
        ptr: int64 `[num_nodes + 1]`; the edges to node `i` are `ptr[i]` to `ptr[i + 1]`.
        senders: int32 or int64 `[num_edges]`; whether all are there is looked at once, see
            :func:`dqconvert.kernels.order.check_order`.
        columns: Of the result.
        finish: What makes codes of the sums; its factor is the scale of the messages.
        weight: See :class:`MessageWeight`.
        reduce: Or `"mean"`, `"max"`, `"min"`; of a node without edges it is zero.
        packed_input: True if `x` is packed.

    Returns:
        `[num_nodes, columns]`, or `[num_nodes, (columns + 1) // 2]` if the finish packs; of its table's dtype, or
        uint8, or float32 without a grid.

    Raises:
        ValueError: If shapes do not fit, or for another reduction.
        TypeError: For types that do not.

    Example:
        >>> x = torch.tensor([[3, 5], [1, 1]], dtype=torch.uint8)
        >>> ptr, senders = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0])
        >>> finish = Finish(factor=torch.tensor([0.5]), grid=torch.tensor([1.0, 4.0, 15.0, 0.0]))
        >>> integer_propagate(x, torch.tensor([0.5, 1.0, 15.0, 0.0]), ptr, senders, 2, finish)
        tensor([[5, 6],
                [5, 6]], dtype=torch.uint8)
    """
    return integer_propagate_operator(x, x_grid, ptr, senders, columns, packed_input, reduce, weight, finish)

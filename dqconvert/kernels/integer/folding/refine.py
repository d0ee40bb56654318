"""Color refinement: nodes of one color have the same value, whatever a layer computes.

The Weisfeiler-Leman test in one dimension: behind each layer those nodes share a color that shared one before and
received as many messages of each color. No layer that passes messages can tell them apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer
from dqconvert.kernels.cpu.threads import balanced, run
from dqconvert.kernels.integer.folding.colors import hash_table, mixed

_SHORT = 64
"""Messages that are put in order by inserting them."""


def plain_refine_colors(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    """Defines what every implementation is held to; the arguments are those of :func:`refine_colors`."""
    known: dict[tuple[int, ...], int] = {}
    received = sent[senders.long()]
    found = []
    for i, own in enumerate(colors.tolist()):
        messages = sorted(received[ptr[i] : ptr[i + 1]].tolist())
        found.append(known.setdefault((own, *messages), i))
    return torch.tensor(found, dtype=torch.int32, device=colors.device)


def _refine_on_cpu(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    args = tuple(map(array, (colors, sent, ptr, senders)))
    nodes, cuts = len(args[0]), balanced(args[2], 4)
    hashes, found = np.empty(nodes, np.uint64), torch.empty(nodes, dtype=torch.int32)
    run(lambda _, start, stop: hash_messages(*args, hashes, start, stop), cuts)
    match_hashes(hashes, hash_table(nodes), array(found))
    if not all(run(lambda _, start, stop: have_messages(*args, array(found), start, stop), cuts)):
        match_messages(*args, hashes, hash_table(nodes), array(found))  # two that differ have one hash
    return found


@loop
def hash_messages(colors, sent, ptr, senders, hashes, start, stop):  # type: ignore[no-untyped-def]
    """In whatever order the messages come."""
    color = pointer(sent, 0)
    for i in range(start, stop):
        total, sender = np.uint64(0), pointer(senders, ptr[i])
        for e in range(ptr[i + 1] - ptr[i]):
            total += mixed(color[sender[e]])
        hashes[i] = mixed(total ^ mixed(~np.uint64(colors[i])))


@loop
def match_hashes(hashes, table, found):  # type: ignore[no-untyped-def]
    """As :func:`dqconvert.kernels.integer.folding.colors.match_rows`, by the hashes alone."""
    mask = np.uint64(table.size - 1)
    for i in range(found.size):
        place = hashes[i] & mask
        while table[place] >= 0 and hashes[table[place]] != hashes[i]:
            place = (place + np.uint64(1)) & mask
        if table[place] < 0:
            table[place] = i
        found[i] = table[place]


@loop
def have_messages(colors, sent, ptr, senders, found, start, stop):  # type: ignore[no-untyped-def]
    """True if nodes are as those that were found for them."""
    one, other = np.empty(_SHORT, np.int32), np.empty(_SHORT, np.int32)
    for i in range(start, stop):
        j = found[i]
        if i != j and (colors[i] != colors[j] or not equal_messages(sent, ptr, senders, i, j, one, other)):
            return False
    return True


@loop
def match_messages(colors, sent, ptr, senders, hashes, table, found):  # type: ignore[no-untyped-def]
    """As :func:`dqconvert.kernels.integer.folding.colors.match_rows`."""
    mask = np.uint64(table.size - 1)
    one, other = np.empty(_SHORT, np.int32), np.empty(_SHORT, np.int32)
    for i in range(found.size):
        place = hashes[i] & mask
        found[i] = i
        while table[place] >= 0:
            j = table[place]
            if (
                hashes[j] == hashes[i]
                and colors[j] == colors[i]
                and equal_messages(sent, ptr, senders, i, j, one, other)
            ):
                found[i] = j
                break
            place = (place + np.uint64(1)) & mask
        if found[i] == i:
            table[place] = i


@loop
def equal_messages(sent, ptr, senders, i, j, one, other):  # type: ignore[no-untyped-def]
    """`one` and `other` are room to sort short lists in."""
    count = ptr[i + 1] - ptr[i]
    if ptr[j + 1] - ptr[j] != count:
        return False
    mine, theirs, color = pointer(senders, ptr[i]), pointer(senders, ptr[j]), pointer(sent, 0)
    first, last = 0, count - 1
    while first < count and color[mine[first]] == color[theirs[first]]:
        first += 1
    while last > first and color[mine[last]] == color[theirs[last]]:
        last -= 1
    left = last + 1 - first
    if left > _SHORT:
        one, other = np.empty(left, np.int32), np.empty(left, np.int32)
    for e in range(left):
        insert(color[mine[first + e]], one, e)
        insert(color[theirs[first + e]], other, e)
    if left > _SHORT:
        one.sort()
        other.sort()
    for e in range(left):  # noqa: SIM110
        if one[e] != other[e]:
            return False
    return True


@loop
def insert(value, line, count):  # type: ignore[no-untyped-def]
    """Into a line that is short, and in order; behind a long one."""
    place = count
    if line.size <= _SHORT:
        while place > 0 and line[place - 1] > value:
            line[place] = line[place - 1]
            place -= 1
    line[place] = value


refine_colors_operator = Operator(
    "refine_colors",
    plain_refine_colors,
    fake=lambda colors, sent, ptr, senders: torch.empty_like(colors),
    cpu=_refine_on_cpu,
    takes=Takes(
        "refine_colors",
        colors="int32 [nodes]",
        sent="int32 [rows]",
        ptr="int64 [nodes + 1]",
        senders="index [edges]",
        orders=(("ptr", "senders", "rows"),),
    ),
)


def refine_colors(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    """For each node the first one that has its color and receives as many messages of each color.

    Args:
        colors: int32 `[num_nodes]`, of the nodes.
        sent: int32 `[num_senders]`, the color of what each node sends: mostly its own.
        ptr, senders: See :func:`dqconvert.kernels.integer.propagate.integer_propagate`.

    Returns:
        int32 `[num_nodes]`.

    Example:
        >>> colors = torch.zeros(4, dtype=torch.int32)
        >>> ptr, senders = torch.tensor([0, 3, 4, 5, 6]), torch.tensor([1, 2, 3, 0, 0, 0])
        >>> refine_colors(colors, colors, ptr, senders)
        tensor([0, 1, 1, 1], dtype=torch.int32)
    """
    result: Tensor = refine_colors_operator(colors, sent, ptr, senders)
    return result

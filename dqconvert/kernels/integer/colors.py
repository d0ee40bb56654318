"""Colors of nodes: nodes of one color have the same value, whatever a layer computes.

Color refinement, the Weisfeiler-Leman test in one dimension: at first the nodes that have the same features share a
color; behind each layer those that shared one before and received as many messages of each color. No layer that passes
messages can tell them apart. A color is named after its first node.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dqconvert.kernels._operator import Operator
from dqconvert.kernels._pointer import pointer
from dqconvert.kernels._threads import balanced, loop, parts, run

_PAIRS = 64
"""Pairs of nodes by which is judged how often features repeat."""

_EQUAL = 4
"""So many of them have to be equal."""

_APART = 8
"""Of rows that have no memory of their own, so many for each pair are looked at."""

_SHORT = 64
"""Messages that are put in order by inserting them."""

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""

# -- the same features ---------------------------------------------------------------------------------------------


def plain_row_colors(x: Tensor) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`row_colors`."""
    known: dict[bytes, int] = {}
    rows = as_words(x).cpu().numpy()
    found = [known.setdefault(row.tobytes(), i) for i, row in enumerate(rows)]
    return torch.tensor(found, dtype=torch.int32, device=x.device)


def as_words(x: Tensor) -> Tensor:
    """Integers `[rows, columns]` that hold the same bits, in the same memory if that can be."""
    x = x.detach()
    if x.dim() != 2 or not x.is_contiguous():
        x = x.reshape(x.size(0), -1).contiguous()
    return x.view(_SAME_SIZE.get(x.itemsize, torch.int64))


def _rows_on_cpu(x: Tensor) -> Tensor:
    words = as_words(x).numpy()
    hashes, colors = np.empty(len(words), np.uint64), torch.empty(len(words), dtype=torch.int32)
    run(lambda _, start, stop: hash_rows(words, hashes, start, stop), parts(len(words), words.size))
    match_rows(words, hashes, _table(len(words)), colors.numpy())
    return colors


def _table(entries: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """For places by hash: half empty, and -1 everywhere."""
    return np.full(1 << max(2 * entries - 1, 1).bit_length(), -1, np.int32)


@loop
def mixed(value):  # type: ignore[no-untyped-def]
    """Spreads a number over 64 bits: the finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@loop
def hash_rows(x, hashes, start, stop):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    for i in range(start, stop):
        row, found = pointer(x, i * columns), np.uint64(0)
        for c in range(columns):
            found = mixed(found ^ np.uint64(row[c]))
        hashes[i] = found


@loop
def equal_rows(x, i, j):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    one, other = pointer(x, i * columns), pointer(x, j * columns)
    for c in range(columns):  # noqa: SIM110  a loop that stops is compiled
        if one[c] != other[c]:
            return False
    return True


@loop
def match_rows(x, hashes, table, colors):  # type: ignore[no-untyped-def]
    """Fills `colors`, by a table of nodes at the places that their hashes say, or behind those."""
    mask = np.uint64(table.size - 1)
    for i in range(colors.size):
        place = hashes[i] & mask
        colors[i] = i
        while table[place] >= 0:
            j = table[place]
            if hashes[j] == hashes[i] and equal_rows(x, i, j):
                colors[i] = j
                break
            place = (place + np.uint64(1)) & mask
        if colors[i] == i:
            table[place] = i


row_colors_operator = Operator(
    "row_colors",
    plain_row_colors,
    fake=lambda x: x.new_empty(x.size(0), dtype=torch.int32),
    cpu=_rows_on_cpu,
)


def row_colors(x: Tensor) -> Tensor:
    """For each row the first one that is the same, bit by bit.

    **Arguments**: `x`: `[rows, *]`, of any dtype, with at least one value in a row.

    **Returns** int32 `[rows]`.

    ```python
    >>> row_colors(torch.tensor([[1.0], [2.0], [1.0]]))
    tensor([0, 1, 0], dtype=torch.int32)

    ```
    """
    result: Tensor = row_colors_operator(x)
    return result


def plain_have_colors(x: Tensor, colors: Tensor) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`have_colors`."""
    held = as_words(x)
    return (held == held[colors.long()]).all()


def _have_on_cpu(x: Tensor, colors: Tensor) -> Tensor:
    words, named = as_words(x).numpy(), colors.numpy()
    return torch.tensor(
        all(run(lambda _, start, stop: equal_to_first(words, named, start, stop), parts(len(words), words.size)))
    )


@loop
def equal_to_first(x, colors, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):  # noqa: SIM110
        if colors[i] != i and not equal_rows(x, i, colors[i]):
            return False
    return True


have_colors_operator = Operator(
    "have_colors", plain_have_colors, fake=lambda x, colors: x.new_empty((), dtype=torch.bool), cpu=_have_on_cpu
)


def have_colors(x: Tensor, colors: Tensor) -> bool:
    """Whether all rows of a color are the same; those of two colors may be, too.

    **Arguments**: `x`: `[rows, *]`. `colors`: int32 `[rows]`.

    ```python
    >>> have_colors(torch.tensor([[3.0], [5.0], [3.0]]), torch.tensor([0, 1, 0], dtype=torch.int32))
    True

    ```
    """
    return bool(have_colors_operator(x, colors))


def repeats(x: Tensor) -> bool:
    """Whether rows are often the same, by a few pairs: to find that they are not costs next to nothing.

    ```python
    >>> repeats(torch.ones(100, 3)), repeats(torch.arange(300.0).view(100, 3))
    (True, False)

    ```
    """
    if x.dim() == 0 or x.numel() == 0 or x.size(0) > torch.iinfo(torch.int32).max:
        return False
    pairs = min(_PAIRS, x.size(0))
    if not x.is_contiguous():
        some = min(pairs * _APART, x.size(0))
        x = x[torch.arange(some) * x.size(0) // some]
    return bool(count_equal(as_words(x).numpy(), pairs) * _PAIRS >= _EQUAL * pairs)


@loop
def count_equal(x, pairs):  # type: ignore[no-untyped-def]
    """Of pairs that lie apart by all distances, how many are equal."""
    rows, found = x.shape[0], 0
    for k in range(pairs):
        i = k * rows // pairs
        j = (i + 1 + (pairs - k) * rows // (2 * pairs)) % rows
        found += i != j and equal_rows(x, i, j)
    return found


# -- the same messages ---------------------------------------------------------------------------------------------


def plain_refine_colors(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    """The definition that every implementation is held to; the arguments are those of :func:`refine_colors`."""
    known: dict[tuple[int, ...], int] = {}
    received = sent[senders.long()]
    found = []
    for i, own in enumerate(colors.tolist()):
        messages = sorted(received[ptr[i] : ptr[i + 1]].tolist())
        found.append(known.setdefault((own, *messages), i))
    return torch.tensor(found, dtype=torch.int32, device=colors.device)


def _refine_on_cpu(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    args = tuple(tensor.contiguous().numpy() for tensor in (colors, sent, ptr, senders))
    nodes, cuts = len(args[0]), balanced(args[2], 4)
    hashes, found = np.empty(nodes, np.uint64), torch.empty(nodes, dtype=torch.int32)
    run(lambda _, start, stop: hash_messages(*args, hashes, start, stop), cuts)
    match_hashes(hashes, _table(nodes), found.numpy())
    if not all(run(lambda _, start, stop: have_messages(*args, found.numpy(), start, stop), cuts)):
        match_messages(*args, hashes, _table(nodes), found.numpy())  # two that differ have one hash
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
    """As :func:`match_rows`, by the hashes alone."""
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
    """Whether nodes are as those that were found for them."""
    one, other = np.empty(_SHORT, np.int32), np.empty(_SHORT, np.int32)
    for i in range(start, stop):
        j = found[i]
        if i != j and (colors[i] != colors[j] or not equal_messages(sent, ptr, senders, i, j, one, other)):
            return False
    return True


@loop
def match_messages(colors, sent, ptr, senders, hashes, table, found):  # type: ignore[no-untyped-def]
    """As :func:`match_rows`."""
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
)


def refine_colors(colors: Tensor, sent: Tensor, ptr: Tensor, senders: Tensor) -> Tensor:
    """For each node the first one that has its color and receives as many messages of each color.

    **Arguments**

    - `colors`: int32 `[num_nodes]`, of the nodes.
    - `sent`: int32 `[num_senders]`, the color of what each node sends: mostly its own.
    - `ptr`, `senders`: see :func:`dqconvert.kernels.integer.propagate.integer_propagate`.

    **Returns** int32 `[num_nodes]`.

    ```python
    >>> colors = torch.zeros(4, dtype=torch.int32)
    >>> ptr, senders = torch.tensor([0, 3, 4, 5, 6]), torch.tensor([1, 2, 3, 0, 0, 0])
    >>> refine_colors(colors, colors, ptr, senders)
    tensor([0, 1, 1, 1], dtype=torch.int32)

    ```
    """
    result: Tensor = refine_colors_operator(colors, sent, ptr, senders)
    return result

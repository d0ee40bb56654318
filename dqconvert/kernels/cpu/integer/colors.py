"""Loops over the colors of nodes: :mod:`dqconvert.kernels.integer.folding`."""

from __future__ import annotations

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.memory import pointer

_SHORT = 64
"""Messages that are put in order by inserting them."""


def hash_table(entries: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Returns an empty hash table, all -1, that so many entries fill by half at most."""
    return np.full(1 << max(2 * entries - 1, 1).bit_length(), -1, np.int32)


@loop
def splitmix(value):  # type: ignore[no-untyped-def]
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
            found = splitmix(found ^ np.uint64(row[c]))
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
    """Finds for each node the first one with an equal row, in a hash table of nodes with linear probing."""
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


@loop
def equal_to_first(x, colors, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        color = colors[i]
        if color != i and (color < 0 or color >= colors.size or not equal_rows(x, i, color)):
            return False
    return True


@loop
def count_equal(x, pairs):  # type: ignore[no-untyped-def]
    """Counts the equal ones among some pairs of rows, which lie apart by all distances."""
    rows, found = x.shape[0], 0
    for k in range(pairs):
        i = k * rows // pairs
        j = (i + 1 + (pairs - k) * rows // (2 * pairs)) % rows
        found += i != j and equal_rows(x, i, j)
    return found


@loop
def hash_messages(colors, sent, ptr, senders, hashes, start, stop):  # type: ignore[no-untyped-def]
    """Hashes the color of each node and of the messages to it, in whatever order they come."""
    color = pointer(sent, 0)
    for i in range(start, stop):
        total, sender = np.uint64(0), pointer(senders, ptr[i])
        for e in range(ptr[i + 1] - ptr[i]):
            total += splitmix(color[sender[e]])  # a sum is the same in any order
        hashes[i] = splitmix(total ^ splitmix(~np.uint64(colors[i])))


@loop
def match_hashes(hashes, table, found):  # type: ignore[no-untyped-def]
    """Does what :func:`match_rows` does, by the hashes alone."""
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
    """True if each node has the color of the one found for it, and receives equal messages."""
    one, other = np.empty(_SHORT, np.int32), np.empty(_SHORT, np.int32)
    for i in range(start, stop):
        j = found[i]
        if i != j and (colors[i] != colors[j] or not equal_messages(sent, ptr, senders, i, j, one, other)):
            return False
    return True


@loop
def match_messages(colors, sent, ptr, senders, hashes, table, found):  # type: ignore[no-untyped-def]
    """Does what :func:`match_rows` does, of the color of each node and the messages to it."""
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
    """True if two nodes receive equal messages, in any order; `one` and `other`: scratch space for short lists."""
    count = ptr[i + 1] - ptr[i]
    if ptr[j + 1] - ptr[j] != count:
        return False
    mine, theirs, color = pointer(senders, ptr[i]), pointer(senders, ptr[j]), pointer(sent, 0)
    # What both lists begin and end with alike needs no sorting; mostly that is all of it.
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
    """Inserts a value into a short line that is sorted; appends it to a long one, which is sorted later."""
    place = count
    if line.size <= _SHORT:
        while place > 0 and line[place - 1] > value:
            line[place] = line[place - 1]
            place -= 1
    line[place] = value


@loop
def number_colors(colors, place, rows):  # type: ignore[no-untyped-def]
    """Numbers the colors in the order of their first nodes; returns how many there are."""
    count = 0
    for i in range(colors.size):
        if colors[i] == i:
            rows[count], place[i] = i, count
            count += 1
        else:
            place[i] = place[colors[i]]
    return count


@loop
def begin_lists(ptr, rows, starts):  # type: ignore[no-untyped-def]
    starts[0] = 0
    for r in range(rows.size):
        starts[r + 1] = starts[r] + ptr[rows[r] + 1] - ptr[rows[r]]


@loop
def copy_lists(ptr, senders, rows, before, starts, edges, taken, start, stop):  # type: ignore[no-untyped-def]
    for r in range(start, stop):
        first = ptr[rows[r]]
        for e in range(starts[r + 1] - starts[r]):
            if edges.size > 0:
                edges[starts[r] + e] = first + e
            taken[starts[r] + e] = before[senders[first + e]]

"""What functions written in LLVM's instructions gain over the same loops compiled from Python.

Usage: python examples/machine_code.py

Prints for each the time of the plain loop by that of the emitted one, minima of interleaved runs on one thread. See
dqconvert/kernels/cpu/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.llvm.edges import add_coded_rows, reduce_edges
from dqconvert.kernels.cpu.llvm.memory import pointer, stream
from dqconvert.kernels.cpu.llvm.multiply import multiply, multiply_pairs, pack, vectors_of
from dqconvert.kernels.cpu.llvm.requantize import quantize_span
from dqconvert.kernels.cpu.tile import copy_values

ROUNDS, DEGREE = 30, 10


@loop
def plain_product(a, b, c):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        c[i] = 0
        for k in range(a.shape[1]):
            for j in range(c.shape[1]):
                c[i, j] += c.dtype.type(a[i, k]) * c.dtype.type(b[k, j])


@loop
def product(a, packed, c):  # type: ignore[no-untyped-def]
    rows, depth = a.shape
    columns = c.shape[1]
    groups = vectors_of(columns, c.itemsize)
    multiply(a.reshape(-1), 0, depth, 1, rows, depth, packed, 0, groups, c.reshape(-1), 0, columns, True)


@loop
def pair_product(a, packed, c):  # type: ignore[no-untyped-def]
    rows, depth = a.shape
    multiply_pairs(a.reshape(-1), 0, depth, rows, packed, 0, depth * 16, c.reshape(-1), c.shape[1], depth // 2, True)


@loop
def plain_quantize(x, codes, scale, middle, top):  # type: ignore[no-untyped-def]
    values, to, missing = pointer(x, 0), pointer(codes, 0), False
    for i in range(x.size):
        code = min(max(np.rint(values[i] / scale + middle), np.float32(0)), top)
        to[i] = np.uint8(np.int32(code if values[i] == values[i] else middle))
        missing |= values[i] != values[i]
    return missing


@loop
def quantize(x, codes, scale, middle, top):  # type: ignore[no-untyped-def]
    return quantize_span(pointer(x, 0), x.size, scale, middle, np.float32(0), top, pointer(codes, 0))


@loop
def add_codes(codes, sums, count):  # type: ignore[no-untyped-def]
    for c in range(count):
        sums[c] += np.int32(codes[c])


@loop
def plain_edges(codes, senders, sums):  # type: ignore[no-untyped-def]
    for first in range(0, senders.size, DEGREE):
        sums[:] = 0
        for edge in range(first, first + DEGREE):
            add_codes(pointer(codes, senders[edge] * codes.shape[1]), pointer(sums, 0), sums.size)


@loop
def edges(codes, senders, sums):  # type: ignore[no-untyped-def]
    zero, last = np.int32(0), senders.size - 1
    weights, table = np.zeros(1, np.uint8), np.zeros(1, np.int16)
    no_weight, no_table = pointer(weights, 0), pointer(table, 0)
    x, row, out = pointer(codes, 0), codes.shape[1], pointer(sums, 0)
    for first in range(0, senders.size, DEGREE):
        nodes, end = pointer(senders, 0), first + DEGREE
        reduce_edges(sums.size, 0, x, row, nodes, first, end, last, no_weight, 0, no_table, zero, zero, zero, zero, out)


@loop
def add_values(codes, sums, count, offset, scale):  # type: ignore[no-untyped-def]
    for c in range(count):
        sums[c] += (np.float32(codes[c]) + offset) * scale


@loop
def plain_coded(codes, senders, sums, offset, scale):  # type: ignore[no-untyped-def]
    for first in range(0, senders.size, DEGREE):
        sums[:] = 0
        for edge in range(first, first + DEGREE):
            add_values(pointer(codes, senders[edge] * sums.size), pointer(sums, 0), sums.size, offset, scale)


@loop
def coded(codes, senders, sums, offset, scale):  # type: ignore[no-untyped-def]
    for first in range(0, senders.size, DEGREE):
        sums[:] = 0
        add_coded_rows(codes, sums.size, senders, first, first + DEGREE, senders.size, offset, scale, sums)


@loop
def plain_fill(tile, far):  # type: ignore[no-untyped-def]
    for at in range(0, far.size, tile.size):
        copy_values(pointer(tile, 0), pointer(far, at), tile.size)


@loop
def fill(tile, far):  # type: ignore[no-untyped-def]
    for at in range(0, far.size, tile.size):
        stream(tile, 0, far, at, tile.size)


def gain(plain: Callable[[], object], emitted: Callable[[], object]) -> float:
    """Returns how many times as long the plain loop takes."""
    best = [float("inf")] * 2
    for _ in range(ROUNDS):
        for place, function in enumerate((plain, emitted)):
            start = time.perf_counter()
            function()
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0] / best[1]


def main() -> None:
    random, one = np.random.default_rng(0), np.float32
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((96, 128), (128, 64)))
    c, packed = np.empty((96, 64), np.float32), pack(b)
    print(f"multiply, 96 x 128 x 64: {gain(lambda: plain_product(a, b, c), lambda: product(a, packed, c)):.1f}")
    p, q = (random.integers(-255, 256, shape).astype(np.int16) for shape in ((48, 128), (128, 64)))
    sums, pairs = np.empty((48, 64), np.int32), random.integers(-255, 256, 128 * 64).astype(np.int16)
    found = gain(lambda: plain_product(p, q, sums), lambda: pair_product(p, pairs, sums))
    print(f"multiply_pairs, 48 x 128 x 64: {found:.1f}")
    x, codes, numbers = (
        random.standard_normal(4096).astype(np.float32),
        np.empty(4096, np.uint8),
        map(one, (0.02, 100, 255)),
    )
    grid = tuple(numbers)
    print(
        f"quantize_span, 4096: {gain(lambda: plain_quantize(x, codes, *grid), lambda: quantize(x, codes, *grid)):.1f}"
    )
    rows, senders = random.integers(0, 256, (2000, 64)).astype(np.uint8), random.integers(0, 2000, 20_000)
    total = np.empty(64, np.int32)
    found = gain(lambda: plain_edges(rows, senders, total), lambda: edges(rows, senders, total))
    print(f"reduce_edges, {DEGREE} edges a node, 64 columns: {found:.1f}")
    flat, floats = np.concatenate([rows.reshape(-1), np.zeros(64, np.uint8)]), np.empty(64, np.float32)
    args = flat, senders, floats, one(-3), one(0.1)
    print(f"add_coded_rows, the same: {gain(lambda: plain_coded(*args), lambda: coded(*args)):.1f}")
    tile, far = np.ones(2048, np.float32), np.zeros(1 << 24, np.float32)
    print(f"stream, 64 MiB: {gain(lambda: plain_fill(tile, far), lambda: fill(tile, far)):.1f}")


if __name__ == "__main__":
    main()

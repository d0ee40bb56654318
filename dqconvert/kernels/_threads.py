"""Runs a compiled loop over a range of rows on several threads.

The loops are compiled without the interpreter lock, so plain Python threads run them side by side. That needs no
second OpenMP runtime beside torch's, works while other threads do the same, and survives a fork.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numba
import torch

GRAIN = 1 << 15
"""Values below which a second thread costs more than it saves."""

_ROUNDS = (6, 4, 2, 1)
"""The sizes of the parts that a thread takes one after the other, relative to each other."""

_ENOUGH = 16
"""Grains for each thread that are worth more than one part."""

loop: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compiles a loop: without the interpreter lock, kept on disk, and dividing as floating point does (x/0 = inf)."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="dqconvert"), count
        return _pool


def _forget() -> None:
    """In a forked child the threads are gone, and the lock may be held by one of them."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def parts(rows: int, values: int) -> list[tuple[int, int]]:
    """How to cut `rows` rows of together `values` values into parts `(start, stop)`, at least one.

    A few for each thread, as threads are not equally fast; one, where a second thread is not worth it. What is added
    up part by part is the same whichever thread does it.

    ```python
    >>> parts(10, 100)
    [(0, 10)]

    ```
    """
    cuts = [int(rows * share) for share in _shares(rows, values)]
    return list(itertools.pairwise(cuts))


def _shares(rows: int, values: int) -> list[float]:
    """Where parts end, as shares of the whole, from 0 to 1."""
    threads, worth = torch.get_num_threads(), values // GRAIN
    if threads == 1 or min(worth, rows) < 2:
        return [0.0, 1.0]
    # Ever smaller parts, so that all threads end at about the same time.
    rounds = _ROUNDS if worth >= _ENOUGH * threads else _ROUNDS[:1]
    sizes = [size for size in rounds for _ in range(min(threads, worth, rows))]
    return [0.0, *(end / sum(sizes) for end in itertools.accumulate(sizes))]


def run(task: Callable[[int, int, int], Any], cuts: list[tuple[int, int]]) -> list[Any]:
    """Calls `task(part, start, stop)` for every part, on as many threads as torch has; the results in order."""
    workers = min(torch.get_num_threads(), len(cuts))
    if workers == 1:
        return [task(part, *cut) for part, cut in enumerate(cuts)]
    pool, results, following = _workers(workers - 1), [None] * len(cuts), itertools.count()

    def work() -> None:
        while (part := next(following)) < len(cuts):
            results[part] = task(part, *cuts[part])

    others = [pool.submit(work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        wait(others)  # they write into memory of the caller's
    for other in others:
        other.result()
    return results


def balanced(ptr: Any, columns: int) -> list[tuple[int, int]]:
    """Like :func:`parts`, for rows that take `ptr[row + 1] - ptr[row]` rows of `columns` values each (numpy, int64)."""
    rows, total = len(ptr) - 1, int(ptr[-1])
    shares = _shares(rows, (total + rows) * columns)
    cuts = [0, *(min(int(ptr.searchsorted(total * share)), rows) for share in shares[1:-1]), rows]
    return list(itertools.pairwise(itertools.accumulate(cuts, max)))

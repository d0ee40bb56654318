"""Runs a compiled loop over a range of rows on several threads.

The loops are compiled without the interpreter lock, so plain Python threads run them side by side. That needs no
second OpenMP runtime beside torch's, works while other threads do the same, and survives a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch

GRAIN = 1 << 15
"""Values below which a second thread costs more than it saves."""

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
    """How to cut `rows` rows of together `values` values: one `(start, stop)` per thread, at least one.

    ```python
    >>> parts(10, 100)
    [(0, 10)]

    ```
    """
    count = max(1, min(torch.get_num_threads(), values // GRAIN, rows))
    return [(rows * part // count, rows * (part + 1) // count) for part in range(count)]


def run(task: Callable[[int, int, int], Any], cuts: list[tuple[int, int]]) -> list[Any]:
    """Calls `task(part, start, stop)` for every cut, the first in this thread; the results in order."""
    if len(cuts) == 1:
        return [task(0, *cuts[0])]
    pool = _workers(len(cuts) - 1)
    others = [pool.submit(task, part, *cut) for part, cut in enumerate(cuts[1:], start=1)]
    first = task(0, *cuts[0])
    return [first, *(other.result() for other in others)]


def run_balanced(task: Callable[[int, int, int], Any], ptr: Any) -> list[Any]:
    """Like :func:`run`, for rows that hold `ptr[row + 1] - ptr[row]` values each (numpy, int64)."""
    total = int(ptr[-1])
    count = max(1, min(torch.get_num_threads(), len(ptr) - 1))
    bounds = [0, *(int(ptr.searchsorted(total * part // count)) for part in range(1, count)), len(ptr) - 1]
    bounds = [min(bound, len(ptr) - 1) for bound in bounds]
    return run(task, [(bounds[i], max(bounds[i], bounds[i + 1])) for i in range(count)])

"""Runs a compiled loop over a range of rows on several threads.

The loops are compiled without the interpreter lock, so plain Python threads run them side by side. That needs no
second OpenMP runtime beside torch's, works while other threads do the same, and survives a fork.
"""

from __future__ import annotations

import _thread
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import torch

GRAIN = 1 << 15
"""Values below which a second thread costs more than it saves."""

_ROUNDS = (6, 2, 1)
"""The sizes of the parts that a thread takes one after the other, relative to each other."""

_ENOUGH = 16
"""Grains for each thread that are worth more than one part."""


class _Crew:
    """Threads that wait for work. To hand it to them costs half of what a future of the standard library's does."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Iterator[int], Any]] = SimpleQueue()
        self._size, self._lock = 0, _thread.allocate_lock()

    def help(self, job: Callable[[], None], threads: int) -> None:
        """Does a job, which raises nothing, and lets so many threads do it, too; returns when all that began ended."""
        if self._size < threads:
            self._grow(threads)
        shares = [(itertools.count(), _thread.allocate_lock()) for _ in range(threads)]
        for first, done in shares:
            done.acquire()
            self._jobs.put((job, first, done))
        job()
        for first, done in shares:
            if next(first) > 0:  # that thread came before us; if not, it will find that it came too late
                done.acquire()

    def _grow(self, threads: int) -> None:
        with self._lock:
            while self._size < threads:
                threading.Thread(target=self._serve, name=f"dqconvert_{self._size}", daemon=True).start()
                self._size += 1

    def _serve(self) -> None:
        while True:
            job, first, done = self._jobs.get()
            if next(first) == 0:
                job()
                done.release()
            del job, first, done  # what they refer to shall not live until the next job comes


_crew = _Crew()


_forked = False


def _forget() -> None:
    """In a forked child the threads are gone, and the lock may be held by one of them.

    So are those of torch: the child would wait for them forever, and so it goes on with one, as workers of a
    ``DataLoader`` do.
    """
    global _crew, _forked
    _crew = _Crew()
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        _forked = True


def _warn_forked() -> None:
    """Once, where a forked child computes."""
    global _forked
    _forked = False
    warnings.warn(
        "this process was forked from one that may have run torch on several threads, which are gone: it computes on "
        "one, as it would wait for the others forever. Start processes with multiprocessing's 'spawn' or 'forkserver' "
        "instead; if its parent never computed, torch.set_num_threads(n) is safe.",
        stacklevel=2,
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def parts(rows: int, values: int) -> list[tuple[int, int]]:
    """Cuts `rows` rows of together `values` values into parts `(start, stop)`, at least one.

    A few for each thread, as threads are not equally fast; one, where a second thread is not worth it. What is added
    up part by part is the same whichever thread does it.

    Example:
        >>> parts(10, 100)
        [(0, 10)]
    """
    if values < 2 * GRAIN and not _forked:  # most calls on small inputs
        return [(0, rows)]
    cuts = [int(rows * share) for share in _shares(rows, values)]
    return list(itertools.pairwise(cuts))


def _shares(rows: int, values: int) -> list[float]:
    """Returns the ends of parts, as shares of the whole, from 0 to 1."""
    if _forked:
        _warn_forked()
    threads, worth = torch.get_num_threads(), values // GRAIN
    if threads == 1 or min(worth, rows) < 2:
        return [0.0, 1.0]
    # Ever smaller parts, so that all threads end at about the same time.
    rounds = _ROUNDS if worth >= _ENOUGH * threads else _ROUNDS[:1]
    sizes = [size for size in rounds for _ in range(min(threads, worth, rows))]
    return [0.0, *(end / sum(sizes) for end in itertools.accumulate(sizes))]


def run(task: Callable[[int, int, int], Any], cuts: list[tuple[int, int]]) -> list[Any]:
    """Calls `task(part, start, stop)` for every part, on as many threads as torch has; the results in order."""
    if len(cuts) == 1:
        return [task(0, *cuts[0])]
    workers = min(torch.get_num_threads(), len(cuts))
    if workers == 1:
        return [task(part, *cut) for part, cut in enumerate(cuts)]
    results, errors, following = [None] * len(cuts), [], itertools.count()

    def work() -> None:
        try:
            while (part := next(following)) < len(cuts):
                results[part] = task(part, *cuts[part])
        except BaseException as error:
            errors.append(error)

    _crew.help(work, workers - 1)
    if errors:
        raise errors[0]
    return results


def balanced(ptr: Any, columns: int) -> list[tuple[int, int]]:
    """Like :func:`parts`, for rows that take `ptr[row + 1] - ptr[row]` rows of `columns` values each (numpy, int64)."""
    rows, total = len(ptr) - 1, int(ptr[-1])
    if (total + rows) * columns < 2 * GRAIN and not _forked:
        return [(0, rows)]
    shares = _shares(rows, (total + rows) * columns)
    cuts = [0, *(min(int(ptr.searchsorted(int(total * share))), rows) for share in shares[1:-1]), rows]
    return list(itertools.pairwise(itertools.accumulate(cuts, max)))

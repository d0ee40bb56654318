"""Timing several steps so that a machine that slows down slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from rich.progress import Progress

Tick: TypeAlias = Callable[[], None]
"""Called after a part of the work."""


def ticker(progress: Progress | None, name: str, total: int) -> Tick:
    """Returns a function that advances a new progress bar; one that does nothing where no progress is shown."""
    if progress is None:
        return lambda: None
    task = progress.add_task(name, total=total)
    return lambda: progress.advance(task)


@dataclass(frozen=True)
class Times:
    """Times of one step, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)


def interleave(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    tick: Tick = lambda: None,
    before: Callable[[str], object] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Takes the steps in turns, A B C, C B A, A B C, ...

    Args:
        steps: The steps to time, by name.
        warmup: How many times each before, not timed.
        before: Called before each step with its name, not timed.
        clock: Returns the time in seconds.

    Example:
        >>> taken = []
        >>> times = interleave({name: lambda name=name: taken.append(name) for name in "ABC"}, rounds=2, warmup=0)
        >>> "".join(taken), len(times["A"].seconds)
        ('ABCCBA', 2)
    """
    for name, step in steps.items():
        for _ in range(warmup):
            before(name)
            step()
            tick()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in reversed(list(steps)) if number % 2 else steps:
            before(name)
            start = clock()
            steps[name]()
            seconds[name].append(clock() - start)
            tick()
    return {name: Times(tuple(found)) for name, found in seconds.items()}


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Runs torch, and the kernels that follow it, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

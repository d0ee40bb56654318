"""The memory bandwidth of this machine, with which every forward is compared."""

from __future__ import annotations

import time

import torch


def copy_bandwidth(mib: int = 256, repeats: int = 5) -> float:
    """Returns bytes read plus bytes written per second while a large tensor is copied, the best of a few times.

    On as many threads as torch uses.

    Args:
        mib: Size of the tensor; much more than the caches hold.
        repeats: How many times to copy it.
    """
    source = torch.zeros(mib << 20, dtype=torch.uint8)
    target = torch.empty_like(source).copy_(source)  # its pages are there now
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best

"""The global random generators: seeded while a model is run, and left as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SEED = 20210504


def seed() -> None:
    """Seeds torch, and what PyG's own functions draw from besides (negative samples come from :mod:`random`)."""
    if torch.cuda.is_initialized() or torch.xpu.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(SEED)
    else:  # torch.manual_seed would have devices that nobody uses yet seeded when they are first used
        torch.default_generator.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leaves every global random generator as it was."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

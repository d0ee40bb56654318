"""Garbage collection while a model is traced and rewritten."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

ASKED_EVERY = 10.0
"""Seconds for which objects that were frozen are taken to be: Python counts one by one what is frozen."""

_found_frozen = -ASKED_EVERY


@contextmanager
def collecting_new_objects() -> Iterator[None]:
    """Keeps the garbage collector, inside, from the objects that there are already.

    A model makes some hundred thousand objects on its way to a prepared one, for which Python would go several times
    through everything that torch and the program hold: up to half of the time. What is made inside is collected as
    ever. Where objects are frozen already, by the program or by a call around this one, nothing is done.
    """
    if _frozen():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _frozen() -> bool:
    global _found_frozen
    if time.monotonic() - _found_frozen < ASKED_EVERY:
        return True
    if not gc.get_freeze_count():
        return False
    _found_frozen = time.monotonic()
    return True

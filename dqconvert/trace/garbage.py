"""Garbage collection while a model is traced and rewritten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_new_objects() -> Iterator[None]:
    """Keeps the garbage collector, inside, from the objects that there are already.

    A model makes some hundred thousand objects on its way to a prepared one, for which Python would go several times
    through everything that torch and the program hold: up to half of the time. What is made inside is collected as
    ever. Where objects are frozen already, by the program or by a call around this one, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

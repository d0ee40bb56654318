"""Values derived from tensors, kept for as long as the tensors are there and unchanged.

On small inputs it takes longer to prepare constants, or to check that rows are there, than to compute with them. Two
tensors are the same here if they are one object that no operation of torch has written into since (its version
counter). Nothing is compared, and so this serves tensors that no code from outside can reach: constants of a module,
and results in a :class:`dqconvert.kernels.memory.Memory`, which is what compares values.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class _Entry(NamedTuple):
    """A value, and what it was derived from.

    Attributes:
        tensors: Weak references to the tensors.
        versions: Their version counters.
        made: The value.
    """

    tensors: tuple[Any, ...]
    versions: tuple[int, ...]
    made: Any


class Derived(Generic[Made]):
    """A table of values derived from tensors and other arguments.

    It holds no tensor: a value goes when the first of its tensors does. Of tensors made in inference mode, whose
    changes nobody counts, nothing is kept. Threads may share a table.

    Args:
        make: Computes the value, given the tensors and the other arguments; the value is not ``None``, and must not
            hold the tensors. Without it there are :meth:`find` and :meth:`keep`.
        most: How many values there are at most; then the oldest go.

    Example:
        >>> import torch
        >>> total, tensor = Derived(lambda tensor, factor: tensor.sum().item() * factor), torch.ones(3)
        >>> total((tensor,), 2.0), total((tensor.mul_(2),), 2.0)
        (6.0, 12.0)
    """

    def __init__(self, make: Callable[..., Made] | None = None, *, most: int = 1 << 14) -> None:
        self._most = most
        self.make = make
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        _tables.add(self)

    def __call__(self, tensors: tuple[Tensor | None, ...], *what: Any) -> Made:
        """Returns ``make(*tensors, *what)``, or what that returned before.

        Args:
            tensors: What to derive the value from; the first is not ``None``.
            what: Other arguments; they are hashable.
        """
        found: Made | None = self.find(tensors, *what)
        if found is None:
            assert self.make is not None
            found = self.make(*tensors, *what)
            self.keep(found, tensors, *what)
        return found

    def find(self, tensors: tuple[Tensor | None, ...], *what: Any) -> Made | None:
        """Returns the value for these arguments, or ``None`` if there is none."""
        entry = self._entries.get((tuple(map(id, tensors)), what))
        if entry is None:
            return None
        for known, version, tensor in zip(entry.tensors, entry.versions, tensors, strict=True):
            # The version of a tensor made in inference mode cannot be asked for, but such a tensor is never known.
            if known() is not tensor or (tensor is not None and tensor._version != version):
                return None
        return entry.made

    def keep(self, made: Made, tensors: tuple[Tensor | None, ...], *what: Any) -> None:
        """Keeps a value, in place of an earlier one for the same."""
        if any(tensor is not None and tensor.is_inference() for tensor in tensors):
            return
        key, entries = (tuple(map(id, tensors)), what), self._entries

        def forget(gone: object) -> None:
            if (entry := entries.get(key)) is not None and entry.tensors[0] is gone:
                del entries[key]

        first = weakref.ref(tensors[0], forget)
        others = [_nothing if tensor is None else weakref.ref(tensor) for tensor in tensors[1:]]
        versions = tuple(0 if tensor is None else tensor._version for tensor in tensors)
        entries[key] = _Entry((first, *others), versions, made)
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread was faster
            while len(entries) > self._most:
                entries.pop(next(iter(entries)), None)

    def clear(self) -> None:
        """Forgets all values."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


_tables: weakref.WeakSet[Derived[Any]] = weakref.WeakSet()


def clear_derived() -> None:
    """Clears every table of derived values: they are computed again when they are next asked for.

    Example:
        >>> clear_derived()
    """
    for table in list(_tables):
        table.clear()


def _nothing() -> None:
    """Stands for a weak reference to None."""


__all__ = ["Derived", "clear_derived"]

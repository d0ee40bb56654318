"""Results kept while what they were computed from is the same: the order that sorts an index, say.

"The same" has one meaning for all that is kept, asked in this order:

1. *Identity and version.* A tensor that the memory itself returned earlier, or a view of one, is the same while no
   operation of torch wrote into it. Its values are not looked at: code from outside never gets such a tensor.
2. *Values.* Any other tensor is the same if its dtype, shape, device and every value are. It is compared with a copy,
   as nobody knows whose memory it lies in: numpy may write into it, and torch does not notice.
3. *Equality.* Anything else is the same if its type is, and it compares equal.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from dqconvert.kernels.same import Copy, Own

RESULTS = 4
"""Results of one function that a memory keeps, unless told otherwise."""

BYTES = 1 << 26
"""Bytes of all results but the latest of each function that it keeps."""


class _Entry:
    """A result.

    Attributes:
        given: What it was computed from, tensors as :class:`~dqconvert.kernels.same.Copy` or ``Own``.
        result: It.
        tensors: The tensors in it.
        versions: Their version counters when they were made.
        nbytes: How much memory it takes, together with copies of what it was computed from.
        used: When it was last asked for.
    """

    __slots__ = ("given", "nbytes", "result", "tensors", "used", "versions")

    def __init__(self, given: tuple[Any, ...], result: Any, used: int) -> None:
        self.given, self.result, self.used = given, result, used
        self.tensors = tuple(_tensors(result))
        self.versions = tuple(tensor._version for tensor in self.tensors)
        copies = (value.nbytes for value in given if isinstance(value, Copy))
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors) + sum(copies)

    def fits(self, given: tuple[Any, ...]) -> bool:
        """True if this is the result for what is given, and nobody changed it."""
        known = self.given
        if len(known) != len(given):
            return False
        for one, two in zip(known, given, strict=True):
            if type(one) is Copy or type(one) is Own:
                if not isinstance(two, Tensor) or not one.equals(two):
                    return False
            elif type(one) is not type(two) or one != two:
                return False
        for tensor, version in zip(self.tensors, self.versions, strict=True):  # noqa: SIM110  faster than a generator
            if tensor._version != version:
                return False
        return True


class Memory:
    """Results of functions of tensors, kept while what they were given is the same.

    The latest result of each function is always kept, so that what stays the same costs the same however large it is;
    earlier ones, least recently used first, go beyond the bounds. A copy of a memory, deep or pickled, is empty and has
    the same bounds. Threads may share one; two that ask for the same new result at once may both compute it.

    Args:
        results: How many results of each function are kept, at least 1.
        size: Bytes that all results but the latest of each function may take, together with copies of what they were
            computed from.

    Attributes:
        computed: How many results were computed so far: while nothing changes, it stays.

    Example:
        >>> memory, index = Memory(), torch.tensor([0, 2, 2])
        >>> counts = memory.recall("counts", torch.bincount, index)
        >>> memory.recall("counts", torch.bincount, index.clone()) is counts
        True
        >>> memory.clear()
        >>> memory.recall("counts", torch.bincount, index) is counts
        False
    """

    def __init__(self, *, results: int = RESULTS, size: int = BYTES) -> None:
        if results < 1 or size < 0:
            raise ValueError(f"a memory keeps at least 1 result, in at least 0 bytes: got {results} and {size}")
        self.results, self.size, self.computed = results, size, 0
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets all results."""
        with self._lock:
            self._entries: dict[Hashable, tuple[_Entry, ...]] = {}  # the latest first; tuples are never changed
            self._copies: weakref.WeakValueDictionary[Hashable, Copy] = weakref.WeakValueDictionary()
            self._made: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
            self._times = itertools.count()

    def recall(self, key: Hashable, compute: Callable[..., Any], *given: Any) -> Any:
        """Returns ``compute(*given)``, or what it returned when it was given the same.

        Args:
            key: Stands for the function: equal keys ask for the same.
            compute: The function; it returns a tensor, or a tuple of tensors and other values.
            *given: What it is given.

        Returns:
            The result. It is kept, so nobody may write into it unnoticed by torch, through numpy say; one that was
            changed in place is computed again.
        """
        known = self._entries.get(key, ())
        for entry in known:
            if entry.fits(given):
                if entry is not known[0]:
                    entry.used = next(self._times)
                return entry.result
        held = tuple(map(self._held, given))
        with torch.inference_mode(False):  # what is kept may be used in training later
            result = _apart(compute(*given), given)
        entry = _Entry(held, result, next(self._times))
        with self._lock:
            self.computed += 1
            for tensor in entry.tensors:
                self._made[tensor.untyped_storage().data_ptr()] = tensor
            self._entries[key] = (entry, *self._entries.get(key, ())[: self.results - 1])
            self._shrink()
        return result

    def _held(self, value: Any) -> Any:
        """Returns what later values are compared with; of the same memory with the same values there is one copy."""
        if not isinstance(value, Tensor):
            return value
        made = self._made.get(value.untyped_storage().data_ptr()) if value.numel() > 0 else None
        if made is not None and not value.is_inference():
            return Own(value)
        place = value.data_ptr(), value.device, value.dtype, value.shape, value.stride()
        copy = self._copies.get(place)
        if copy is None or not copy.equals(value):
            copy = self._copies[place] = Copy(value)
        return copy

    def _shrink(self) -> None:
        """Drops the least recently used results, but for the latest of each function, until all fit the bounds."""
        older = [(entry.used, key, entry) for key, entries in self._entries.items() for entry in entries[1:]]
        total = sum(entry.nbytes for _, _, entry in older)
        for _, key, old in sorted(older, key=lambda one: one[0]):
            if total <= self.size:
                return
            self._entries[key] = tuple(entry for entry in self._entries[key] if entry is not old)
            total -= old.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept; copies and results that several share count for each."""
        return sum(entry.nbytes for entries in list(self._entries.values()) for entry in entries)

    def __len__(self) -> int:
        return sum(map(len, list(self._entries.values())))

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory(results=self.results, size=self.size)

    def __reduce__(self) -> Any:
        return _empty, (self.results, self.size)

    def __repr__(self) -> str:
        return f"Memory(results={self.results}, size={self.size})"


def _empty(results: int, size: int) -> Memory:
    return Memory(results=results, size=size)


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple):
        for part in result:
            yield from _tensors(part)


def _apart(result: Any, given: tuple[Any, ...]) -> Any:
    """Returns a result in memory of its own: what was given may be written over, and be given again as it was."""
    if isinstance(result, tuple):
        parts = [_apart(part, given) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    if not isinstance(result, Tensor):
        return result
    theirs = {other.untyped_storage().data_ptr() for other in given if isinstance(other, Tensor)}
    return result.clone() if result.untyped_storage().data_ptr() in theirs else result


__all__ = ["BYTES", "RESULTS", "Memory"]

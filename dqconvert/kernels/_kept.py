"""What is made of constants is made once: on small graphs that takes longer than what is computed with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class _Entry(NamedTuple):
    """`of`: the tensors, as weak references; `versions`: how often they had been changed; `what`: else was asked."""

    of: tuple[Any, ...]
    versions: list[int | None]
    what: tuple[Any, ...]
    made: Any


class Kept(Generic[Made]):
    """Keeps what was made of tensors while they are there, and unchanged.

    **Arguments**: `make`: makes it of tensors, the first of which is not None, and of other things that can be
    compared. What it returns must not hold the tensors, or share their memory.

    ```python
    >>> import torch
    >>> total, tensor = Kept(lambda tensor, factor: tensor.sum().item() * factor), torch.ones(3)
    >>> total((tensor,), 2.0), total((tensor.mul_(2),), 2.0)
    (6.0, 12.0)

    ```
    """

    def __init__(self, make: Callable[..., Made]) -> None:
        self._make = make
        self._entries: dict[int, _Entry] = {}

    def __call__(self, tensors: tuple[Tensor | None, ...], *what: Any) -> Made:
        """What `make(*tensors, *what)` returns."""
        key, versions = id(tensors[0]), list[int | None]()
        for tensor in tensors:
            if tensor is None:
                versions.append(None)
            elif tensor.is_inference():  # nobody knows whether it is changed
                return self._make(*tensors, *what)
            else:
                versions.append(tensor._version)
        entry = self._entries.get(key)
        if entry is not None and entry.versions == versions and entry.what == what:
            for known, tensor in zip(entry.of, tensors, strict=True):
                if known() is not tensor:
                    break
            else:
                found: Made = entry.made
                return found
        made = self._make(*tensors, *what)
        first = weakref.ref(tensors[0], lambda _: self._entries.pop(key, None))
        others = [_nothing if tensor is None else weakref.ref(tensor) for tensor in tensors[1:]]
        self._entries[key] = _Entry((first, *others), versions, what, made)
        return made


def _nothing() -> None:
    """What stands for a weak reference to None."""

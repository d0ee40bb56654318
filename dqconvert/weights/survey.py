"""A pickle's classes and sizes, found without running it.

``torch.load(weights_only=True)`` runs no code, but it believes the sizes that a file claims. The survey reads the
pickle's instructions with every class and function replaced by one that does nothing, and notes what the file names and
how many bytes it asks for.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    "ComplexDoubleStorage": 16,
}
"""Bytes per value; 1 for all others."""


@dataclass
class Survey:
    """The names and the sizes in a pickle.

    Attributes:
        names: Every class and function that it names: ``"torch._utils._rebuild_tensor_v2"``.
        storages: Bytes that it claims for the tensors' storages, by their keys.
    """

    names: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)


def survey(file: BinaryIO, into: Survey | None = None) -> Survey:
    """Surveys the next pickle in a file.

    Args:
        file: Where it starts; afterwards, where it ends. Must be held in memory, so that no read can be too long.
        into: A survey to go on with.

    Raises:
        Exception: Of any kind, if this is no pickle.

    Example:
        >>> import io, os
        >>> survey(io.BytesIO(pickle.dumps(os.system))).names
        {'posix.system'}
    """
    found = into or Survey()
    _Surveyor(file, found).load()
    return found


class _Nothing:
    """Stands for every object: it takes any call and any item, and ignores them."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __setstate__(self, state: Any) -> None:
        return None

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    def append(self, item: Any) -> None:
        """Ignores it."""

    def extend(self, items: Any) -> None:
        """Ignores them."""

    def add(self, item: Any) -> None:
        """Ignores it."""


# The unpickler written in Python: the one in C allocates for the largest memo index that a file claims.
class _Surveyor(pickle._Unpickler):
    def __init__(self, file: BinaryIO, found: Survey) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.found = found

    def find_class(self, module: str, name: str) -> Any:
        self.found.names.add(f"{module}.{name}")
        return type("_Nothing", (_Nothing,), {"origin": name})

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count, *_ = pid
        if kind == "storage":
            size = count * _ITEM_SIZES.get(storage.origin, 1)
            self.found.storages[str(key)] = max(size, self.found.storages.get(str(key), 0))
        return _Nothing()

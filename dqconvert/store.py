"""Arrays too large for memory, in the files of a folder, and how far they are written: work that stopped goes on."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import json
import math
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqconvert.errors import CheckpointError, ConfigError
from dqconvert.files import AnyPath, write_file
from dqconvert.kernels.cpu.arrays import array

try:
    import fcntl
except ImportError:  # where there are no such locks, two processes in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

_STATE, _LOCK = "state.json", "lock"
_BLOCK = 1 << 23
"""Bytes that are hashed at a time."""

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4
"""``MADV_DONTNEED`` of Linux."""


class Array:
    """Rows of one shape and type in a file.

    Args:
        path: Of the file; it is as long as the rows are, or made so.
        shape: ``[rows, *rest]``.

    Attributes:
        row_bytes: Of a row.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._mapped: Tensor | None = None
        size = shape[0] * self.row_bytes
        with _written(path):
            if not path.exists() or path.stat().st_size != size:
                path.touch()
                os.truncate(path, size)

    def read(self, start: int, stop: int) -> Tensor:
        """Returns rows ``start`` to ``stop`` in memory of their own."""
        rows = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        if rows.numel() > 0:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start * self.row_bytes)
                _all(file.readinto, _bytes(rows))
        return rows

    def write(self, start: int, rows: Tensor) -> None:
        """Writes rows from ``start`` on; they are on disk when it returns."""
        if rows.numel() > 0:
            with _written(self.path), self.path.open("r+b", buffering=0) as file:
                file.seek(start * self.row_bytes)
                _all(file.write, _bytes(rows.contiguous()))
                os.fsync(file.fileno())

    def mapped(self, *, private: bool = False) -> Tensor:
        """Returns all rows, read from the file where they are looked at; ``private``: writes do not reach it."""
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if private or self._mapped is None:
            flat = torch.from_file(str(self.path), shared=not private, size=math.prod(self.shape), dtype=self.dtype)
            found = flat.view(self.shape)
            if private:
                return found
            self._mapped = found
        return self._mapped

    def release(self) -> None:
        """Takes the pages of :meth:`mapped` from this process."""
        if self._mapped is not None:
            release(self._mapped)


def _bytes(rows: Tensor) -> memoryview:
    content: Any = array(rows.view(-1).view(torch.uint8))
    return memoryview(content)


def _all(move: Any, content: memoryview) -> None:
    """Reads or writes all of it: the system moves up to two gigabytes at once."""
    while len(content) > 0:
        moved = move(content)
        if not moved:
            raise CheckpointError("a file in the store is shorter than it was written: start again in an empty folder.")
        content = content[moved:]


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}.") from error


class Store:
    """A folder of arrays, and how far each part of the work on them is done.

    One process at a time works in it. What is done is written after the arrays are, atomically.

    Args:
        folder: Made if it is missing; empty, or of the same work.
        fingerprint: Stands for the work: arrays of other work are refused.

    Raises:
        ConfigError: If the folder is in use, or holds anything else.
    """

    def __init__(self, folder: AnyPath, fingerprint: str) -> None:
        self.folder = Path(folder)
        with _written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("w")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"store={str(folder)!r}: another process works in it.") from error
        self._arrays: dict[str, Array] = {}
        state = self.folder / _STATE
        if state.exists():
            self._state = _read(state)
            if self._state["fingerprint"] != fingerprint:
                raise ConfigError(
                    f"store={str(folder)!r}: holds the work on another module, graph or features: delete the folder, "
                    f"or give another one."
                )
        else:
            if any(path.name != _LOCK and not path.name.startswith(".dqconvert-") for path in self.folder.iterdir()):
                raise ConfigError(f"store={str(folder)!r}: holds files of something else: give an empty folder.")
            self._state = {"fingerprint": fingerprint, "arrays": {}, "done": {}}
            self._save()

    def close(self) -> None:
        """Lets other processes work in the folder."""
        self._lock.close()

    def array(self, name: str, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Array:
        """Returns an array; it is made if there is none of the name, of a shape and type."""
        if name not in self._arrays:
            if name not in self._state["arrays"]:
                assert shape is not None
                assert dtype is not None
                self._state["arrays"][name] = [list(shape), str(dtype).removeprefix("torch.")]
                self._save()
            known, kind = self._state["arrays"][name]
            self._arrays[name] = Array(self.folder / f"{name}.bin", tuple(known), getattr(torch, kind))
        return self._arrays[name]

    def done(self, part: str) -> int:
        """Returns how many rows of a part of the work are done."""
        return int(self._state["done"].get(part, 0))

    def finish(self, part: str, rows: int) -> None:
        """Notes how many rows of a part of the work are done by now."""
        self._state["done"][part] = rows
        self._save()

    def drop(self, name: str) -> None:
        """Deletes an array, if it is there, that is not needed again."""
        self._arrays.pop(name, None)
        (self.folder / f"{name}.bin").unlink(missing_ok=True)

    def _save(self) -> None:
        write_file(self.folder / _STATE, [json.dumps(self._state).encode()])


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
        if not isinstance(state, dict) or not {"fingerprint", "arrays", "done"} <= state.keys():
            raise ValueError("something is missing")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}): start again in an empty folder.") from error
    return state


# -- tensors in files ----------------------------------------------------------------------------------------------


def in_file(tensor: Tensor) -> bool:
    """True if a tensor lies in a file that is mapped, and writes to it reach the file: then :func:`release` is safe.

    Example:
        >>> in_file(torch.ones(3))
        False
    """
    if tensor.numel() == 0 or not tensor.is_cpu or not _MAPS.exists():
        return False
    place = tensor.untyped_storage().data_ptr()
    for line in _MAPS.read_text().splitlines():
        ends, kind, _, _, inode, *_ = line.split()
        low, high = (int(end, 16) for end in ends.split("-"))
        if low <= place < high:
            return kind[3] == "s" and inode != "0"
    return False


def release(tensor: Tensor) -> None:
    """Takes the pages of a mapped file, see :func:`in_file`, from this process; they are read again when needed."""
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    last = tensor.data_ptr() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) * (
        tensor.element_size()
    )
    if tensor.numel() > 0:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last + tensor.element_size() - first), _DONTNEED
        )


def take(source: Tensor, rows: Tensor, window: int, *, mapped: bool) -> Tensor:
    """Returns ``source[rows]``; of a mapped file, no more than ``window`` bytes are in memory at once.

    Args:
        rows: int64, rising.
        mapped: Whether :func:`in_file` says so.

    Example:
        >>> take(torch.arange(5), torch.tensor([1, 4]), 1 << 20, mapped=False)
        tensor([1, 4])
    """
    if not mapped or rows.numel() == 0:
        return source.index_select(0, rows)
    found = source.new_empty((rows.numel(), *source.shape[1:]))
    step = max(1, window // max(1, source[:1].nbytes))
    first, last = int(rows[0]), int(rows[-1])
    starts = torch.arange(first, last + step + 1, step)
    for (begin, end), at in zip(
        itertools.pairwise(torch.searchsorted(rows, starts).tolist()), starts.tolist(), strict=False
    ):
        if begin < end:
            torch.index_select(source, 0, rows[begin:end], out=found[begin:end])
            release(source[at : at + step])
    return found


def digest(tensor: Tensor, mapped: bool) -> str:
    """Returns a hash of a tensor's type, shape and values.

    Example:
        >>> one, other = torch.tensor([1.0]), torch.tensor([2.0])
        >>> digest(one, False) == digest(one.clone(), False) != digest(other, False)
        True
    """
    rows = max(1, _BLOCK // max(1, tensor[:1].nbytes)) if tensor.dim() > 0 else 1
    blocks = tensor.detach().split(rows) if tensor.dim() > 0 else (tensor.detach(),)
    if tensor.dim() > 1 and tensor.size(0) <= 2:  # the two rows of an edge_index are long
        step = max(1, _BLOCK // max(1, tensor.element_size()))
        blocks = tuple(part for row in tensor.detach() for part in row.split(step))

    def hashed(block: Tensor) -> bytes:
        found = hashlib.sha256(_bytes(block.contiguous().reshape(-1))).digest()
        if mapped:
            release(block)
        return found

    whole = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for part in pool.map(hashed, blocks):
            whole.update(part)
    return whole.hexdigest()


__all__ = ["Array", "Store", "digest", "in_file", "release", "take"]

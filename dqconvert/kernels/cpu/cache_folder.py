"""Where machine code is kept: in folders of ours, which are swept when nobody uses them any more.

The first of these that can be written: the folder that numba was told to use (`NUMBA_CACHE_DIR`), that of the user for
caches, and that of Python's own beside the package. Files are read from any of them, so an image whose loops were
compiled when it was built serves users that may not write there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from numba.core import config
from numba.misc.appdirs import AppDirs

SUFFIX = ".loop"

KEPT = 8
"""How many folders of one module are kept: those that were used last."""

UNUSED = 30 * 86400
"""Seconds after which a folder that nobody used is swept."""

_FOLDER = re.compile(r"(?P<module>[\w.]+)-[0-9a-f]{24}")
_DIGEST = hashlib.sha256().digest_size
_used: set[str] = set()


def places() -> list[Path]:
    """Returns the folders that may hold ours, best first."""
    beside = Path(__file__).parent / "__pycache__" / "loops"
    user = Path(AppDirs(appname="dqconvert", appauthor=False).user_cache_dir) / "loops"
    return [Path(config.CACHE_DIR, "dqconvert-loops"), beside] if config.CACHE_DIR else [user, beside]


@functools.cache
def place() -> Path | None:
    """Returns the folder that ours are made in; None, after one warning, where none can be written."""
    reasons = []
    for path in places():
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            reasons.append(str(error))
        else:
            return path
    _warn("; ".join(reasons))
    return None


def _warn(reason: str) -> None:
    message = (
        f"compiled loops cannot be kept on disk, every process compiles them anew ({reason}); "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def read(folder: str, file: str) -> Iterator[bytes]:
    """Yields the contents of files of that name, undamaged, in any of the places."""
    for path in places():
        try:
            data = (path / folder / file).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            _use(path / folder)
            yield data[_DIGEST:]


def write(folder: str, file: str, data: bytes) -> None:
    """Writes a file, in one step; a disk that is full is worth a warning, not an error: the loop runs all the same."""
    outer = place()
    if outer is None:
        return
    path, made = outer / folder, False
    try:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            made = True
        _put(path / file, hashlib.sha256(data).digest() + data)
    except OSError as error:
        _warn_once(str(error))
        return
    _use(path)
    if made:
        _sweep_once(outer)


def _put(target: Path, data: bytes) -> None:
    unfinished = target.with_name(f"{uuid.uuid4().hex}{SUFFIX}")  # others may write the same
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


_warn_once = functools.cache(_warn)


def _use(folder: Path) -> None:
    """Notes, once in a process, that a folder is in use."""
    if folder.name not in _used:
        _used.add(folder.name)
        with contextlib.suppress(OSError):  # a folder that can only be read is swept by nobody
            os.utime(folder)


@functools.cache
def _sweep_once(outer: Path) -> None:
    sweep(outer)


def sweep(outer: Path, *, kept: int = KEPT, unused: float = UNUSED) -> list[str]:
    """Removes folders of ours that nobody used lately; the names of those that are gone.

    Of each module the newest few stay. Only real folders with names like ours are looked at, and in them only files
    like ours; whoever still uses one compiles its loops anew.
    """
    versions: dict[str, list[tuple[float, Path]]] = {}
    with contextlib.suppress(OSError), os.scandir(outer) as entries:
        for entry in entries:
            match = _FOLDER.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):  # swept by another process
                    used = entry.stat(follow_symlinks=False).st_mtime
                    versions.setdefault(match["module"], []).append((used, Path(entry.path)))
    oldest, gone = time.time() - unused, []
    for found in versions.values():
        found.sort(reverse=True)
        for position, (used, path) in enumerate(found):
            if path.name not in _used and (position >= kept or used < oldest) and _remove(path):
                gone.append(path.name)
    return gone


def _remove(folder: Path) -> bool:
    """Removes our files and, if there was nothing else, the folder; whether it did."""
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
        os.rmdir(folder)
    except OSError:  # another process removes it, too, or what is not ours lies in it
        return False
    return True


def empty(folder: str) -> None:
    """Removes what is kept in a folder."""
    for path in places():
        _remove(path / folder)

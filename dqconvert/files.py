"""Reading and writing files: what is read is a regular file, and no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from dqconvert.errors import CheckpointError

try:
    import fcntl
except ImportError:  # where there are no such locks, what killed processes leave stays
    fcntl = None  # type: ignore[assignment]

AnyPath: TypeAlias = str | os.PathLike[str]

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_UNFINISHED = ".dqconvert-", ".tmp"
"""How the names of files begin and end that are being written."""


def open_file(path: AnyPath) -> BinaryIO:
    """Opens a regular file to be read.

    Raises:
        CheckpointError: If there is no such file, it cannot be read, or is something else: a folder, or a pipe or a
            device, which may have no end.

    Example:
        >>> open_file("/dev/zero")
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: /dev/zero: is a device, not a file.
    """
    with _named(path, "read"):
        _check_regular(path, os.stat(path))
        # It may be another one by now; without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _check_regular(path, os.fstat(file))
        except CheckpointError:
            os.close(file)
            raise
        return os.fdopen(file, "rb")


def check_target(path: AnyPath, *, overwrite: bool = True) -> Path:
    """Makes sure, before any work is done, that a file can be written.

    Args:
        path: Where the file is to be; a symbolic link stands for what it points to.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path, links resolved.

    Raises:
        CheckpointError: If its folder is missing or cannot be written to, if there is something else than a regular
            file (a folder, a device, a pipe, a socket) or a file that is write-protected, or if the file exists and
            may not be replaced.

    Example:
        >>> check_target("/no/such/folder/model.dq")
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: /no/such/folder/model.dq: the folder /no/such/folder does not exist: ...
    """
    with _named(path, "written"):
        target = Path(os.path.realpath(path))
        found = _status(target)
        if found is not None and stat.S_ISLNK(found.st_mode):
            raise CheckpointError(f"{path}: is a symbolic link that leads back to itself.")
        if found is not None:
            _check_regular(path, found, "give the name of a file")
        elif os.path.basename(os.fspath(path)) in ("", ".", ".."):
            raise CheckpointError(f"{path}: is the name of a folder: give the name of a file.")
        if not target.parent.is_dir():
            raise CheckpointError(f"{path}: the folder {target.parent} does not exist: create it first.")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise CheckpointError(f"{path}: the folder {target.parent} cannot be written to.")
        if found is not None and not overwrite:
            raise CheckpointError(f"{path}: exists already: pass --force to replace it.")
        if found is not None and not os.access(target, os.W_OK):
            raise CheckpointError(f"{path}: is write-protected: choose another name, or make it writable.")
        return target


def write_file(path: AnyPath, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file whole or not at all: beside its place first, then renamed.

    Whatever interrupts it (a full disk, Ctrl-C), a file that was there before stays, and nothing partial does. What a
    killed process left is taken away when the next file is written into the same folder. A file that is replaced keeps
    its permissions.

    Raises:
        CheckpointError: If it cannot be written.

    Example:
        >>> write_file("/tmp/dqconvert-example", [b"some ", b"bytes"])
        >>> Path("/tmp/dqconvert-example").read_bytes()
        b'some bytes'
        >>> Path("/tmp/dqconvert-example").unlink()
    """
    target = check_target(path)
    _sweep(target.parent)
    try:
        with _unfinished(target) as (file, unfinished):
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, target)
        _sync_folder(target.parent)
    except OSError as error:
        kept = "; the file that was there is as before" if target.exists() else ""
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}{kept}.") from error


@contextlib.contextmanager
def _named(path: AnyPath, done: str) -> Iterator[None]:
    """Says in our words what the system says of a path."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be {done}: {error.strerror or error}.") from error
    except ValueError as error:  # "embedded null byte"
        raise CheckpointError(f"{os.fspath(path)!r}: is not the name of a file: {error}.") from error


def _status(path: Path) -> os.stat_result | None:
    """Returns the status of what is there, links not followed; ``None`` if nothing is."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_regular(path: AnyPath, found: os.stat_result, advice: str = "") -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise CheckpointError(f"{path}: is {kind}{f': {advice}' if advice else ', not a file'}.")


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside the target, of a name that nobody else uses; afterwards it is gone.

    It is locked while it is open, so that :func:`_sweep` can tell it from those that killed processes left.
    """
    before, after = _UNFINISHED
    while True:
        path = target.with_name(f"{before}{secrets.token_hex(8)}{after}")
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                _lock(file, wait=True)
                if os.fstat(file.fileno()).st_nlink == 0:  # it was swept before it was locked
                    continue
                if target.exists():
                    _take_permissions(file, target)
                yield file, path
                return
        finally:
            path.unlink(missing_ok=True)


def _take_permissions(file: BinaryIO, target: Path) -> None:
    """Those of the file that is to be replaced; its owner, too, where the system lets us."""
    found = os.stat(target)
    if hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):
            os.fchown(file.fileno(), found.st_uid, found.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Locks a file, until it is closed or this process ends; whether it could."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by somebody else, or there are no locks on this file system
        return False
    return True


def _sweep(folder: Path) -> None:
    """Takes away what processes left that were killed while they wrote."""
    before, after = _UNFINISHED
    with contextlib.suppress(OSError):  # of others' files, and of files that somebody else takes away
        for entry in os.scandir(folder):
            ours = entry.name.startswith(before) and entry.name.endswith(after)
            if ours and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                    if _lock(file, wait=False):
                        os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power cut."""
    with contextlib.suppress(OSError):  # some file systems have nothing of the kind
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

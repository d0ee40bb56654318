"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dqconvert.errors import CheckpointError


def check_target(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Makes sure, before any work is done, that a file can be written.

    Args:
        path: Where the file is to be; a symbolic link stands for what it points to.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path, links resolved.

    Raises:
        CheckpointError: If its folder is missing or cannot be written to, if the path is a folder, or if the file
            exists and may not be replaced.

    Example:
        >>> check_target("/no/such/folder/model.dq")
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: /no/such/folder/model.dq: the folder /no/such/folder does not exist: ...
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise CheckpointError(f"{path}: is a folder: give the name of a file.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{path}: the folder {target.parent} does not exist: create it first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: the folder {target.parent} cannot be written to.")
    if target.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already: pass --force to replace it.")
    return target


def write_file(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file whole or not at all: beside its place first, then renamed.

    Whatever interrupts it (a full disk, Ctrl-C), a file that was there before stays, and nothing partial does.

    Args:
        path: Where to write.
        chunks: The contents, in order.

    Raises:
        CheckpointError: If it cannot be written.

    Example:
        >>> write_file("/tmp/dqconvert-example", [b"some ", b"bytes"])
        >>> Path("/tmp/dqconvert-example").read_bytes()
        b'some bytes'
        >>> Path("/tmp/dqconvert-example").unlink()
    """
    target = check_target(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except OSError as error:
        kept = "; the file that was there is as before" if target.exists() else ""
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}{kept}.") from error
    finally:
        unfinished.unlink(missing_ok=True)

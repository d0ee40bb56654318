"""Reading what ``torch.save`` wrote, in a way that a damaged or hostile file cannot exploit."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dqconvert.errors import CheckpointError
from dqconvert.files import open_file
from dqconvert.weights.survey import Survey, survey

# How files begin: those of torch.save since torch 1.6, and those before.
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


ADVICE = "if you trust where it comes from, pass --trust-pickle; better, save model.state_dict() instead"
"""The advice on a checkpoint that holds more than tensors."""


def load_archive(
    path: str | os.PathLike[str], *, trust: bool = False, classes: Sequence[Any] = (), advice: str = ADVICE
) -> Any:
    """Reads a file that ``torch.save`` wrote; tensors come to the CPU.

    Every size in the file is checked before anything is allocated, and in newer files every checksum.

    Args:
        trust: If true, run the code that the file names. Otherwise it may hold tensors and plain containers only.
        classes: Further classes that it may hold without trust, or pairs of one and the name that it stands for.
        advice: The message's advice if it holds others.

    Raises:
        CheckpointError: If it is missing, damaged, something else, or holds what it may not.
    """
    start = read_start(path)
    source: Any
    if start.startswith(ZIP):
        found, source = _check_zip(path), os.fspath(path)
    elif start.startswith(LEGACY):
        data = Path(path).read_bytes()
        found, source = _check_legacy(path, data), io.BytesIO(data)
    elif start[:2] in (b"\x1f\x8b", b"BZ") or start[:6] == b"\xfd7zXZ\x00" or start[:4] == b"\x28\xb5\x2f\xfd":
        raise CheckpointError(f"{path}: is compressed: unpack it first.")
    elif start[:6] == b"\x93NUMPY":
        raise CheckpointError(f"{path}: is an array of numpy, not the weights of a model by name.")
    else:
        raise CheckpointError(f"{path}: is not a checkpoint: neither a safetensors file nor one that torch.save wrote.")
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(source, map_location="cpu", weights_only=not trust)
    except Exception as error:  # torch documents no kinds of errors; with trust, the file's own code raises too
        if trust:
            raise CheckpointError(f"{path}: cannot be unpickled here: {type(error).__name__}: {error}.") from error
        raise _refusal(path, found, classes, advice) from error


def read_start(path: str | os.PathLike[str], size: int = 16) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        CheckpointError: If there is no such file, or it cannot be read.
    """
    with open_file(path) as file:
        return file.read(size)


def _torchscript(path: str | os.PathLike[str]) -> CheckpointError:
    return CheckpointError(
        f"{path}: is a TorchScript file, which torch.jit.save writes: compiled code, and no module to quantize. Save "
        f"the weights of the model that it was made from, torch.save(model.state_dict(), path); its own are in "
        f"torch.jit.load(path).state_dict()."
    )


def _damaged(path: str | os.PathLike[str], why: str) -> CheckpointError:
    return CheckpointError(f"{path}: is truncated or damaged ({why}). Take another copy of it.")


def _refusal(path: str | os.PathLike[str], found: Survey, classes: Sequence[Any], advice: str) -> CheckpointError:
    """Returns the error of a file that torch did not load: it names other classes, or it is damaged."""
    allowed = [*classes, *torch.serialization.get_safe_globals()]
    safe = {kind[1] if isinstance(kind, tuple) else f"{kind.__module__}.{kind.__qualname__}" for kind in allowed}
    others = sorted(name for name in found.names - safe if not _is_plain(name))
    if not others:
        return _damaged(path, "its tensors cannot be rebuilt")
    named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    return CheckpointError(
        f"{path}: holds pickled Python objects ({named}), and loading those runs code from the file, which can do "
        f"anything that you can: {advice}."
    )


def _is_plain(name: str) -> bool:
    """True if a name in a pickle stands for tensors and containers rather than for code."""
    code = ("torch.nn.modules.", "torch.fx.", "torch.jit.", "torch.optim.", "torch.distributed.", "torch.package.")
    return name in _CONTAINERS or (name.startswith("torch.") and not name.startswith(code))


_CONTAINERS = {"collections.OrderedDict", "collections.Counter", "collections.defaultdict", "_codecs.encode"}


def _check_zip(path: str | os.PathLike[str]) -> Survey:
    """Checks the archive's sizes and checksums, and what its pickle claims against what is there."""
    try:
        size = os.path.getsize(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("constants.pkl") for name in names):
                raise _torchscript(path)
            stored = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
            if not stored or sum(entry.file_size for entry in entries) > size or len(set(names)) < len(names):
                raise _damaged(path, "its table of contents is inconsistent")
            if (bad := archive.testzip()) is not None:
                raise _damaged(path, f"the checksum of {bad!r} does not fit")
            content = next((name for name in names if name.endswith("data.pkl")), None)
            if content is None:
                raise CheckpointError(f"{path}: is a zip archive, but not one that torch.save wrote.")
            found = survey(io.BytesIO(archive.read(content)))
            sizes = {e.filename.rpartition("/")[2]: e.file_size for e in entries if "/data/" in f"/{e.filename}"}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and pickle raise errors of many kinds for damaged files
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    for key, claimed in found.storages.items():
        if claimed > sizes.get(key, -1):
            raise _damaged(path, f"a tensor claims {claimed} bytes of the {sizes.get(key, 0)} that are there")
    return found


def _check_legacy(path: str | os.PathLike[str], data: bytes) -> Survey:
    """Checks what the pickles of an older file claim against the file's size."""
    found = Survey()
    file = io.BytesIO(data)
    try:
        for _ in range(4):  # magic number, protocol, system, contents
            survey(file, found)
    except Exception as error:  # pickle raises errors of many kinds for damaged files
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if sum(found.storages.values()) > len(data) - file.tell():
        raise _damaged(path, "its tensors claim more bytes than there are")
    return found

"""The bytes of a prepared file: a safetensors file with one metadata entry, under a checksum of all of it.

A safetensors file is an 8-byte length, a JSON header and the tensors' bytes (https://github.com/huggingface/safetensors).
It is written here rather than by that library, whose order of entries and padding may change between versions: the same
module gives the same bytes. The checksum is the sha256 of the file with the checksum's own 64 digits set to zero, so a
flipped bit is noticed wherever it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dqconvert.checkpoint.limits import check_shape, read_json
from dqconvert.errors import CheckpointError
from dqconvert.files import open_file, write_file
from dqconvert.kernels.cpu.arrays import array

KEY = "dqconvert"
"""The metadata entry that holds the document."""

FORMAT = 2
"""The version of the document's layout that this package writes and reads. 1 was that of the first days."""

_NO_CHECKSUM = "0" * 64
_DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_SIZES = {name: dtype.itemsize for dtype, name in _DTYPES.items()}


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON document as one file, whole or not at all.

    Args:
        path: Where to write; an existing file is replaced.
        tensors: By name; they may be non-contiguous and on any device.

    Raises:
        CheckpointError: If a tensor is of a kind that the file format has no word for, or the file cannot be written.
    """
    parts = {name: _bytes_of(name, tensors[name]) for name in sorted(tensors, key=_by_size(tensors))}
    header = _header(tensors, parts, document)
    digest = hashlib.sha256(header)
    for part in parts.values():
        digest.update(part)
    head = header.replace(_NO_CHECKSUM.encode(), digest.hexdigest().encode(), 1)
    write_file(path, [head, *parts.values()])


def _header(tensors: Mapping[str, Tensor], parts: Mapping[str, memoryview], document: Mapping[str, Any]) -> bytes:
    """Returns length and JSON header, with zeros where the checksum goes."""
    text = json.dumps({"checksum": _NO_CHECKSUM, "format": FORMAT, **document}, allow_nan=False, separators=(",", ":"))
    return _plain_header(tensors, parts, {"__metadata__": {KEY: text}})


def plain_chunks(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Returns tensors as the bytes of a safetensors file without a document, none of them copied.

    Example:
        >>> chunks = plain_chunks({"x": torch.ones(2)})
        >>> safetensors.torch.load(b"".join(chunks))
        {'x': tensor([1., 1.])}
    """
    parts = {name: _bytes_of(name, tensors[name]) for name in sorted(tensors, key=_by_size(tensors))}
    return [_plain_header(tensors, parts, {}), *parts.values()]


def _by_size(tensors: Mapping[str, Tensor]) -> Callable[[str], tuple[int, str]]:
    """Returns the key that sorts names such that their tensors are aligned, as readers expect."""
    return lambda name: (-tensors[name].dtype.itemsize, name)


def _plain_header(tensors: Mapping[str, Tensor], parts: Mapping[str, memoryview], entries: dict[str, Any]) -> bytes:
    """Returns length and JSON header, with an entry for each tensor behind those that are given."""
    start = 0
    for name, part in parts.items():
        end = start + part.nbytes
        dtype = _DTYPES[tensors[name].dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(entries, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _bytes_of(name: str, tensor: Tensor) -> memoryview:
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
        kind = "meta" if tensor.is_meta else f"{str(tensor.layout)[6:]} {str(tensor.dtype)[6:]}"
        raise CheckpointError(f"{name} is a {kind} tensor, which the file cannot hold: give the module plain tensors.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    content: Any = array(flat.view(torch.uint8)) if flat.numel() else b""
    return memoryview(content)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write` wrote; verifies its checksum before anything in it is used.

    Returns:
        The tensors and the document.

    Raises:
        CheckpointError: If the file is missing, is something else, was damaged, or was written by a newer version.
    """
    if not is_prepared(path):
        raise CheckpointError(
            f"{path}: is not a file that dqconvert wrote, or is damaged. A float checkpoint becomes one with "
            f"`dqconvert convert`."
        )
    with open_file(path) as file:
        data = file.read()
    document = _document(path, data)
    _check_format(path, document)
    if document.get("checksum") != _checksum(data):
        raise CheckpointError(f"{path}: is damaged: its checksum does not fit its contents. Take another copy of it.")
    try:
        return safetensors.torch.load(data), document
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is malformed: {error}.") from error


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """True if a file begins as the files that :func:`write` writes; the rest may still be damaged.

    Raises:
        CheckpointError: If there is no such file, or it cannot be read.
    """
    with open_file(path) as file:
        start = file.read(8 + len(_OPENING))
    return start[8:] == _OPENING


_OPENING = b'{"__metadata__":{"' + KEY.encode() + b'":"{\\"checksum\\":\\"'


def _checksum(data: bytes) -> str:
    start = 8 + len(_OPENING)
    digest = hashlib.sha256(data[:start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(memoryview(data)[start + len(_NO_CHECKSUM) :])
    return digest.hexdigest()


def _document(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
    """Returns the JSON document of a header whose every number was checked against the file's size."""
    damaged = CheckpointError(f"{path}: is damaged: its header cannot be read. Take another copy of it.")
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= len(data) - 8:
        raise damaged
    try:
        header = read_json(data[8 : 8 + length], length)
        metadata = header.pop("__metadata__")
        document = read_json(metadata[KEY], length)
        sound = isinstance(document, dict) and _sound(header, len(data) - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged from error
    if not sound:
        raise damaged
    return document


def _sound(header: Mapping[str, Any], available: int) -> bool:
    """True if the tensors lie one behind the other and fill what is there."""
    end = 0
    for entry in sorted(header.values(), key=lambda entry: tuple(entry["data_offsets"])):
        first, last = check_shape(entry["data_offsets"])
        if first != end or last - first != math.prod(check_shape(entry["shape"])) * _SIZES[entry["dtype"]]:
            return False
        end = last
    return end == available


def _check_format(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    version = document.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: is damaged: its file format {version!r} never was. Take another copy of it.")
    if version == FORMAT:
        return
    versions = document.get("versions")
    writer = versions.get("dqconvert", "") if isinstance(versions, dict) else ""
    newer = version > FORMAT
    writer = writer if isinstance(writer, str) and writer else "a newer version" if newer else "an older version"
    what = (
        "update dqconvert"
        if newer
        else "save the module again with this version, or load it with the one that wrote it"
    )
    raise CheckpointError(
        f"{path}: was written by dqconvert {writer} in file format {version}, and this version reads {FORMAT}: {what}."
    )

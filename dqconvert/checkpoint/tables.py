"""Look-up tables in a file. They are large beside a model's weights, and say little: smooth functions made them.

What a table is predicted to hold is taken off, and what is left is deflated. Nothing is lost. Codes, and values of
which there are no more than there are codes, are predicted to be what the entry before is; other values, to be the sum
of what the row and the column stand for.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.checkpoint.limits import GROWTH, TABLES, check_shape
from dqconvert.errors import CheckpointError
from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.integer.finish import CODES

SMALL = 1 << 11
"""Bytes below which a tensor is stored as it is."""

_TRIES = 16


def deflate(table: Tensor) -> tuple[Tensor, dict[str, Any]] | None:
    """Returns a table as a file holds it, and its form; None where that saves nothing.

    Args:
        table: uint8 or float32 of two dimensions; others are not made smaller.

    Example:
        >>> codes = torch.arange(256).clamp(max=99).to(torch.uint8).repeat(64, 1)
        >>> stored, form = deflate(codes)
        >>> stored.numel() < 100, form
        (True, {'kind': 'codes', 'shape': [64, 256]})
        >>> torch.equal(inflate(stored, form), codes)
        True
    """
    if table.dtype not in (torch.uint8, torch.float32) or table.dim() != 2 or table.nbytes < SMALL:
        return None
    rows = array(table.detach().cpu())
    form: dict[str, Any] = {"kind": "codes", "shape": list(table.shape)}
    if rows.dtype == np.uint8:
        text = _steps(rows)
    else:
        values, places = np.unique(rows.view(np.int32), return_inverse=True)
        if len(values) <= CODES:
            form |= {"kind": "values", "values": len(values)}
            text = values.tobytes() + _steps(places.reshape(rows.shape).astype(np.uint8))
        else:
            lines = _lines(rows)
            form |= {"kind": "sums", "lines": list(lines)}
            text = _planes(rows.view(np.int32) - _added(rows, *lines))
    packed = zlib.compress(text, 9)
    if len(packed) >= rows.nbytes:
        return None
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8), form


def inflate(stored: Tensor, form: dict[str, Any]) -> Tensor:
    """Returns the table that :func:`deflate` was given.

    Raises:
        CheckpointError: If the bytes are damaged, or not those of such a table.
    """
    damaged = CheckpointError(f"the file holds a table {form} that is damaged.")
    kind, size = form["kind"], _size(form)
    height, width = form["shape"]
    known = int(form["values"]) if kind == "values" else 0
    if stored.dtype != torch.uint8 or stored.dim() != 1:
        raise damaged
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(array(stored).tobytes(), size)
    except zlib.error as error:
        raise damaged from error
    if len(text) != size:
        raise damaged
    if kind == "sums":
        row, column = form["lines"]
        if not (0 <= row < height and 0 <= column < width):
            raise damaged
        left = np.frombuffer(text, np.uint8).reshape(4, -1).T.copy().view(np.int32).reshape(height, width)
        return torch.from_numpy((left + _added(left.view(np.float32), row, column)).view(np.float32))
    codes = np.cumsum(np.frombuffer(text, np.uint8, offset=4 * known).reshape(height, width), 1, dtype=np.uint8)
    if kind == "codes":
        return torch.from_numpy(codes)
    if kind != "values" or int(codes.max()) >= known:
        raise damaged
    return torch.from_numpy(np.frombuffer(text, np.float32, known)[codes])


def check_sizes(forms: Mapping[str, dict[str, Any]], stored: int) -> None:
    """Makes sure that tables are not out of proportion, before there is memory for one.

    Args:
        forms: What a file says about its tables, by name.
        stored: Bytes of all of its tensors.

    Raises:
        CheckpointError: If not.
    """
    most = TABLES + GROWTH * stored
    sizes = [_size(form) for form in forms.values()]
    if sum(sizes) > most:
        raise CheckpointError(f"the file holds tables of {sum(sizes)} bytes, and has {stored} bytes of tensors.")


def _size(form: dict[str, Any]) -> int:
    """Bytes of what a table is deflated from."""
    kind, shape, known = form["kind"], check_shape(form["shape"]), form.get("values", 0)
    lines = form.get("lines", [0, 0])
    sound = kind in ("codes", "values", "sums") and len(shape) == 2 and min(shape) > 0 and 0 <= known <= CODES
    if not sound or len(lines) != 2 or (kind == "values" and known == 0):
        raise CheckpointError(f"the file holds a table {form}, which is none.")
    return math.prod(shape) * (4 if kind == "sums" else 1) + (4 * known if kind == "values" else 0)


def _steps(codes: NDArray[Any]) -> bytes:
    """Returns the differences from each code to the next one."""
    return np.diff(codes, axis=1, prepend=np.uint8(0)).tobytes()


def _planes(numbers: NDArray[Any]) -> bytes:
    """Returns the bytes of int32 numbers, all lowest ones first."""
    return numbers.view(np.uint8).reshape(-1, 4).T.tobytes()


def _lines(rows: NDArray[Any]) -> tuple[int, int]:
    """Returns the row and the column that predict all others best: where both codes stand for zero, as sums go."""
    size = np.abs(rows)
    places = np.argwhere(size == np.nanmin(size))[:_TRIES] if not np.isnan(size).all() else [(0, 0)]
    wrong = [np.count_nonzero(rows.view(np.int32) - _added(rows, int(row), int(column))) for row, column in places]
    row, column = places[int(np.argmin(wrong))]
    return int(row), int(column)


def _added(rows: NDArray[Any], row: int, column: int) -> NDArray[Any]:
    """Returns the bits of the sums of a row and a column, with zeros in place of these themselves."""
    found = np.empty(rows.shape, np.float32)
    with np.errstate(all="ignore"):
        for line, base in zip(found, rows[:, column].astype(np.float64), strict=True):
            line[:] = base + rows[row].astype(np.float64)  # row by row: in float64 all at once would be twice as much
    bits = found.view(np.int32)
    bits[:, column], bits[row] = 0, 0
    return bits

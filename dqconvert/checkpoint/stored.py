"""Entries of a ``state_dict`` besides plain tensors, as plain tensors and JSON-ready data, and back.

Sparse and complex128 tensors are stored as the tensors that they consist of. What a module says of itself
(``get_extra_state``) is stored if it is plain data: numbers, strings, containers and tensors.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dqconvert.errors import CheckpointError
from dqconvert.words import kind_of

Forms = dict[str, Any]
Parts = dict[str, Tensor]

_COMPRESSED: dict[torch.layout, tuple[Callable[..., Tensor], str, str]] = {
    torch.sparse_csr: (torch.sparse_csr_tensor, "crow_indices", "col_indices"),
    torch.sparse_bsr: (torch.sparse_bsr_tensor, "crow_indices", "col_indices"),
    torch.sparse_csc: (torch.sparse_csc_tensor, "ccol_indices", "row_indices"),
    torch.sparse_bsc: (torch.sparse_bsc_tensor, "ccol_indices", "row_indices"),
}
_LAYOUTS = {str(layout).removeprefix("torch."): layout for layout in _COMPRESSED}


def take_apart(tensors: Mapping[str, Tensor]) -> tuple[Parts, Forms]:
    """Tensors as a file stores them, and what it says about those that consist of several.

    Example:
        >>> parts, forms = take_apart({"adj": torch.eye(2).to_sparse_csr(), "bias": torch.ones(1)})
        >>> list(parts), forms
        (['adj:0', 'adj:1', 'adj:2', 'bias'], {'adj': {'layout': 'sparse_csr', 'shape': [2, 2]}})
        >>> put_together(parts, forms)["adj"].layout
        torch.sparse_csr
    """
    parts: Parts = {}
    forms: Forms = {}
    form: Forms
    for name, tensor in tensors.items():
        value = tensor.detach()
        if value.layout in _COMPRESSED:
            _, rows, columns = _COMPRESSED[value.layout]
            found = [getattr(value, rows)(), getattr(value, columns)(), value.values()]
            form = {"layout": str(value.layout).removeprefix("torch."), "shape": list(value.shape)}
        elif value.layout == torch.sparse_coo:
            found = [value._indices(), value._values()]
            form = {"layout": "sparse_coo", "shape": list(value.shape), "coalesced": value.is_coalesced()}
        elif value.dtype == torch.complex128 and not value.is_meta:
            found, form = [torch.view_as_real(value.resolve_conj())], {"layout": "complex128"}
        else:
            parts[name] = tensor
            continue
        forms[name] = form
        for number, part in enumerate(found):
            parts |= _only_plain(f"{name}:{number}", part)
    return parts, forms


def _only_plain(name: str, part: Tensor) -> Parts:
    found, forms = take_apart({name: part}) if part.dtype == torch.complex128 else ({name: part}, {})
    if forms:
        raise CheckpointError(f"{name}: a sparse tensor of complex128 is nothing that the file can hold.")
    return found


def put_together(parts: Mapping[str, Tensor], forms: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors that :func:`take_apart` was given.

    Raises:
        CheckpointError: If the parts are not what the file says; indices are looked at.
    """
    owned = {f"{name}:{number}" for name, form in forms.items() for number in range(_count(form))}
    found = {name: tensor for name, tensor in parts.items() if name not in owned}
    for name, form in forms.items():
        try:
            own = [parts[f"{name}:{number}"] for number in range(_count(form))]
            found[name] = _built(own, form)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the file holds {name!r} as {form}, which does not fit its parts: {error}"
            ) from error
    return found


def _count(form: Mapping[str, Any]) -> int:
    return {"complex128": 1, "sparse_coo": 2}.get(form["layout"], 3)


def _built(own: list[Tensor], form: Mapping[str, Any]) -> Tensor:
    if form["layout"] == "complex128":
        return torch.view_as_complex(own[0])
    if form["layout"] == "sparse_coo":
        indices, values = own
        coalesced = bool(form["coalesced"])
        return torch.sparse_coo_tensor(indices, values, form["shape"], check_invariants=True, is_coalesced=coalesced)
    build, *_ = _COMPRESSED[_LAYOUTS[form["layout"]]]
    return build(*own, form["shape"], check_invariants=True)


# -- what a module says of itself ----------------------------------------------------------------------------------


def encode_extra(name: str, value: Any) -> tuple[Any, Parts]:
    """Returns plain data as JSON-ready data, and the tensors in it by name.

    Raises:
        CheckpointError: If it holds what a file cannot: an object of a class of its own.

    Example:
        >>> encode_extra("m._extra_state", {"steps": 3, "seen": (torch.ones(1), None)})
        ({'dict': [['steps', 3], ['seen', {'tuple': [{'tensor': 'm._extra_state:0'}, None]}]]}, {'m._extra_state:0': ...
    """
    parts: Parts = {}

    def encode(item: Any) -> Any:
        if isinstance(item, Tensor):
            key = f"{name}:{len(parts)}"
            parts[key] = item
            return {"tensor": key}
        if item is None or isinstance(item, bool | int | str):
            return {"int": str(item)} if type(item) is int and abs(item) >= 1 << 63 else item
        if isinstance(item, float):
            return item if math.isfinite(item) else {"float": str(item)}
        if isinstance(item, bytes):
            return {"bytes": base64.b64encode(item).decode()}
        if type(item) in (list, tuple):
            return {type(item).__name__: list(map(encode, item))}
        if type(item) is dict:
            return {"dict": [[encode(key), encode(entry)] for key, entry in item.items()]}
        raise CheckpointError(
            f"state_dict()[{name!r}] holds {kind_of(item)}: a file holds tensors, numbers, strings, and lists, "
            f"tuples and dicts of them. Return such from get_extra_state(), or keep it in the model's constructor."
        )

    return encode(value), parts


def decode_extra(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns what :func:`encode_extra` was given."""
    if not isinstance(value, dict):
        return value
    [(word, content)] = value.items()
    if word == "tensor":
        return tensors[content].clone()
    if word == "dict":
        return {decode_extra(key, tensors): decode_extra(entry, tensors) for key, entry in content}
    if word in ("list", "tuple"):
        return (list if word == "list" else tuple)(decode_extra(item, tensors) for item in content)
    if word == "bytes":
        return base64.b64decode(content)
    return int(content) if word == "int" else float(content)

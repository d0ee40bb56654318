"""The form of a description in a file, as annotations, and the check of one against them.

A description is checked once, when it is read. What comes after takes it as it is declared here.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, Union

from dqconvert.errors import CheckpointError
from dqconvert.lower.report import IntegerReport
from dqconvert.report import Report
from dqconvert.trace import Island


class NoteData(TypedDict, total=False):
    """A :class:`dqconvert.trace.note.Note` without what says nothing."""

    module: str
    call: int
    stage: str
    source: str
    propagation: int
    sizes: list[list[int]]
    dtype: str | None
    sparse: bool


class NodeData(TypedDict):
    """A node of a graph."""

    op: str
    name: str
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    note: NoteData


class _Quantizer(TypedDict):
    path: str
    spec: dict[str, Any]
    name: str
    signed: bool | None
    channels: int | None
    channel_dim: int
    row_dim: int
    flags: dict[str, bool]


class QuantizerData(_Quantizer, total=False):
    """A quantizer: the arguments of its constructor, and its switches."""

    noise: float
    behind: list[str | list[float | str]]


class ProtectionData(TypedDict):
    """The modules that draw protected nodes."""

    path: str
    p_min: float
    p_max: float


class MethodData(TypedDict):
    """One more method of a prepared module."""

    name: str
    how: str
    islands: list[Island]
    graphs: dict[str, list[NodeData] | None]


class StateData(TypedDict):
    """The state that tensors do not hold."""

    aliases: dict[str, str]
    settings: list[Any]
    beside: list[str]
    frozen: list[str]
    training: bool
    modes: dict[str, bool]
    absent: NotRequired[list[str]]


class FormData(TypedDict):
    """The form of a stored tensor that is not plain, see :mod:`dqconvert.checkpoint.stored`."""

    layout: str
    shape: NotRequired[list[int]]
    coalesced: NotRequired[bool]


class PreparedData(TypedDict):
    """The description of a prepared file; older ones have one method."""

    versions: dict[str, str]
    model: str
    method: str
    fuse: bool
    factory: str | None
    kwargs: Any
    qconfig: dict[str, Any]
    report: Report
    islands: list[Island]
    quantizers: list[QuantizerData]
    protections: list[ProtectionData]
    modules: dict[str, str]
    state: StateData
    graphs: dict[str, list[NodeData] | None]
    forms: NotRequired[dict[str, FormData]]
    extra: NotRequired[dict[str, Any]]
    called_method: NotRequired[str]
    own_code: NotRequired[dict[str, str]]
    methods: NotRequired[list[MethodData]]
    plain_methods: NotRequired[list[MethodData]]


class WeightForm(TypedDict):
    """The form of a stored weight."""

    columns: int
    depth: int
    low: int
    bits: int


class TableForm(TypedDict):
    """The form of a stored table."""

    kind: str
    shape: list[int]
    values: NotRequired[int]
    lines: NotRequired[list[int]]


ModuleData = TypedDict(
    "ModuleData",
    {
        "class": str,
        "attributes": dict[str, Any],
        "parameters": list[str],
        "buffers": list[str],
        "absent": list[str],
        "children": dict[str, Any],
        "empty": list[str],
    },
)
"""A module that a graph keeps whole; its children are such, too."""


class IntegerMethodData(TypedDict):
    """One more method of an integer module."""

    name: str
    how: str
    graph: list[NodeData]


class IntegerData(TypedDict):
    """The description of an integer file, unpacked; older ones have one method."""

    versions: dict[str, str]
    model: str
    report: IntegerReport
    constants: list[str]
    weights: dict[str, WeightForm]
    tables: dict[str, TableForm]
    modules: dict[str, ModuleData]
    memos: dict[str, list[NodeData]]
    graph: list[NodeData]
    method: NotRequired[str]
    called_method: NotRequired[str]
    methods: NotRequired[list[IntegerMethodData]]
    left_out: NotRequired[dict[str, str]]
    order: NotRequired[list[str]]


def check_document(document: Mapping[str, Any], declared: Any, where: str) -> None:
    """Raises unless a description is as it is declared.

    Args:
        declared: A class of this module.
        where: The file, as messages call it.

    Raises:
        CheckpointError: It names the field.

    Example:
        >>> check_document({"module": "convs.0", "call": "first"}, NoteData, "a.dq")
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: a.dq: its description is malformed: call must be a whole number, and is
        'first'. The file was not written by dqconvert.
    """
    fault = _fault(document, declared, "")
    if fault:
        raise CheckpointError(f"{where}: its description is malformed: {fault}. The file was not written by dqconvert.")


def made(declared: Any, data: Any) -> Any:
    """Returns the dataclass, or the tuple of such, that checked data describes.

    Example:
        >>> made(tuple[Island, ...], [{"module": "act", "reason": "branches", "source": "net.py:7"}])
        (Island(module='act', reason='branches', source='net.py:7'),)
    """
    if dataclasses.is_dataclass(declared):
        make: Any = declared
        return make(**{name: made(_fields(make)[name][0], value) for name, value in data.items()})
    if typing.get_origin(declared) is tuple:
        return tuple(made(typing.get_args(declared)[0], item) for item in data)
    return data


_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@functools.cache
def _fields(declared: Any) -> dict[str, tuple[Any, bool]]:
    """Returns the fields of a declaration, and whether each must be there."""
    hints = typing.get_type_hints(declared)
    if dataclasses.is_dataclass(declared):
        needed = {
            field.name
            for field in dataclasses.fields(declared)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        return {name: (hints[name], name in needed) for name in (field.name for field in dataclasses.fields(declared))}
    return {name: (kind, name in declared.__required_keys__) for name, kind in hints.items()}


def _fault(value: Any, declared: Any, place: str) -> str:
    """Returns what is wrong with a value, and where; ``""`` if nothing is."""
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if declared is Any:
        return ""
    if origin in (Union, types.UnionType):
        faults = [_fault(value, part, place) for part in parts]
        held = isinstance(value, list | dict)
        inner = [fault for fault, part in zip(faults, parts, strict=True) if held and part is not type(None)]
        return "" if "" in faults else (inner or faults)[0]
    if typing.is_typeddict(declared) or dataclasses.is_dataclass(declared):
        return _object_fault(value, declared, place)
    if origin in (list, tuple):
        if not isinstance(value, list):
            return _wrong(value, list, place)
        return _first(_fault(item, parts[0], f"{place}[{number}]") for number, item in enumerate(value))
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])):
        if not isinstance(value, dict):
            return _wrong(value, dict, place)
        return _first(_fault(item, parts[1], f"{place}[{key!r}]") for key, item in value.items())
    kinds: Any = (int, float) if declared is float else declared
    sound = isinstance(value, kinds) and (declared is bool or not isinstance(value, bool))
    return "" if sound else _wrong(value, declared, place)


def _object_fault(value: Any, declared: Any, place: str) -> str:
    if not isinstance(value, dict):
        return _wrong(value, dict, place)
    fields = _fields(declared)
    for name, (_, needed) in fields.items():
        if needed and name not in value:
            return f"{f'{place}.{name}'.lstrip('.')} is missing"
    if dataclasses.is_dataclass(declared) and (others := value.keys() - fields.keys()):
        return f"{place} has {sorted(others)[0]!r}, which is no field of it"
    return _first(
        _fault(value[name], kind, f"{place}.{name}".lstrip(".")) for name, (kind, _) in fields.items() if name in value
    )


def _first(faults: Any) -> str:
    return next((fault for fault in faults if fault), "")


def _wrong(value: Any, wanted: type, place: str) -> str:
    return f"{place or 'it'} must be {_WORDS[wanted]}, and is {repr(value)[:60]}"

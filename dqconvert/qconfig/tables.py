"""The plumbing under a config: checking fields, reading them from dicts and files, writing TOML.

Nothing here knows what a field means, but for the words that stand for `None` in files.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dqconvert.errors import CheckpointError, ConfigError
from dqconvert.files import open_file
from dqconvert.words import did_you_mean, shortened

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Part = TypeVar("_Part", bound="DataclassInstance")

_PARSERS = {".toml": tomllib.loads, ".json": json.loads}

# The word that stands for None under each key in dicts and files, as TOML has no null.
_SPELLED_NONE: Mapping[str, str] = {
    **dict.fromkeys(["weight", "activation", "message", "aggregate", "spec"], "float"),
    **dict.fromkeys(["protect", "noise"], "none"),
    "roles": "all",
    **dict.fromkeys(["signed", "groups", "percentile", "momentum", "sample", "graph_bits"], "auto"),
}


def as_number(value: object) -> float:
    """Returns a number itself; NaN, which fails every comparison, for anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def require(field: str, value: object, holds: bool, allowed: str) -> None:
    """Raises `ConfigError` unless the condition on a field's value holds."""
    if not holds:
        raise ConfigError(f"{field}={shortened(value)}: must be {allowed}")


def require_choice(field: str, value: object, choices: Iterable[str], *others: str) -> None:
    """Raises `ConfigError` unless the value is one of the choices; `others` are named as allowed, too."""
    *first, last = [*map(repr, choices), *others]
    require(field, value, isinstance(value, str) and value in choices, f"{', '.join(first)} or {last}")


def require_known_keys(table: Mapping[str, Any], known: list[str], prefix: str) -> None:
    """Raises `ConfigError` if a key of the table, found under the dotted `prefix`, is unknown."""
    for key in table:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; there are: {', '.join(map(repr, known))}"
            raise ConfigError(f"{prefix}{key}: unknown field{hint}")


def nearest_or_all(given: str, seen: set[str]) -> str:
    """Returns the end of a message about a name that occurs nowhere: the nearest that does, or the first ten."""
    if nearest := difflib.get_close_matches(given, sorted(seen), n=1):
        return f"the nearest is {nearest[0]!r}"
    shown = ", ".join(map(repr, sorted(seen)[:10]))
    return f"there are: {shown}{', ...' if len(seen) > 10 else ''}"


def none_if_spelled(key: str, value: Any) -> Any:
    """Returns the value, or `None` where it is the word for it."""
    return None if isinstance(value, str) and value == _SPELLED_NONE.get(key) else value


def spell_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the table with every `None`, at any depth, as the word for it."""
    spelled: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            spelled[key] = spell_none(value)
        elif isinstance(value, list):
            spelled[key] = [spell_none(row) if isinstance(row, dict) else row for row in value]
        else:
            spelled[key] = _SPELLED_NONE[key] if value is None else value
    return spelled


def override(base: _Part, value: Any, path: str) -> _Part | None:
    """Returns what a dict says at `path`: `base` with the fields given, a whole new object, or `None`."""
    key, name = path.rpartition(".")[2], type(base).__name__
    value = none_if_spelled(key, value)
    if value is None or isinstance(value, type(base)):
        return value
    allowed = f"a dict of {name} fields, a {name}, None or {_SPELLED_NONE[key]!r}"
    require(path, value, isinstance(value, Mapping), allowed)
    require_known_keys(value, [field.name for field in fields(base)], f"{path}.")
    try:
        return replace(base, **{field: none_if_spelled(field, given) for field, given in value.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from error


def is_config_path(name: str) -> bool:
    """True if a string looks like a file's path rather than a preset's name."""
    return Path(name).suffix != "" or len(Path(name).parts) > 1


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the table that a `.toml` or `.json` file holds.

    Raises:
        ConfigError: If it cannot be read; it names the file, and for malformed text the line and column.
    """
    parse = _PARSERS.get(Path(path).suffix.lower())
    if parse is None:
        raise ConfigError(f"{os.fspath(path)}: a config file's name must end in .toml or .json")
    try:
        with open_file(path) as file:
            table = parse(file.read().decode("utf-8"))
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    except (ValueError, RecursionError) as error:  # ValueError: both parsers' errors and UnicodeDecodeError
        raise ConfigError(f"{os.fspath(path)}: malformed: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{os.fspath(path)}: must hold an object with a config's fields, not {table!r}")
    return table


def format_toml(table: Mapping[str, Any]) -> str:
    """Writes a table as TOML: values first, then `[tables]`, then `[[arrays of tables]]`.

    Deeper tables are written inline. TOML knows no null, so there must be no `None` in the table.

    Example:
        >>> rules = [{"op": "f", "spec": {"bits": 8}}]
        >>> print(format_toml({"protect": "none", "weight": {"bits": 4}, "rules": rules}))
        protect = "none"
        <BLANKLINE>
        [weight]
        bits = 4
        <BLANKLINE>
        [[rules]]
        op = "f"
        spec = {bits = 8}
        <BLANKLINE>
    """
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    arrays = {key: rows for key, rows in table.items() if isinstance(rows, list) and rows}
    blocks = [_lines({key: value for key, value in table.items() if key not in tables and key not in arrays})]
    blocks += [f"[{key}]\n{_lines(value)}" for key, value in tables.items()]
    blocks += [f"[[{key}]]\n{_lines(row)}" for key, rows in arrays.items() for row in rows]
    return "\n".join(block for block in blocks if block)


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[^\x20-\x7e]", lambda match: f"\\U{ord(match[0]):08X}", escaped) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)

"""``--qconfig``, ``--set`` and ``--rule``: builds a config from a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from dqconvert.errors import ConfigError
from dqconvert.qconfig import KINDS, ROLES, QConfig, as_qconfig
from dqconvert.qconfig.tables import is_config_path, read_table
from dqconvert.words import did_you_mean


def qconfig_from(name: str, sets: Sequence[str] | None = (), rules: Sequence[str] | None = ()) -> QConfig:
    """Returns the config that the options of ``dqconvert convert`` describe.

    Args:
        name: A preset's name, or the path of a ``.toml`` or ``.json`` file.
        sets: ``FIELD=VALUE``, such as ``activation.bits=4``, ``protect.p_max=0.2``, ``message=float``.
        rules: ``MODULE[@ROLE]=SPEC``, such as ``conv1.*=float``, ``convs\\.0@weight=bits=4,range=minmax``; they come
            before the rules of a file.

    Raises:
        ConfigError: If an option is malformed, or a field, preset or value does not exist.

    Example:
        >>> qconfig = qconfig_from("int8-dq", ["activation.bits=4"], ["conv1.*@message=float"])
        >>> qconfig.activation.bits, qconfig.rules
        (4, (Rule(module='conv1.*', role='message', kind=None, op=None, level=None, spec=None),))
    """
    sets, rules = sets or (), rules or ()
    if not sets and not rules:
        return as_qconfig(name)
    table: dict[str, Any] = read_table(name) if is_config_path(name) else {"preset": name}
    as_qconfig(name)  # its own mistakes first, under its own name
    for option in sets:
        _set(table, option)
    table["rules"] = [*(_rule(option) for option in rules), *table.get("rules", ())]
    try:
        return as_qconfig(table)
    except ConfigError as error:  # in the words that were typed
        raise ConfigError(
            re.sub(r"^rules\[(\d+)\]", lambda found: _option(int(found[1]), rules), str(error))
        ) from error


def _option(index: int, rules: Sequence[str]) -> str:
    """Returns a rule of the config as it was typed."""
    return f"--rule {rules[index]}: " if index < len(rules) else f"rules[{index}]"


def _set(table: dict[str, Any], option: str) -> None:
    path, equals, value = option.partition("=")
    if not equals or not path or not value:
        raise ConfigError(f"--set {option}: must be written as FIELD=VALUE, such as activation.bits=4")
    *parents, field = path.split(".")
    for parent in parents:
        inner = table.get(parent)
        table[parent] = dict(inner) if isinstance(inner, dict) else {}
        table = table[parent]
    table[field] = _value(value)


def _value(text: str) -> Any:
    """Parses numbers, true, false and null as JSON; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _rule(option: str) -> dict[str, Any]:
    found = re.fullmatch(r"(?P<module>.*?)(@(?P<role>\w+))?=(?P<spec>float|\w+=[^=]+(,\w+=[^=]+)*)", option)
    if found is None:
        raise ConfigError(
            f"--rule {option}: must be written as MODULE[@ROLE]=SPEC, such as conv1.*=float or "
            f"convs\\.0@weight=bits=4,range=minmax"
        )
    rule: dict[str, Any] = {"module": found["module"]} if found["module"] else {}
    if found["role"]:
        if found["role"] not in (*ROLES, *KINDS):
            near = did_you_mean(found["role"], (*ROLES, *KINDS))
            names = ", ".join(dict.fromkeys((*ROLES, *KINDS)))
            raise ConfigError(f"--rule {option}: unknown role {found['role']!r}{near}; there are: {names}")
        rule["role" if found["role"] in ROLES else "kind"] = found["role"]
    pairs = [part.partition("=") for part in found["spec"].split(",")]
    rule["spec"] = "float" if found["spec"] == "float" else {key: _value(value) for key, _, value in pairs}
    return rule

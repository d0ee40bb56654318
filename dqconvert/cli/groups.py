"""Groups of options: a command takes a dataclass, and typer sees an option for each of its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def flat(function: Callable[..., None]) -> Callable[..., None]:
    """Returns a command for typer: ``function`` with the fields of each of its dataclasses in their place.

    Args:
        function: Each of its parameters, and each field of those that are dataclasses, is annotated as typer wants it.

    Raises:
        ValueError: If two of them have one name.

    Example:
        >>> from dqconvert.commands.options import Output
        >>> def show(name: str, output: Output) -> None:
        ...     print(name, output.force, output.quiet)
        >>> list(inspect.signature(flat(show)).parameters)
        ['name', 'force', 'as_json', 'quiet']
        >>> flat(show)(name="gcn.dq", force=True, as_json=False, quiet=False)
        gcn.dq True False
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _fields_of(groups[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        function(**given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _fields_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]

"""``--model pkg.mod:factory --kwargs JSON``: the float model that the user's own code builds."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from torch import nn

from dqconvert.errors import CommandError


def build_model(factory: str, kwargs: dict[str, Any]) -> nn.Module:
    """Imports a factory, also from the working directory, and calls it.

    Args:
        factory: ``"pkg.mod:name"``, a class or another callable; dots in the name reach into classes.
        kwargs: Its arguments.

    Raises:
        CommandError: If it cannot be imported, is no callable, raises, or returns no module. What its code raised is
            shown on stderr first.

    Example:
        >>> build_model("torch.nn:Linear", {"in_features": 2, "out_features": 1})
        Linear(in_features=2, out_features=1, bias=True)
    """
    function = _find(factory)
    if not callable(function):
        raise CommandError(f"--model {factory}: is a {type(function).__name__}, not a class or a function.")
    with _own_traceback(f"--model {factory}: raised when called with {_call(kwargs)}"):
        model = function(**kwargs)
    if not isinstance(model, nn.Module):
        raise CommandError(f"--model {factory}: returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def parse_kwargs(text: str | None) -> dict[str, Any]:
    """The arguments that ``--kwargs`` gives as a JSON object.

    Raises:
        CommandError: If it is not one.

    Example:
        >>> parse_kwargs('{"in_channels": 16}')
        {'in_channels': 16}
    """
    if text is None:
        return {}
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(
            f"--kwargs {text}: is not JSON: {error}. Example: --kwargs '{{\"num_layers\": 2}}'"
        ) from error
    if not isinstance(kwargs, dict):
        raise CommandError(f"--kwargs {text}: must be a JSON object of arguments by name.")
    return kwargs


def _find(factory: str) -> Callable[..., Any]:
    module_name, colon, name = factory.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise CommandError(f"--model {factory}: must be written as pkg.mod:name.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _own_traceback(f"--model {factory}: {module_name} cannot be imported", quiet=(module_name,)):
        found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            nearest = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise CommandError(f"--model {factory}: {module_name} has no {name!r}{hint}")
        found = getattr(found, part)
    return found


@contextmanager
def _own_traceback(message: str, quiet: tuple[str, ...] = ()) -> Iterator[None]:
    """Shows what the user's code raised, from its own first line on, and ends in one line of ours.

    A module that does not exist (``quiet``, or a package of it) has no lines to show.
    """
    try:
        yield
    except Exception as error:  # whatever the user's code raises
        missing = isinstance(error, ModuleNotFoundError) and any(f"{n}.".startswith(f"{error.name}.") for n in quiet)
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        if not missing and frames is not None:
            typer.echo("".join(traceback.format_exception(type(error), error, frames)), err=True, nl=False)
        where = f" (searched from {os.getcwd()} on)" if missing else ""
        raise CommandError(f"{message}: {type(error).__name__}: {error}{where}") from error


def _call(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments (pass them with --kwargs)"

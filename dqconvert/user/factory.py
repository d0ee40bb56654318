"""``--model pkg.mod:factory --kwargs JSON``: what the user's own code builds, the float model above all."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dqconvert.errors import CommandError, UsageError
from dqconvert.words import did_you_mean, kind_of


def build_model(factory: str, kwargs: dict[str, Any]) -> nn.Module:
    """Imports a factory, also from the working directory, and calls it.

    Args:
        factory: ``"pkg.mod:name"``, a class or another callable; dots in the name reach into classes.

    Raises:
        UsageError: If there is no such thing, it is no callable, does not take the arguments or returns no module.
        CommandError: If its code raises; the message says where.

    Example:
        >>> build_model("torch.nn:Linear", {"in_features": 2, "out_features": 1})
        Linear(in_features=2, out_features=1, bias=True)
    """
    model = build(factory, kwargs)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {factory}: returned {kind_of(model)}, not a torch.nn.Module.")
    return model


def build(factory: str, kwargs: dict[str, Any], option: str = "--model", more: str = "--kwargs") -> Any:
    """Imports a factory as :func:`build_model` does, and returns what it returns, whatever that is.

    Args:
        option: What the factory was given as, for messages.
        more: Likewise, its arguments.
    """
    function = find(factory, option)
    call = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or f"no arguments (pass them with {more})"
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        raise UsageError(f"{option} {factory}: cannot be called with {call}: {error}.") from error
    except ValueError:  # a callable without a signature
        pass
    with _in_one_line(f"{option} {factory}: raised when called with {call}"):
        return function(**kwargs)


def parse_kwargs(text: str | None, option: str = "--kwargs") -> dict[str, Any]:
    """Parses the JSON object of ``--kwargs``, or of another option.

    Raises:
        UsageError: If it is not one.

    Example:
        >>> parse_kwargs('{"in_channels": 16}')
        {'in_channels': 16}
    """
    if text is None:
        return {}
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} {text}: is not JSON: {error}. Example: {option} '{{\"num_layers\": 2}}'") from error
    if not isinstance(kwargs, dict):
        raise UsageError(f"{option} {text}: must be a JSON object of arguments by name.")
    return kwargs


def search_here() -> None:
    """Lets modules in the working directory be imported."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def find(factory: str, option: str = "--model") -> Callable[..., Any]:
    """Imports ``pkg.mod:name``, also from the working directory.

    Raises:
        UsageError: If there is no such thing, or it cannot be called.
        CommandError: If its module raises.
    """
    module_name, colon, name = factory.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise UsageError(f"{option} {factory}: must be written as pkg.mod:name.")
    search_here()
    with _in_one_line(f"{option} {factory}: {module_name} cannot be imported", module_name):
        found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{option} {factory}: {module_name} has no {name!r}{did_you_mean(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{option} {factory}: is {kind_of(found)}, not a class or a function.")
    return found


@contextmanager
def _in_one_line(message: str, module_name: str = "") -> Iterator[None]:
    """Reports what the user's code raised in one line, with its place; ``--debug`` shows the rest.

    A module that does not exist (``module_name``, or a package of it) was typed wrong.
    """
    try:
        yield
    except Exception as error:  # whatever the user's code raises
        text = f"{message}: {type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{text} (searched from {os.getcwd()} on)") from error
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames[1:] if not frame.filename.startswith("<frozen ")]
        where = f" ({os.path.relpath(own[-1].filename)}:{own[-1].lineno})" if own else ""
        if isinstance(error, SyntaxError) and error.filename:
            where = f" ({os.path.relpath(error.filename)}:{error.lineno})"
        raise CommandError(f"{text}{where}") from error

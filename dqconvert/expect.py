"""Checks of the arguments of public functions. An error says what was given, what was expected, and what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from dqconvert.errors import CheckpointError, ConfigError, DQConvertError
from dqconvert.prepared.module import PreparedModule
from dqconvert.quant import FakeQuantize
from dqconvert.trace.module import TracedModule
from dqconvert.words import article, kind_of

_FLOAT = "a float model, an instance of torch.nn.Module"
_PREPARED = "a prepared module, as dqconvert.prepare returns it"
_QUANTIZED = "a prepared or an integer module, as dqconvert.prepare or dqconvert.convert returns it"


def expect_float(model: Any, door: str, *, error: type[DQConvertError] = ConfigError, prepared: bool = False) -> Any:
    """The model, if it is one that can be traced.

    Args:
        door: The function that takes it, and which of its arguments: ``"prepare"``, ``"load, as model=,"``.
        error: The class of the error.
        prepared: True if a prepared module will do, too.

    Raises:
        DQConvertError: Of the kind ``error``, if it is anything else.

    Example:
        >>> expect_float(nn.Linear, "prepare")
        Traceback (most recent call last):
            ...
        dqconvert.errors.ConfigError: prepare takes a float model, an instance of torch.nn.Module, got the class Linear:
        make an instance of it: Linear(…).
    """
    if isinstance(model, PreparedModule):
        plain = prepared
    else:
        plain = isinstance(model, nn.Module) and not isinstance(model, _ALTERED) and _inner(model) is None
        plain = plain and _form(model) not in ("prepared", "integer") and _quantized(model) is None
    if not plain:
        raise error(_sentence(model, door, _FLOAT))
    return model


def expect_prepared(module: Any, door: str, *, error: type[DQConvertError] = ConfigError) -> Any:
    """The module, if :func:`dqconvert.prepare` returned it.

    Args:
        error: The class of the error.

    Raises:
        DQConvertError: Of the kind ``error``, if it is anything else.

    Example:
        >>> expect_prepared(nn.Linear(2, 1), "calibrate")
        Traceback (most recent call last):
            ...
        dqconvert.errors.ConfigError: calibrate takes a prepared module, as dqconvert.prepare returns it, got a float
        model (Linear): prepare it first: module, report = dqconvert.prepare(model).
    """
    if not isinstance(module, PreparedModule):
        raise error(_sentence(module, door, _PREPARED))
    return module


def expect_quantized(module: Any, door: str, *, error: type[DQConvertError] = ConfigError) -> Any:
    """The module, if :func:`dqconvert.prepare` or :func:`dqconvert.convert` returned it.

    Args:
        error: The class of the error.

    Raises:
        DQConvertError: Of the kind ``error``, if it is anything else.
    """
    if _form(module) not in ("prepared", "integer"):
        raise error(_sentence(module, door, _QUANTIZED))
    return module


def expect_path(path: Any, door: str) -> str | os.PathLike[str]:
    """The path, if it is one.

    Raises:
        CheckpointError: If it is anything else.

    Example:
        >>> expect_path(None, "save")
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: save takes the path of a file, a str or a pathlib.Path, got None.
    """
    named = isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str) and os.fspath(path) != ""
    if not named:
        what, do = ("an empty path", "") if path in ("", b"") else _found(path, _PREPARED)
        if isinstance(path, nn.Module):
            do = "the module comes first, then the path" if door == "save" else "a module need not be loaded"
        raise CheckpointError(
            f"{door} takes the path of a file, a str or a pathlib.Path, got {what}{': ' if do else ''}{do}."
        )
    return path


def _form(module: Any) -> str:
    """Returns ``"traced"``, ``"prepared"`` or ``"integer"``; ``""`` for anything else."""
    return type(module)._form if isinstance(module, TracedModule) else ""


def _sentence(value: Any, door: str, expected: str) -> str:
    what, do = _found(value, expected)
    return f"{door} takes {expected}, got {what}{': ' if do else ''}{do}."


# -- what it is instead ------------------------------------------------------------------------------------------

_ALTERED = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
_WRAPPERS = {
    "OptimizedModule": ("a model that torch.compile wrapped", "_orig_mod", "; compile what comes out"),
    "DataParallel": ("a model that DataParallel wrapped", "module", "; wrap what comes out"),
    "DistributedDataParallel": ("a model that DistributedDataParallel wrapped", "module", "; wrap what comes out"),
    "FullyShardedDataParallel": ("a model that FullyShardedDataParallel wrapped", "module", "; wrap what comes out"),
    "AveragedModel": ("an AveragedModel", "module", ""),
    "EMAModel": ("an EMAModel", "module", ""),
}


def _inner(module: nn.Module) -> tuple[str, str, str] | None:
    """If a module is a wrapper around the user's model: what it is, where the model is in it, what comes after."""
    for kind in type(module).__mro__:
        found = _WRAPPERS.get(kind.__name__)
        if found is not None and isinstance(getattr(module, found[1], None), nn.Module):
            return found
    return None


def _quantized(module: nn.Module) -> str | None:
    """The path of a part that holds dqconvert's quantizers."""
    for path, child in module.named_modules():
        if isinstance(child, FakeQuantize) or _form(child) in ("prepared", "integer"):
            return path
    return None


def _found(value: Any, expected: str) -> tuple[str, str]:
    """Returns what a value is, and how to get from it to what was expected, in words."""
    if isinstance(value, nn.Module | torch.jit.ScriptFunction):
        return _found_module(value, expected)
    load = (
        "build the model, and load the file's weights into it: model.load_state_dict(torch.load(path))"
        if expected is _FLOAT
        else "load it first: dqconvert.load(path, model=…)"
    )
    fill = "build the model, and call its load_state_dict with this" + (
        "" if expected is _FLOAT else "; a prepared module has the same method"
    )
    if isinstance(value, type):
        return f"the class {value.__name__}", f"make an instance of it: {value.__name__}(…)"
    if isinstance(value, str | os.PathLike):
        return f"{kind_of(value)}, {os.fspath(value)!r}", load
    if isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values()):
        return "a dict of tensors", fill
    if isinstance(value, tuple) and value and isinstance(value[0], nn.Module):
        if hasattr(value, "_fields"):
            return "the module and its report in one", "take them apart: module, report = dqconvert.prepare(…)"
        return "a tuple that begins with a module", "pass the module alone"
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, list | dict) and value and all(isinstance(item, nn.Module) for item in items):
        return f"{kind_of(value)} of modules", "pass one after the other"
    if type(value).__module__.startswith("dqconvert") and type(value).__name__.endswith("Report"):
        return kind_of(value), "it only says what was done: pass the module that came with it"
    if isinstance(value, Tensor | BaseData) or (isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value)):
        return kind_of(value), "the model comes first, then what it is to be run on"
    if type(value).__name__ == "ExportedProgram":
        return "an ExportedProgram", "pass the model that was exported"
    if callable(value):
        name = getattr(value, "__qualname__", "") or getattr(value, "__name__", "")
        return f"the function {name}" if name else kind_of(value), "call it, and pass what it returns"
    return kind_of(value), ""


def _found_module(module: Any, expected: str) -> tuple[str, str]:
    if isinstance(module, _ALTERED):
        return "a model that torch.jit scripted or traced", "pass the model that it was made of"
    if (wrapper := _inner(module)) is not None:
        what, attribute, after = wrapper
        return what, f"pass the model in it, model.{attribute}{after}"
    if _form(module) == "integer":
        made = "float model" if expected is _FLOAT else "prepared module"
        return "an integer module", f"no way leads back from integers: pass the {made} that it was made of"
    if isinstance(module, PreparedModule):
        return "a prepared module", "pass the float model that it was made of"
    path = _quantized(module)
    form = _form(module.get_submodule(path)) if path else ""
    if form:
        rest = "the float model as a whole" if expected is _FLOAT else f"model.{path}"
        return f"{article(type(module).__name__)} that holds {article(form)} module at {path!r}", f"pass {rest}"
    if isinstance(module, FakeQuantize):
        return f"one of dqconvert's quantizers ({module.name})", "pass the module that it is in"
    if path is not None:
        return (
            f"{article(type(module).__name__)} with dqconvert's quantizers in it that dqconvert did not make",
            f"pass {'the float model' if expected is _FLOAT else 'the prepared module itself'}",
        )
    return f"a float model ({type(module).__name__})", "prepare it first: module, report = dqconvert.prepare(model)"

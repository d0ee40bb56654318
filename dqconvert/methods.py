"""``method=`` of :func:`dqconvert.prepare`: which methods of a model to prepare, and on which inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dqconvert.errors import ConfigError
from dqconvert.trace.copies import working_copy
from dqconvert.trace.inputs import Inputs, bind, from_bound, method_of, signature_of
from dqconvert.trace.leaves import uninitialized
from dqconvert.trace.randomness import preserved_random_state
from dqconvert.trace.tracer import run_once


@dataclass(frozen=True)
class Methods:
    """The methods to prepare.

    Attributes:
        inputs: By name, the one that ``module.graph`` is of first; ``None``: made up, or those of the first call.
        called: The one that calling the module runs.
    """

    inputs: dict[str, Any]
    called: str

    @property
    def first(self) -> str:
        """The one that ``module.graph`` is of."""
        return next(iter(self.inputs))


def methods_of(model: nn.Module, method: Any, example_inputs: Any) -> Methods:
    """Reads what ``prepare`` was given.

    Raises:
        ConfigError: If it is neither a name, nor several, nor a dict of name to inputs.
        TraceError: If the model has no such method.

    Example:
        >>> from torch_geometric.nn import GAE, GCNConv
        >>> methods_of(GAE(GCNConv(8, 4)), ("encode", "decode"), None).called
        'forward'
    """
    if isinstance(method, str):
        signature_of(model, method)
        return Methods({method: example_inputs}, method)
    if isinstance(method, Mapping):
        if example_inputs is not None:
            raise ConfigError("method= is a dict of name to inputs: leave example_inputs= out.")
        inputs = dict(method)
    elif isinstance(method, Sequence) and method:
        inputs = dict.fromkeys(method)
    else:
        raise ConfigError(
            f"method= takes a method's name, several, or a dict of name to example inputs, got {method!r}."
        )
    for name in inputs:
        if not isinstance(name, str):
            raise ConfigError(f"method= takes names of methods, got {name!r}.")
        method_of(model, name)
    own = type(model).forward is not nn.Module.forward
    called = "forward" if own or "forward" in inputs else next(iter(inputs))
    first = "forward" if "forward" in inputs else next(iter(inputs))
    ordered = {first: inputs[first], **inputs}
    if not isinstance(method, Mapping) and example_inputs is not None:
        ordered = _shared_out(model, ordered, example_inputs)
    return Methods(ordered, called)


def _shared_out(model: nn.Module, methods: dict[str, Any], example: Any) -> dict[str, Any]:
    """``example_inputs`` for several methods: a dict by method; or arguments of the first, and by name of others."""
    if isinstance(example, dict) and example and set(example) <= set(methods):
        return {name: example.get(name) for name in methods}
    first = next(iter(methods))
    if uninitialized(model):
        return {**methods, first: example}
    given = bind(model, first, example)
    return {name: given if name == first else _by_name(model, name, given) for name in methods}


def _by_name(model: nn.Module, name: str, given: Inputs) -> Inputs | None:
    """Another method's inputs, if all that it requires is among those given."""
    signature = signature_of(model, name)
    known = {key: given.arguments[key] for key in signature.parameters if key in given.given}
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not known or any(parameter.kind in stars for parameter in signature.parameters.values()):
        return None
    try:
        return from_bound(signature, signature.bind(**known))
    except TypeError:
        return None


def with_shapes(model: nn.Module, methods: Methods) -> nn.Module:
    """Returns the model, or a copy in which every method that has inputs settled the shapes of lazy layers."""
    if len(methods.inputs) == 1 or not uninitialized(model):
        return model
    with preserved_random_state():
        settled = working_copy(model)
        for name, inputs in methods.inputs.items():
            if inputs is not None:
                run_once(settled, name, bind(settled, name, inputs))
    for part, own in zip(settled.modules(), model.modules(), strict=True):
        part.training = own.training
    return settled

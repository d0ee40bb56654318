"""The inputs that a model is traced on, bound to forward's signature."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from dqconvert.errors import TraceError
from dqconvert.trace.callee import callee_of_method
from dqconvert.trace.given import calls_of
from dqconvert.trace.nested import is_named, map_items
from dqconvert.words import did_you_mean, kind_of, listed


@dataclass(frozen=True)
class Inputs:
    """Arguments bound to a forward's signature.

    Attributes:
        signature: The forward's signature, without ``self``.
        arguments: Parameter name to value, in the signature's order, defaults filled in. ``*args`` is a tuple and
            ``**kwargs`` a dict, under their own names.
        given: The names that were passed.
        modes: The modes in which the model takes them: training, evaluation.
        refusal: What it says in the other one, if that is one of the two.
    """

    signature: inspect.Signature
    arguments: dict[str, Any]
    given: frozenset[str]
    modes: tuple[bool, ...] = (True, False)
    refusal: str = ""

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments as a call passes them. Containers are copied, tensors are not."""
        bound = inspect.BoundArguments(self.signature, {})
        for name, value in self.arguments.items():
            if name in self.given:
                bound.arguments[name] = shallow(value)
        return bound.args, bound.kwargs

    def bound_call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments as :meth:`call` does, with the very objects in ``arguments``."""
        bound = inspect.BoundArguments(self.signature, dict(self.arguments))
        return bound.args, bound.kwargs

    def copied(self) -> Inputs:
        """Returns the same inputs in memory of their own: models write into what they are given."""
        known: dict[int, Any] = {}

        def copy_of(tensor: Any) -> Any:
            if type(tensor) is not Tensor or tensor.layout != torch.strided:
                return tensor
            if id(tensor) not in known:
                known[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            return known[id(tensor)]

        return self.map(copy_of)

    def map(self, function: Callable[[Any], Any]) -> Inputs:
        """Returns the same inputs with ``function`` applied to every tensor."""
        arguments = {name: map_tensors(value, function) for name, value in self.arguments.items()}
        return replace(self, arguments=arguments)


def method_of(model: nn.Module, method: str) -> Callable[..., Any]:
    """Returns a method by its name: ``"encode"``, or ``"encoder.forward"`` of a part of the model.

    Raises:
        TraceError: If there is none.

    Example:
        >>> method_of(nn.Sequential(nn.Identity()), "0.forward")(3)
        3
    """
    name, own = type(model).__name__, _own_methods(model)
    there = f"it has: {listed(own)}" if own else "it has none of its own"
    if not isinstance(method, str):
        raise TraceError(f"method= takes the name of a method of {name}, got {kind_of(method)}; {there}.")
    path, _, last = method.rpartition(".")
    try:
        function = getattr(model.get_submodule(path), last, None)
    except AttributeError:
        function = None
    if not callable(function):
        raise TraceError(f"{name} has no method {method!r} to trace{did_you_mean(method, own) or f'; {there}'}.")
    if getattr(function, "__name__", "") == "_forward_unimplemented":
        say = f"say which of its methods to prepare, with method={own[0]!r}" if own else "prepare what calls its parts"
        raise TraceError(f"{name} has no forward: {say}; {there}.")
    return function


def signature_of(model: nn.Module, method: str) -> inspect.Signature:
    """Returns the signature of the method to trace."""
    return inspect.signature(method_of(model, method))


def _own_methods(model: nn.Module) -> list[str]:
    """Returns the public methods of a model's classes that modules in general do not have."""
    kinds = [kind for kind in type(model).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    names = [name for kind in kinds for name, value in vars(kind).items() if inspect.isfunction(value)]
    general = {*dir(nn.Module), *dir(nn.ModuleList), *dir(nn.ModuleDict), "reset_parameters"}
    return [name for name in dict.fromkeys(names) if not name.startswith("_") and name not in general]


def bind(model: nn.Module, method: str, example: Any) -> Inputs:
    """Binds ``example_inputs`` as users pass them (:mod:`dqconvert.trace.given`); of several, the first.

    Raises:
        TraceError: If they do not fit, or there are none.
    """
    name = f"{type(model).__name__}.{method}"
    callee = callee_of_method(method_of(model, method), name, subject="example_inputs do not fit", error=TraceError)
    first = next(calls_of(callee, example), None)
    if first is None:
        raise callee.refusal("they hold nothing", "pass one call's worth of inputs at least")
    return from_bound(callee.signature, first)


def from_bound(signature: inspect.Signature, bound: inspect.BoundArguments) -> Inputs:
    """Fills in defaults."""
    given = frozenset(bound.arguments)
    bound.apply_defaults()
    return Inputs(signature, dict(bound.arguments), given)


def shallow(value: Any) -> Any:
    """Returns a copy of containers and data objects that shares their tensors."""
    return map_tensors(value, lambda tensor: tensor)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Applies a function to every tensor in tuples, lists, dicts and PyG data objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, BaseData):
        copied = copy.copy(value)
        for store in copied.stores:
            for key, item in list(store.items()):
                store[key] = map_tensors(item, function)
        return copied
    if type(value) in (tuple, list) or isinstance(value, dict) or is_named(value):
        return map_items(value, lambda item: map_tensors(item, function))
    return value


def attributes_of_batch(data: BaseData) -> dict[str, Any]:
    """Returns the dict in which a batch keeps ``_num_graphs``; an empty one for other data."""
    # Versions of PyG differ in whether it belongs to the batch itself or to its store.
    places = [vars(data), *(vars(store) for store in data.stores)]
    return next((place for place in places if "_num_graphs" in place), {})

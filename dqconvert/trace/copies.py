"""Deep copies of the user's model: one to work on, and ones to run once."""

from __future__ import annotations

import copy
import copyreg
import operator
import random
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch_geometric.inspector import Inspector
from torch_geometric.nn import Sequential
from torch_geometric.nn.conv import MessagePassing

from dqconvert.errors import DQConvertError, TraceError
from dqconvert.trace.names import module_of
from dqconvert.trace.nested import tensors_in

Model = TypeVar("Model", bound=nn.Module)
Value = TypeVar("Value")

_ATOMS = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes, range, type, type(...), property),
        *(types.FunctionType, types.BuiltinFunctionType, types.CodeType),
    )
)
"""Types whose values are their own copies."""


def working_copy(model: nn.Module, *, caller: str = "prepare()", error: type[DQConvertError] = TraceError) -> nn.Module:
    """Returns a deep copy without gradients, and without what layers with ``cached=True`` computed for another graph.

    Args:
        model: Any module; stays as it is.
        caller: The function that works on the copy, as the message calls it.

    Raises:
        DQConvertError: ``error``, if the model cannot be copied.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> working_copy(layer).weight.grad is None, layer.weight.grad is None
        (True, False)
    """
    try:
        root = deepcopy(model)
    except Exception as reason:  # whatever the attributes of a user's model raise
        raise error(
            f"{type(model).__name__} cannot be deep-copied ({reason}): {caller} works on a copy. Clear tensors with "
            f"gradient history that the model keeps as attributes."
        ) from reason
    for parameter in nn.Module.parameters(root):  # a model may have a method of that name for something else
        parameter.grad = None
    clear_caches(root)
    return root


# -- deep copies -------------------------------------------------------------------------------------------------


def deepcopy(value: Value, memo: dict[Any, Any] | None = None) -> Value:
    """Returns what ``copy.deepcopy(value, memo)`` returns, several times faster, and copies what that cannot.

    Most of what a module holds are empty tables and constants, for which :mod:`copy` asks many questions each. Copied
    in addition are compressed sparse matrices, and tensors with a gradient history that a forward left among the
    attributes or in containers there (a loss, attention coefficients, a weight that a hook computes): without it.

    Each copy of a PyG ``Sequential`` generates its forward anew, under a name with a random number from :mod:`random`,
    and takes the code that already has that name. Copies made under a fixed seed, or before the generator's state is
    put back, would so get or give away another model's forward. Here the number comes from the system.

    Args:
        value: Any value: a module, or a dict of a module's attributes.
        memo: Copies by the ``id`` of what they are copies of, as for :func:`copy.deepcopy`; ``None``: none yet.

    Example:
        >>> import torch
        >>> model = nn.Module()
        >>> model.register_buffer("adj", torch.eye(2).to_sparse_csr())
        >>> model.loss = [torch.ones(1, requires_grad=True) * 2]
        >>> copied = deepcopy(model)
        >>> copied.adj.layout, copied.loss
        (torch.sparse_csr, [tensor([2.])])
    """
    memo = {} if memo is None else memo
    _keep(value, memo)
    return _copied(value, memo)


def _keep(value: Any, memo: dict[Any, Any]) -> None:
    """Keeps alive, as long as a memo, what its ids are of; as :mod:`copy` does it."""
    memo.setdefault(id(memo), []).append(value)


def _copied(value: Any, memo: dict[Any, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    made: Any
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        if kind is OrderedDict and value.__dict__:
            made.__dict__.update(value.__dict__)  # what typing sets: OrderedDict[int, Callable]()
        for key, item in value.items():
            of = type(item)
            if of not in _ATOMS:
                # Most tables of a module are empty.
                empty = not item if of is dict else of is OrderedDict and not item and not item.__dict__
                if empty and id(item) not in memo:
                    memo[id(item)] = item = of()  # in this order: targets are assigned from left to right
                else:
                    item = _copied(item, memo)
            made[key if type(key) in _ATOMS else _copied(key, memo)] = item
        return made
    if kind is list:
        made = memo[id(value)] = []
        made += [_copied(item, memo) for item in value]
        return made
    if kind is tuple or (isinstance(value, tuple) and hasattr(kind, "_make") and not hasattr(value, "__dict__")):
        parts = [_copied(item, memo) for item in value]
        if all(map(operator.is_, parts, value)):
            return value
        made = tuple(parts) if kind is tuple else kind._make(parts)
        return memo.setdefault(id(value), made)  # one that holds itself was copied on the way
    if kind is set or kind is frozenset:
        made = memo[id(value)] = kind(_copied(item, memo) for item in value)
        return made
    if isinstance(value, Tensor):
        made = memo[id(value)] = value.detach().clone() if _has_no_copy(value) else value.__deepcopy__(memo)
        return made
    if kind is Inspector:  # what a layer knows of its own signatures: tables that are replaced, not changed
        made = memo[id(value)] = Inspector(value._cls)
        vars(made).update({name: copy.copy(item) for name, item in vars(value).items()})
        return made
    if isinstance(value, nn.Module) and _is_usual(value):
        return _copied_module(value, memo)
    if module_of(getattr(kind, "__deepcopy__", None)).startswith("dqconvert."):
        made = memo[id(value)] = value.__deepcopy__(memo)
        return made
    modules = nn.Module.modules(value) if isinstance(value, nn.Module) else ()
    for tensor in tensors_in([value, *(vars(module) for module in modules)]):
        if _has_no_copy(tensor) and id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
    with unrepeated_names():
        return copy.deepcopy(value, memo)


def _has_no_copy(tensor: Tensor) -> bool:
    """True if ``copy.deepcopy`` refuses a tensor: it has a gradient history, or is a compressed sparse matrix."""
    return tensor.grad_fn is not None or tensor.layout not in (torch.strided, torch.sparse_coo)


def _is_usual(module: nn.Module) -> bool:
    """True if a module is copied as ``nn.Module`` is: made without arguments, and given a copy of its state."""
    kind: Any = type(module)
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getattr__ is nn.Module.__getattr__  # it may answer for `__deepcopy__`
        and "__deepcopy__" not in module.__dict__
        and kind not in copyreg.dispatch_table
        and not any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
    )


def _copied_module(module: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    kind: Any = type(module)
    made: nn.Module = kind.__new__(kind)
    memo[id(module)] = made
    state = module.__getstate__()
    _keep(state, memo)
    set_state(made, _copied(state, memo))
    return made


def set_state(module: nn.Module, state: Any) -> None:
    """Gives a new module the state of another, as unpickling does, see :func:`deepcopy` for names."""
    if type(module).__setstate__ is MessagePassing.__setstate__:  # generates code for the class, which has it by now
        nn.Module.__setstate__(module, state)
        return
    with unrepeated_names() if isinstance(module, Sequential) else nullcontext():
        module.__setstate__(state)


@contextmanager
def unrepeated_names() -> Iterator[None]:
    """Seeds :mod:`random` from the system inside; restores its state afterwards."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


# -- modes and caches ----------------------------------------------------------------------------------------------


def set_mode(model: Model, training: bool) -> Model:
    """Puts a model in a mode as its own ``train`` and ``eval`` do it, whatever those return, and returns the model.

    Example:
        >>> class Own(nn.Linear):
        ...     def train(self, mode: bool = True) -> None:
        ...         super().train(mode)
        >>> set_mode(Own(2, 2), False).training
        False
    """
    if training:
        model.train()
    else:
        model.eval()
    return model


def clear_caches(model: nn.Module) -> None:
    """Forgets what layers with ``cached=True`` computed of a graph."""
    for module in nn.Module.modules(model):
        for name, value in list(vars(module).items()):
            if name.startswith("_cached") and value is not None and not callable(value):
                setattr(module, name, None)

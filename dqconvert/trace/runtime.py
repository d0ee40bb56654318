"""The functions that a traced graph calls besides torch's and PyG's own.

They do nothing that the float model did not do: they mark, and return what Python would change in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dqconvert.ops import OPS, InPlace


def stage_output(value: Tensor, stage: str, edge_index: Any = None, sender: int = 0) -> Tensor:
    """Marks ``value`` as what a stage of a message-passing layer returned; the identity.

    Args:
        stage: A :class:`~dqconvert.trace.note.Stage`.
        edge_index: The connectivity that the layer passes messages over, for the edge-level stages.
        sender: The row of ``edge_index`` that holds the nodes which send the messages.
    """
    return value


def either(messages: Tensor, product: Tensor) -> Tensor:
    """Returns the first of two results of a layer over a sparse adjacency: that from single messages.

    Args:
        messages: Added up from messages, one by one.
        product: Computed as one sparse product. The last bits may differ.
    """
    return messages


def setitem(target: Tensor, index: Any, value: Any) -> Tensor:
    """Returns ``target`` after ``target[index] = value``; ``target`` itself stays as it is."""
    result = target.clone()
    result[index] = value
    return result


ON_COPIES = frozenset(
    f"{name}_" for op in OPS if op.in_place in (InPlace.ON_COPY, InPlace.CASTS) for name in (op.name, *op.aliases)
)
"""In-place methods that :func:`on_a_copy` calls: those that round to the type of the tensor, or draw random numbers."""


def on_a_copy(method: str, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Returns ``target`` after an in-place method; ``target`` itself stays as it is.

    Args:
        method: One of :data:`ON_COPIES`.
        target: What it is called on.

    Raises:
        ValueError: If it is none of them.
    """
    if method not in ON_COPIES:
        raise ValueError(f"{method!r} is none of the in-place methods that a graph may call on a copy")
    return getattr(target.clone(), method)(*args, **kwargs)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Computes ``elu(x, alpha, inplace=True)`` on a copy, whose gradient is computed from the result."""
    return functional.elu(x.clone(), alpha, inplace=True)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Computes ``celu(x, alpha, inplace=True)`` as :func:`elu` does."""
    return functional.celu(x.clone(), alpha, inplace=True)


def selu(x: Tensor) -> Tensor:
    """Computes ``selu(x, inplace=True)`` as :func:`elu` does."""
    return functional.selu(x.clone(), inplace=True)


def private(value: Tensor) -> Tensor:
    """Returns a copy that the next call may change."""
    return value.clone()


def after(value: Tensor, call: Any) -> Tensor:
    """Returns ``value`` as a call has left it.

    Args:
        value: From :func:`private`, what the call may have changed.
    """
    return value


def store(target: Tensor, value: Tensor) -> None:
    """Writes what the float model writes into an argument or a buffer."""
    with torch.no_grad():
        target.copy_(value)


class _KeepGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, now: Tensor) -> Tensor:
        return now.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def keep_gradient(before: Tensor, now: Tensor) -> Tensor:
    """Returns ``now`` with the gradient of ``before``: a tensor that was written under ``no_grad``.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> keep_gradient(x, torch.zeros(2)).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    with torch.enable_grad():
        result: Tensor = _KeepGradient.apply(before, now.detach())
    return result


def unchanged(*reads: Any) -> None:
    """Does nothing: its argument is the list of what must stay for a graph to hold (:mod:`.unchanged`).

    Args:
        reads: In a graph, one ``Reads``; in a file, its entries.
    """


def keep(owner: torch.nn.Module, name: str, value: Any) -> None:
    """Sets ``owner.name = value``, as the float model's forward does."""
    setattr(owner, name, value)


def by_mode(training: bool, when_training: Any, when_evaluating: Any) -> Any:
    """Returns the constant that the float model chose by ``self.training``."""
    return when_training if training else when_evaluating


def left_in(module: Any, steps: tuple[Any, ...], call: Any) -> Tensor:
    """Returns the tensor that a call of a module has left in an attribute of it, or in a dict there.

    Args:
        steps: The attribute's name; and the key.
    """
    value: Any = getattr(module, steps[0])
    return value if len(steps) == 1 else value[steps[1]]

"""The functions that a traced graph calls besides torch's and PyG's own.

They do nothing that the float model did not do: they mark, they check, they undo Python's return conventions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional

from dqconvert.errors import ArgumentError, GuardError, ModeError, TraceError
from dqconvert.ops import OPS, InPlace

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def stage_output(value: Tensor, stage: str, edge_index: Any = None, sender: int = 0) -> Tensor:
    """Marks ``value`` as what a stage of a message-passing layer returned; the identity.

    Args:
        value: Any tensor.
        stage: A :class:`~dqconvert.trace.note.Stage`.
        edge_index: The connectivity that the layer passes messages over, for the edge-level stages.
        sender: The row of ``edge_index`` that holds the nodes which send the messages.

    Example:
        >>> import torch
        >>> x = torch.ones(2)
        >>> stage_output(x, "message") is x
        True
    """
    return value


def either(messages: Tensor, product: Tensor) -> Tensor:
    """Returns the first of two results of a layer over a sparse adjacency: that from single messages.

    Args:
        messages: Added up from messages, one by one.
        product: Computed as one sparse product. The last bits may differ.

    Example:
        >>> import torch
        >>> either(torch.ones(1), torch.ones(1))
        tensor([1.])
    """
    return messages


def guard(left: Any, comparison: str, right: Any, expected: bool, source: str, attribute: str = "") -> None:
    """Checks that a Python comparison of sizes, or of an attribute, comes out as it did while tracing.

    Raises:
        GuardError: If it does not; the graph then holds the wrong branch.

    Example:
        >>> guard(3, "<", 5, True, "model.py:7")
        >>> guard(7, "<", 5, True, "model.py:7")
        Traceback (most recent call last):
            ...
        dqconvert.errors.GuardError: model.py:7: the model was traced where `7 < 5` was True, and now it is False: ...
    """
    if torch.compiler.is_compiling() and not attribute:
        return  # torch.compile guards sizes itself, and compiles again where they change
    holds = True if COMPARISONS[comparison](left, right) else False  # noqa: SIM210  (torch.compile's numbers have no bool)
    if holds is not expected:
        if attribute:
            what = "its condition" if torch.compiler.is_compiling() else f"`{left} {comparison} {right}`"
            raise GuardError(
                f"{source}: the forward branches on {attribute}: {what} was {expected} when the model was prepared, "
                f"and is {not expected} now. Set it back; or set it so on the float model and prepare that, and take "
                f"weights and ranges over with load_state_dict(module.state_dict())."
            )
        raise GuardError(
            f"{source}: the model was traced where `{left} {comparison} {right}` was {expected}, and now it is "
            f"{not expected}: the forward branches on a size. Prepare it with example_inputs like these."
        )


def pinned(value: Any, expected: Any, name: str) -> None:
    """Checks that a forward argument is what it was while tracing.

    Raises:
        ArgumentError: If it is not.

    Example:
        >>> pinned(None, None, "edge_weight")
        >>> pinned(2, None, "edge_weight")
        Traceback (most recent call last):
            ...
        dqconvert.errors.ArgumentError: argument 'edge_weight' was absent (None) when the model was prepared, and ...
    """
    if value is expected:
        return
    if isinstance(value, Proxy):
        raise TraceError(
            f"torch.fx cannot trace this module, which is a graph already: module.graph. (Tools that trace, to_hetero "
            f"and prepare_fx among them, take the float model; argument {name!r} came as a Proxy.)"
        )
    if expected is None:
        raise ArgumentError(
            f"argument {name!r} was absent (None) when the model was prepared, and its graph has no place for it: "
            f"prepare the model again with {name!r} among the example_inputs."
        )
    if isinstance(value, Tensor) or type(value) is not type(expected) or value != expected:
        raise ArgumentError(
            f"argument {name!r} was {expected!r} when the model was prepared and is {value!r} now: "
            f"prepare the model again with example_inputs that hold it."
        )


def present(value: Any, name: str) -> None:
    """Checks that an optional argument that was given while tracing is given.

    Raises:
        ArgumentError: If it is not; the graph holds the branch that uses it.

    Example:
        >>> present(1, "batch")
    """
    if value is None:
        raise ArgumentError(
            f"argument {name!r} was given when the model was prepared and is absent now, and its graph cannot do "
            f"without: prepare the model again without {name!r} among the example_inputs."
        )


def check_sorted(index: Tensor) -> None:
    """Checks that an aggregation's index is sorted, as some aggregations need it.

    Raises:
        GuardError: If it is not.

    Example:
        >>> import torch
        >>> check_sorted(torch.tensor([0, 0, 2]))
    """
    if not bool((index[1:] >= index[:-1]).all()):
        raise GuardError(
            "the aggregation needs an index sorted by target node; sort the edges, for instance with "
            "data.sort(sort_by_row=False)."
        )


def same_items(value: Any, expected: int, name: str) -> None:
    """Checks that an argument is a tuple or list of as many items as while tracing.

    Raises:
        ArgumentError: If it is not.

    Example:
        >>> same_items((1, 2), 2, "x")
    """
    if not isinstance(value, tuple | list) or len(value) != expected:
        now = f"{len(value)} items" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
        raise ArgumentError(
            f"argument {name!r} was a tuple or list of {expected} items when the model was prepared and is {now} "
            f"now: prepare the model again with example_inputs like these."
        )


def same_keys(value: dict[Any, Any], expected: tuple[Any, ...], name: str) -> None:
    """Checks that a dict argument has the keys that it had while tracing.

    Raises:
        ArgumentError: If it does not.

    Example:
        >>> same_keys({"paper": 1}, ("paper",), "x_dict")
    """
    if not isinstance(value, dict) or set(value) != set(expected):
        now = sorted(map(str, value)) if isinstance(value, dict) else f"is a {type(value).__name__}"
        raise ArgumentError(
            f"argument {name!r} had the keys {sorted(map(str, expected))} when the model was prepared and has "
            f"{now} now: prepare the model again with example_inputs like these."
        )


def still_absent(value: Any, absent: tuple[str, ...], name: str) -> None:
    """Checks that a data object, or a part of one, still lacks what the forward looked for in vain while tracing.

    Raises:
        ArgumentError: If it has it now.

    Example:
        >>> from torch_geometric.data import Data
        >>> still_absent(Data(), ("edge_attr",), "data")
    """
    held = vars(value)
    store = held.get("_store", held.get("_global_store", value))
    for attribute in absent:
        if store._mapping.get(attribute) is not None:
            raise ArgumentError(
                f"argument {name!r} had no {attribute!r} when the model was prepared and has one now, and its graph "
                f"has no place for it: prepare the model again with it among the example_inputs."
            )


def same_layout(value: Any, expected: str, name: str) -> None:
    """Checks that a tensor argument is stored as it was while tracing: dense, or a sparse matrix of the same layout.

    A layer reads a connectivity of each layout in another way. What was traced in compressed columns
    (``sparse_csc``) is computed in compressed rows and may be given so, too.

    Raises:
        ArgumentError: If it is not.

    Example:
        >>> import torch
        >>> same_layout(torch.eye(2), "strided", "adj_t")
        >>> same_layout(torch.eye(2).to_sparse_csr(), "strided", "adj_t")
        Traceback (most recent call last):
            ...
        dqconvert.errors.ArgumentError: argument 'adj_t' was a dense tensor when the model was prepared and is a ...
    """
    if not isinstance(value, Tensor):
        return
    layout = _LAYOUTS.get(value.layout)
    if layout == expected or (layout == "sparse_csr" and expected == "sparse_csc"):
        return
    before, now = (
        "a dense tensor" if form == "strided" else f"a sparse matrix (torch.{form})"
        for form in (expected, layout or str(value.layout))
    )
    raise ArgumentError(
        f"argument {name!r} was {before} when the model was prepared and is {now} {list(value.shape)} now: prepare the "
        f"model again with {name!r} in this form among the example_inputs, or pass it in the form of then."
    )


_LAYOUTS = {
    torch.strided: "strided",
    torch.sparse_coo: "sparse_coo",
    torch.sparse_csr: "sparse_csr",
    torch.sparse_csc: "sparse_csc",
    torch.sparse_bsr: "sparse_bsr",
    torch.sparse_bsc: "sparse_bsc",
}


def setitem(target: Tensor, index: Any, value: Any) -> Tensor:
    """Returns ``target`` after ``target[index] = value``; ``target`` itself stays as it is.

    Example:
        >>> import torch
        >>> setitem(torch.zeros(2), 0, 1.0)
        tensor([1., 0.])
    """
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
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> import torch
        >>> on_a_copy("fill_", torch.zeros(2), 3)
        tensor([3., 3.])
    """
    if method not in ON_COPIES:
        raise ValueError(f"{method!r} is none of the in-place methods that a graph may call on a copy")
    result: Tensor = getattr(target.clone(), method)(*args, **kwargs)
    return result


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Computes ``elu(x, alpha, inplace=True)`` on a copy, whose gradient is computed from the result.

    Example:
        >>> import torch
        >>> elu(torch.tensor([0.0, 2.0]))
        tensor([0., 2.])
    """
    return functional.elu(x.clone(), alpha, inplace=True)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Computes ``celu(x, alpha, inplace=True)`` as :func:`elu` does.

    Example:
        >>> import torch
        >>> celu(torch.tensor([0.0, 2.0]))
        tensor([0., 2.])
    """
    return functional.celu(x.clone(), alpha, inplace=True)


def selu(x: Tensor) -> Tensor:
    """Computes ``selu(x, inplace=True)`` as :func:`elu` does.

    Example:
        >>> import torch
        >>> selu(torch.tensor([0.0]))
        tensor([0.])
    """
    return functional.selu(x.clone(), inplace=True)


def private(value: Tensor) -> Tensor:
    """Returns a copy that the next call may change.

    Example:
        >>> import torch
        >>> x = torch.ones(2)
        >>> private(x) is x
        False
    """
    return value.clone()


def after(value: Tensor, call: Any) -> Tensor:
    """Returns ``value`` as a call has left it.

    Args:
        value: From :func:`private`, what the call may have changed.
        call: What the call returned.

    Example:
        >>> import torch
        >>> after(torch.ones(1), None)
        tensor([1.])
    """
    return value


def store(target: Tensor, value: Tensor) -> None:
    """Writes what the float model writes into an argument or a buffer.

    Example:
        >>> import torch
        >>> count = torch.zeros(1)
        >>> store(count, torch.ones(1))
        >>> count
        tensor([1.])
    """
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

    Example:
        >>> unchanged(("convs.0", (("attr", "residual"),), "value", True))
    """


def keep(owner: torch.nn.Module, name: str, value: Any) -> None:
    """Sets ``owner.name = value``, as the float model's forward does.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> keep(layer, "last", 3)
        >>> layer.last
        3
    """
    setattr(owner, name, value)


def by_mode(training: bool, when_training: Any, when_evaluating: Any) -> Any:
    """Returns the constant that the float model chose by ``self.training``.

    Example:
        >>> by_mode(True, 0.5, 0.0)
        0.5
    """
    return when_training if training else when_evaluating


def left_in(module: Any, steps: tuple[Any, ...], call: Any) -> Tensor:
    """Returns the tensor that a call of a module has left in an attribute of it, or in a dict there.

    Args:
        module: The module.
        steps: The attribute's name; and the key.
        call: What the call returned.

    Example:
        >>> import torch
        >>> layer = torch.nn.Identity()
        >>> layer.seen = {"loss": torch.ones(1)}
        >>> left_in(layer, ("seen", "loss"), layer(torch.ones(2)))
        tensor([1.])
    """
    value: Any = getattr(module, steps[0])
    return value if len(steps) == 1 else value[steps[1]]


def only_in(training: bool, expected: bool, refusal: str) -> None:
    """Checks that a graph runs in the mode that it was traced for, where the float model refuses the other.

    Raises:
        ModeError: If it does not.

    Example:
        >>> only_in(True, True, "ValueError: no edges")
        >>> only_in(False, True, "ValueError: no edges")
        Traceback (most recent call last):
            ...
        dqconvert.errors.ModeError: the model refuses such a call in evaluation mode: ValueError: no edges
    """
    if bool(training) is not expected:
        mode = "training" if training else "evaluation"
        raise ModeError(f"the model refuses such a call in {mode} mode: {refusal}")


ARGUMENT_CHECKS = (pinned, present, same_items, same_keys, same_layout, still_absent)
"""Checks of the form of a graph's arguments, which come before anything else."""

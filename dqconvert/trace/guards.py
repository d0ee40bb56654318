"""Guards: what a graph checks whenever it runs, that its arguments and modules are as they were while tracing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from dqconvert.errors import ArgumentError, GuardError, ModeError, TraceError

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


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
        # A guard of torch's, which compiles again where it fails; of sizes that depend on values, an assertion.
        torch._check(COMPARISONS[comparison if expected else _OPPOSITE[comparison]](left, right))
        return
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
    """
    if not isinstance(value, Tensor):
        return
    layout = _LAYOUTS.get(value.layout)  # which torch.compile can look up
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


def only_in(training: bool, expected: bool, refusal: str) -> None:
    """Checks that a graph runs in the mode that it was traced for, where the float model refuses the other.

    Raises:
        ModeError: If it does not.
    """
    if bool(training) is not expected:
        mode = "training" if training else "evaluation"
        raise ModeError(f"the model refuses such a call in {mode} mode: {refusal}")


_LAYOUTS = {
    getattr(torch, name): name
    for name in ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
}

ARGUMENT_CHECKS = (pinned, present, same_items, same_keys, same_layout, still_absent)
"""Checks of the form of a graph's arguments, which come before anything else."""

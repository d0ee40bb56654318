"""Memory-safe versions of functions of torch and PyG that do not check their row pointers and indices.

The originals trust that row pointers rise and that indices are below a size. That holds in any model, but not in any
file: a graph that was loaded from one calls these instead. The graph itself stays as the file has it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.index import index2ptr, ptr2index
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.utils import segment, softmax, sparse
from torch_geometric.utils._segment import segment_logsumexp

from dqconvert.errors import InputIndexError

Function = Callable[..., Any]


def rising(ptr: Tensor, last: int | None, name: str = "ptr") -> Tensor:
    """Checks that row pointers rise from 0 to ``last``, and returns them.

    Args:
        ptr: ``[rows + 1]``.
        last: How many there are of what they point to; ``None``: any number.

    Raises:
        InputIndexError: If they do not.

    Example:
        >>> rising(torch.tensor([0, 2, 2]), 3)
        Traceback (most recent call last):
            ...
        dqconvert.errors.InputIndexError: ptr must rise from 0 to 3
    """
    sound = ptr.dim() == 1 and ptr.numel() > 0 and not ptr.is_floating_point() and not ptr.is_complex()
    if not sound or bool(ptr[0] != 0) or (last is not None and bool(ptr[-1] != last)) or bool((ptr.diff() < 0).any()):
        raise InputIndexError(f"{name} must rise from 0{'' if last is None else f' to {last}'}")
    return ptr


def below(index: Tensor, size: int, name: str) -> Tensor:
    """Checks that indices are not negative and below a size, and returns them.

    Raises:
        InputIndexError: If one is not.

    Example:
        >>> below(torch.tensor([0, 3]), 3, "edge_index")
        Traceback (most recent call last):
            ...
        dqconvert.errors.InputIndexError: edge_index names 3, and there are 3: they are counted from 0
    """
    if index.dtype not in (torch.int64, torch.int32):
        raise InputIndexError(f"{name} must hold integers (torch.int64), got {index.dtype}")
    if index.numel() > 0:
        low, high = (int(end) for end in index.aminmax())
        if low < 0 or high >= size:
            raise InputIndexError(
                f"{name} names {low if low < 0 else high}, and there are {size}: they are counted from 0"
            )
    return index


def rows_of(ptr: Any, values: Tensor, dim: int = -2) -> Any:
    """Checks that row pointers divide the rows of values along a dimension, and returns them; ``None`` stays
    ``None``."""
    return None if ptr is None or torch.compiler.is_compiling() else rising(ptr, values.size(dim))


_ANY = 1 << 62
"""A size that no index reaches."""


def _repeat_interleave(given: dict[str, Any]) -> None:
    repeats = given.get("repeats")
    for value in (repeats, given["input"]) if given.get("output_size") is not None else ():
        if isinstance(value, Tensor) and (value is repeats or repeats is None) and bool((value < 0).any()):
            raise InputIndexError("repeats must not be negative")


def _sparse(given: dict[str, Any]) -> None:
    edge_index, size = given["edge_index"], given["size"]
    sizes = size if isinstance(size, list | tuple) else (size, size)
    for row, rows in zip(edge_index, sizes, strict=True):
        below(row, _ANY if rows is None else rows, "edge_index")


def _torch_repeat_interleave(input: Any, repeats: Any = None, dim: Any = None, *, output_size: Any = None) -> None:
    """Has the signature of ``torch.repeat_interleave``, which torch does not tell."""


def _guarded(function: Function, check: Callable[[dict[str, Any]], Any], like: Function | None = None) -> Function:
    """Returns a function that checks its arguments first."""
    signature = inspect.signature(like or function)
    makes_sparse = check is _sparse

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        check(bound.arguments)
        # A sparse matrix keeps the memory of its indices; whoever writes into that later would write into the matrix.
        return function(*args, **kwargs).clone() if makes_sparse else function(*args, **kwargs)

    return guarded


_MAKERS = (
    *(sparse.to_torch_coo_tensor, sparse.to_torch_csr_tensor, sparse.to_torch_csc_tensor),
    sparse.to_torch_sparse_tensor,
)

GUARDED: dict[Function, Function] = {
    index2ptr: _guarded(index2ptr, lambda g: below(g["index"], _ANY if g["size"] is None else g["size"], "index")),
    ptr2index: _guarded(ptr2index, lambda g: rising(g["ptr"], g["output_size"])),
    segment: _guarded(segment, lambda g: rising(g["ptr"], g["src"].size(0))),
    segment_logsumexp: _guarded(segment_logsumexp, lambda g: rising(g["ptr"], g["src"].size(g["dim"]))),
    softmax: _guarded(softmax, lambda g: rows_of(g["ptr"], g["src"], g["dim"])),
    torch.repeat_interleave: _guarded(torch.repeat_interleave, _repeat_interleave, _torch_repeat_interleave),
    **{function: _guarded(function, _sparse) for function in _MAKERS},
}
"""The checked version of each function."""

_AGGREGATION = inspect.signature(Aggregation.__call__)


def guarded(graph: Graph, root: nn.Module) -> Graph:
    """Returns a copy of a graph that checks row pointers and indices before it uses them.

    Args:
        root: Holds the modules that it calls.
    """
    graph = copy.deepcopy(graph)
    for node in list(graph.nodes):
        if node.op == "call_function":
            node.target = GUARDED.get(node.target, node.target)
        elif node.op == "call_method" and node.target == "repeat_interleave" and node.kwargs.get("output_size"):
            node.op, node.target = "call_function", GUARDED[torch.repeat_interleave]
        elif node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), Aggregation):
            _guard_aggregation(graph, node)
    return graph


def _guard_aggregation(graph: Graph, node: Node) -> None:
    """Has the row pointers of an aggregation looked at; of what its ``forward`` takes, they are the third."""
    bound = _AGGREGATION.bind(None, *node.args, **node.kwargs).arguments
    if isinstance(ptr := bound.get("ptr"), Node):
        with graph.inserting_before(node):
            known = graph.call_function(rows_of, (ptr, bound["x"], bound.get("dim", -2)))
        node.replace_input_with(ptr, known)

"""The walk over an evaluation graph that writes the file: each node by the writer of its operation."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.errors import ExportError, LoweringError
from dqconvert.lower.runtime import check_edges
from dqconvert.onnx.inputs import Given
from dqconvert.onnx.quantizers import quantize
from dqconvert.onnx.values import Wire
from dqconvert.onnx.writers import batches, graphs, layers, moving, picks, pointwise, products, recurrent, sparse
from dqconvert.onnx.writing import Writing
from dqconvert.ops import op_of
from dqconvert.quant import FakeQuantize
from dqconvert.quant.own_grid import OwnGrid, says_grid
from dqconvert.rewrite.connectivity import is_connectivity, is_input
from dqconvert.trace.adjacency import plain_connectivity
from dqconvert.trace.guards import guard
from dqconvert.trace.nested import map_items
from dqconvert.trace.note import note_of
from dqconvert.words import raised

WRITERS = (batches, graphs, layers, moving, picks, pointwise, products, recurrent, sparse)
"""The modules whose import registers the writers."""


def walk(w: Writing, graph: Graph, root: nn.Module) -> Any:
    """Writes every node of a graph.

    Args:
        graph: From :func:`dqconvert.lower.evaluation.evaluation_of`.
        root: The module that it is of.

    Returns:
        What the graph returns, with values of the file in the place of tensors.

    Raises:
        ExportError: If something has no form in ONNX.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    values: dict[Node, Any] = {}

    def known(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        return map_items(argument, known) if isinstance(argument, tuple | list | dict | slice) else argument

    for node in graph.nodes:
        w.name, w.note = node.name, note_of(node)
        w.file.scope = w.note.module
        args, kwargs = known(node.args), known(node.kwargs)
        if node.op == "output":
            return args[0]
        try:
            value = _written(w, node, root, modules, args, kwargs)
        except ExportError:
            raise
        except LoweringError as error:
            raise w.refusal(str(error)) from error
        except Exception as error:  # a writer was given arguments of a form that it does not know
            raise w.refusal(f"it has arguments that its writer does not know ({raised(error)})") from error
        if isinstance(value, Wire) and w.note.is_tensor and (value.dtype, value.ndim) != (w.note.dtype, w.note.ndim):
            raise w.refusal(
                f"it became {value.dtype} of {value.ndim} dimensions, and is {w.note.dtype} of {w.note.ndim}"
            )
        if isinstance(value, Wire) and is_input(node) and is_connectivity(node) and not _is_checked(node):
            w.require_places(value, f"{value.name} names a negative node")
        w.known(value, w.note)
        values[node] = value
    return None


def _is_checked(node: Node) -> bool:
    """True if the graph checks itself where edges end."""
    return check_edges in (node.target, *(user.target for user in node.users))


def _written(
    w: Writing,
    node: Node,
    root: nn.Module,
    modules: dict[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if node.op == "placeholder":
        return w.inputs.argument(str(node.target), w.note)
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(root)
        if isinstance(value, bool) and str(node.target).rpartition(".")[2] == "training":
            return False
        return value.detach() if isinstance(value, Tensor) else value
    if node.op == "call_module":
        return _layer(w, modules[str(node.target)], str(node.target), args, kwargs)
    if args and isinstance(args[0], Given):
        if node.target in (operator.getitem, getattr):
            return w.inputs.part(args[0], "item" if node.target is operator.getitem else "attr", args[1], w.note)
        if node.target is plain_connectivity:
            return args[0]
    if node.target is plain_connectivity:
        return args[0]
    op = op_of(node)
    if node.target is guard:
        return _guard(w, *args)
    return None if op.checks else w.call(op, node.target, args, kwargs)


def _guard(w: Writing, left: Any, comparison: str, right: Any, expected: bool, source: str, *_: Any) -> None:
    """Has the file fail where the forward would take another branch than while it was traced."""
    if not any(isinstance(side, Wire | Given) for side in (left, right)):
        guard(left, comparison, right, expected, source)
        return
    kind = {">": "Greater", ">=": "GreaterOrEqual", "<": "Less", "<=": "LessOrEqual"}.get(comparison, "Equal")
    holds = w.math(kind, left, right, dtype=torch.bool)
    w.file.require(
        holds if expected is not (comparison == "!=") else w.op("Not", holds), f"traced for one branch of {source}"
    )


def _layer(w: Writing, layer: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if says_grid(layer) and path.rpartition(".")[0].rstrip("_").endswith("quant"):
        layer = OwnGrid(layer, path)
    if not isinstance(layer, FakeQuantize):
        return w.layer(layer, args, kwargs)
    w.file.scope = path
    return quantize(w, layer, path, args[0], args[2] if len(args) > 2 else None)

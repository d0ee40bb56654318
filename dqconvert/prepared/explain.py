"""Errors in the user's words about a call that failed on the way: which argument was wrong, of which layer.

Nothing here runs unless a graph raised, so it costs nothing otherwise. The values that the graph had computed by then
are read off the frame of its generated code.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.errors import DQConvertError, InputIndexError, InputShapeError, InputTypeError
from dqconvert.ops import op_of
from dqconvert.prepared.arguments import MISSING, TensorInput, input_path, is_part, names_rows
from dqconvert.rewrite.connectivity import is_input
from dqconvert.trace.note import note_of
from dqconvert.words import listed

_INDEX = re.compile(
    r"out of bounds|out of range|not there|begins at node|names node|invalid 'dim_size'|indexing axis dim"
)
"""What torch, PyG and our own kernels say of an index that names what is not there."""

_NAMED = re.compile(
    r"names node (-?\d+), and there are (\d+)|index (-?\d+) is out of bounds for dimension \d+ with size (\d+)"
)
"""What our own and torch say, with which one, and how many there are."""

Failed = tuple[Node, Mapping[str, Any]]
"""The node that failed, and the values that were there by then, by the names of their nodes."""


def failed(error: BaseException, module: nn.Module, nodes: Mapping[str, Node]) -> Failed | None:
    """Finds the node whose computation raised an error.

    Args:
        module: The module that was called.
        nodes: The nodes of the graph that ran, by name.
    """
    found, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_filename.startswith("<eval_with_key>") and frame.f_locals.get("self") is module:
            line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
            found = line.split("=")[0].split(":")[0].strip(), frame.f_locals
        trace = trace.tb_next
    node = None if found is None else nodes.get(found[0])
    return None if found is None or node is None else (node, found[1])


def missing(given: Sequence[tuple[TensorInput, Any]]) -> InputTypeError | None:
    """Returns the error about the first argument that is no tensor of values, or none at all."""
    for one, value in given:
        if isinstance(value, Tensor):
            continue
        if value is None or value is MISSING:
            return InputTypeError(f"{one.name} is missing, and the model was prepared with it")
        if type(value).__module__ == "numpy":
            return InputTypeError(f"{one.name} must be a tensor, got a numpy array: give torch.from_numpy({one.name})")
        return InputTypeError(f"{one.name} must be a tensor, got one of type {type(value).__name__!r}")
    return None


def explain(error: Exception, place: Failed, given: Sequence[tuple[TensorInput, Any]]) -> DQConvertError | None:
    """Returns the error that says which argument was wrong; ``None`` if none is known to be.

    Args:
        error: The error that a node raised.
        place: The node, and the values by then.
        given: The tensors that the graph takes, and what the call gave for them.
    """
    node, values = place
    empty = _empty(error, [one.name for one, value in given if isinstance(value, Tensor) and value.size()[:1] == (0,)])
    if isinstance(error, IndexError | RuntimeError | ValueError) and _INDEX.search(str(error)):
        return _out_of_range(node, values, _NAMED.search(str(error))) or empty
    if isinstance(error, InputTypeError) and (sparse := _sparse(node, values)) is not None:
        return sparse
    tensors = [(one, value) for one, value in given if isinstance(value, Tensor)]
    layer = "" if op_of(node).name == "integer_propagate" else layer_of(node)  # sums take rows of any width
    width, layer = _widths(node, values), layer or "the model"
    if width is not None and width[0]:
        return _too_wide(width[0], width[1], layer, width[2])
    found = _width_of_an_argument(tensors, layer)
    if found is None and width is not None:
        found = _too_wide("its input", width[1], layer, width[2])
    return found or _lengths(tensors) or empty


def _empty(error: Exception, names: list[str]) -> InputShapeError | None:
    """Returns the error about arguments without rows, of which the model's own code may know what to make."""
    if not names or not isinstance(error, IndexError | RuntimeError | ValueError):
        return None
    said = str(error).partition("\n")[0]
    return InputShapeError(
        f"{listed(names)}: there are no rows, and the model was prepared on some; what it computed of them cannot be "
        f"computed of none ({said}). Leave out graphs without nodes."
    )


def layer_of(node: Node) -> str:
    """Returns the path of the layer that a node belongs to; ``""`` if it is the root's own."""
    weight = node.args[1] if op_of(node).name == "linear" and len(node.args) > 1 else None
    if isinstance(weight, Node) and note_of(weight).module:
        return note_of(weight).module  # a linear layer may be fused with what follows in another one
    if note_of(node).module:
        return note_of(node).module
    for one in (node, *node.all_input_nodes):
        head, found, _ = str(one.target).partition(".quant.")
        if found and one.op in ("get_attr", "call_module"):
            return head
    return ""


# -- indices -------------------------------------------------------------------------------------------------------


def _out_of_range(node: Node, values: Mapping[str, Any], said: re.Match[str] | None) -> InputIndexError | None:
    """Returns the error about an index that names what is not there, if that is what a node was given.

    Args:
        node: The node that failed.
        values: The values by then.
        said: What is not there, and how many there are, if the error that was raised says so.
    """
    held = [values[n.name] for n in node.all_input_nodes if n.name in values]
    sizes = [v for v in held if isinstance(v, int) and not isinstance(v, bool)]
    sizes += [
        v.size(0)
        for v in held
        if isinstance(v, Tensor) and v.dim() > 0 and (v.is_floating_point() or v.dtype is torch.bool)
    ]
    for source in node.all_input_nodes:
        value = values.get(source.name)
        origin = _index_behind(source)
        if origin is None or not isinstance(value, Tensor) or value.is_floating_point() or value.numel() == 0:
            continue
        name, low, high = input_path(origin), int(value.min()), int(value.max())
        one = "group" if note_of(origin).ndim == 1 and "pool" in op_of(node).name else "node"
        for size in sizes if said is None else [int(said[2] or said[4])]:
            if low < 0 and note_of(origin).ndim == 1:
                return InputIndexError(f"{name} names group {low}: groups are counted from 0")
            if low < 0 or high >= size:
                wrong = said[1] if said and said[1] else low if low < 0 else high  # torch names one of several
                return InputIndexError(
                    f"{name} names {one} {wrong}, and there are {size} {one}s: they are counted from 0"
                )
    return None


def _index_behind(node: Node) -> Node | None:
    """Returns the index among the inputs that a value of integers was taken from."""
    pending, seen = [node], set[Node]()
    while pending:
        one = pending.pop(0)
        if one in seen:
            continue
        seen.add(one)
        if is_input(one) and note_of(one).is_tensor and names_rows(one):
            return one
        pending += one.all_input_nodes
    return None


# -- features ------------------------------------------------------------------------------------------------------


def _sparse(node: Node, values: Mapping[str, Any]) -> InputTypeError | None:
    """Returns the error about a sparse matrix that a quantizer was to round."""
    for source in node.all_input_nodes:
        value = values.get(source.name)
        if isinstance(value, Tensor) and value.layout is not torch.strided and (name := _name_of_rows(source)):
            return InputTypeError(
                f"{name} is a {value.layout} tensor, and {layer_of(node) or 'the model'} rounds each of its values, "
                f"zeros too: give {name}.to_dense()"
            )
    return None


def _widths(node: Node, values: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """Returns of a linear layer that failed for the width of its rows: their name, their width, the layer's."""
    if op_of(node).name not in ("linear", "integer_linear") or len(node.args) < 2:
        return None
    x, weight = map_arg(node.args[:2], lambda n: values.get(n.name))
    depth = node.kwargs.get("depth")
    if op_of(node).name == "linear" and isinstance(weight, Tensor) and weight.dim() == 2:
        depth = weight.size(1)
    if not isinstance(x, Tensor) or not isinstance(depth, int) or x.dim() == 0 or x.size(-1) == depth:
        return None
    return _name_of_rows(node.args[0]), x.size(-1), depth


def _name_of_rows(value: Any) -> str:
    """Returns the user's name for rows: an argument's, if they are its rows as they came; else ``""``."""
    while isinstance(value, Node) and not is_part(value):
        if not value.args or not (op_of(value).keeps_columns or ".quant." in str(value.target)):
            return ""
        value = value.args[0]
    return input_path(value) if isinstance(value, Node) else ""


def _too_wide(name: str, given: int, layer: str, taken: int) -> InputShapeError:
    columns = f"{given} column" if given == 1 else f"{given} columns"
    return InputShapeError(f"{name} has {columns}, {layer} takes {taken}")


def _width_of_an_argument(given: Sequence[tuple[TensorInput, Tensor]], layer: str) -> InputShapeError | None:
    """Returns the error about an argument that has another width than while tracing."""
    for one, value in given:
        sizes = one.note.sizes
        if one.index or value.dim() != one.note.ndim or value.dim() < 2 or len({size[-1] for size in sizes}) > 1:
            continue
        if value.size(-1) != sizes[0][-1]:
            return _too_wide(one.name, value.size(-1), layer, sizes[0][-1])
    return None


def _lengths(given: Sequence[tuple[TensorInput, Tensor]]) -> InputShapeError | None:
    """Returns the error about an argument that has more, or fewer, rows than another one that it has as many of."""
    first: dict[tuple[int, ...], tuple[str, int]] = {}
    # What others are measured by comes first: the list of edges, then features.
    for one, value in sorted(given, key=lambda pair: -pair[0].note.ndim * pair[0].index - (not pair[0].index)):
        if value.dim() != one.note.ndim or not one.note.sizes or one.note.ndim == 0:
            continue
        along = one.note.ndim - 1 if one.index else 0
        symbol = tuple(size[along] for size in one.note.sizes)
        if len(set(symbol)) < 2:  # it follows nothing
            continue
        size = value.size(along)
        name, expected = first.setdefault(symbol, (f"{'edges' if one.index else 'rows'} of {one.name}", size))
        if size != expected:
            return InputShapeError(f"{one.name} has {size} entries, and there are {expected} {name}: one for each")
    return None

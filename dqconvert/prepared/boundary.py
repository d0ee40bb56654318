"""What a forward is given, before and after: what it cannot use is an error in the user's words.

Before: types and shapes that the graph was not made for. After, if something failed on the way: which argument was
wrong, of which layer. Nothing is looked at there unless something failed, so it costs nothing.
"""

from __future__ import annotations

import functools
import linecache
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from dqconvert.errors import (
    CheckpointError,
    DQConvertError,
    GuardError,
    InputError,
    InputIndexError,
    InputShapeError,
    InputTypeError,
)
from dqconvert.ops import op_of
from dqconvert.rewrite.spaces import input_name, is_connectivity, is_input
from dqconvert.trace.globals import place_name, read_global
from dqconvert.trace.note import Note, note_of

_MISSING = object()

_INDEX = re.compile(
    r"out of bounds|out of range|not there|begins at node|names node|invalid 'dim_size'|indexing axis dim"
)
"""What torch, PyG and our own kernels say of an index that names what is not there."""


@dataclass(frozen=True)
class _Input:
    """A tensor among what a forward is given.

    Attributes:
        name: What the user calls it.
        argument: Which argument it is, or is a part of, by its place; -1: none, it is read from a global.
        keyword: That argument's name.
        keys: The way from there to it: what is taken as an item, and what as an attribute.
        note: What it was while tracing.
        index: Whether it says which rows belong together.
    """

    name: str
    argument: int
    keyword: str
    keys: tuple[tuple[bool, Any], ...]
    note: Note
    index: bool

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a call gives for it."""
        if self.argument < 0:
            return self._of_global()
        value = args[self.argument] if self.argument < len(args) else kwargs.get(self.keyword, _MISSING)
        for item, key in self.keys:
            if value is None or value is _MISSING:
                return _MISSING
            try:
                value = value[key] if item else getattr(value, key)
            except (LookupError, AttributeError, TypeError):  # the graph will say that it is not there
                return _MISSING
        return value

    def _of_global(self) -> Any:
        try:
            return read_global(*self.keys[0][1])
        except GuardError:  # which the graph will raise
            return _MISSING


class Boundary:
    """The edge of a graph.

    Args:
        graph: The graph whose nodes know where they come from.
        runs: What is made of it, and runs.
        squeezes: Whether the one column of what was a vector while tracing is left out: weights of edges, say.

    Attributes:
        has_run: Whether the graph has computed something: then it is sound, and what fails later is for the inputs.
    """

    def __init__(self, graph: Graph, runs: Graph, squeezes: bool = False) -> None:
        self.inputs = tuple(_inputs(graph))
        self.nodes = {node.name: node for node in runs.nodes}
        self._squeezes = squeezes
        self.has_run = False

    # -- before --------------------------------------------------------------------------------------------------------

    def admit(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, as the graph takes them.

        Raises:
            InputTypeError: For features of another type than the model's, or an index that holds no integers.
            InputIndexError: For an index of another shape.
            InputShapeError: For features of fewer or more dimensions.
        """
        for given in self.inputs:
            value = given.of(args, kwargs)
            if not isinstance(value, Tensor):
                continue
            if value.is_meta and not all(t.is_meta for t in (*module.parameters(), *module.buffers())):
                raise InputTypeError(f"{given.name} has no values: it lies on the meta device")
            if value.layout is not torch.strided:
                raise InputTypeError(
                    f"{given.name} is a {value.layout} tensor, and the model was prepared for a dense one: give "
                    f"{given.name}.to_dense(), or prepare it with such an input"
                )
            if given.index:
                new = check_index(value, given.name) if value.dtype is not torch.int64 else value
                check_shape(value, given.name, given.note.ndim)
            else:
                new = value
                if value.dtype is not given.note.dtype:
                    _check_type(module, value, given)
                if value.dim() != given.note.ndim:
                    new = self._reshaped(value, given)
            if new is not value and not given.keys:
                if given.argument < len(args):
                    args = (*args[: given.argument], new, *args[given.argument + 1 :])
                else:
                    kwargs = {**kwargs, given.keyword: new}
        return args, kwargs

    def _reshaped(self, value: Tensor, given: _Input) -> Tensor:
        one_more = given.note.ndim == 1 and value.dim() == 2 and value.size(1) == 1
        if not one_more:
            raise InputShapeError(
                f"{given.name} has shape {tuple(value.shape)}, of {_counted(value.dim(), 'dimension')}, and the model "
                f"was prepared for {given.note.ndim}"
            )
        return value.squeeze(1) if self._squeezes else value

    # -- after ---------------------------------------------------------------------------------------------------------

    def explain(
        self, error: Exception, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> DQConvertError | None:
        """The error that says which argument was wrong; ``None`` if none is known to be, or the error says it.

        Args:
            error: What was raised on the way.
            module: What was called.
            args: How. kwargs: Likewise.
        """
        if isinstance(error, DQConvertError) and not isinstance(error, InputError):
            return None
        given = [(one, one.of(args, kwargs)) for one in self.inputs]
        for one, value in given:
            if (unusable := _no_tensor(one.name, value)) is not None:
                return unusable
        place = _failed(error, module)
        node = self.nodes.get(place[0]) if place is not None else None
        if node is None or place is None:
            return None
        if isinstance(error, IndexError | RuntimeError | ValueError) and _INDEX.search(str(error)):
            return self._out_of_range(node, place[1])
        if isinstance(error, InputTypeError) and (sparse := _sparse(node, place[1])) is not None:
            return sparse
        tensors = [(one, value) for one, value in given if isinstance(value, Tensor)]
        width = _widths(node, place[1])
        layer = layer_of(node) or "the model"
        if width is not None and width[0]:
            return _too_wide(width[0], width[1], layer, width[2])
        found = _narrow(tensors, layer)
        if found is None and width is not None:
            found = _too_wide("its input", width[1], layer, width[2])
        return found or _lengths(tensors)

    def unsound(self, error: Exception, module: nn.Module) -> CheckpointError | None:
        """The error about a graph from a file that never computed anything, and does not now; ``None`` for others."""
        if self.has_run or not getattr(module, "from_file", False) or isinstance(error, DQConvertError | MemoryError):
            return None
        place = _failed(error, module)
        node = self.nodes.get(place[0]) if place is not None else None
        where = "" if node is None else f"{note_of(node).source or 'a line without a source'}, {node.name}: "
        return CheckpointError(
            f"{where}the graph in the file does not compute what it was loaded for ({type(error).__name__}: {error}). "
            f"If the model takes these inputs, the file was changed after it was saved: save the module again."
        )

    def _out_of_range(self, node: Node, values: Mapping[str, Any]) -> DQConvertError | None:
        """The error about an index that names what is not there, if that is what a failed node was given."""
        held = [values[n.name] for n in node.all_input_nodes if n.name in values]
        sizes = [v for v in held if isinstance(v, int) and not isinstance(v, bool)]
        sizes += [
            v.size(0)
            for v in held
            if isinstance(v, Tensor) and v.dim() > 0 and (v.is_floating_point() or v.dtype is torch.bool)
        ]
        for source in node.all_input_nodes:
            value = values.get(source.name)
            origin = _connectivity(source)
            if origin is None or not isinstance(value, Tensor) or value.is_floating_point() or value.numel() == 0:
                continue
            low, high = int(value.min()), int(value.max())
            for size in sizes:
                if low < 0 and note_of(origin).ndim == 1:
                    return InputIndexError(f"{_input_path(origin)} names group {low}: groups are counted from 0")
                if low < 0 or high >= size:
                    return nowhere(_input_path(origin), low if low < 0 else high, size)
        return None


def bounded(forward: Callable[..., Any], boundary: Boundary) -> Callable[..., Any]:
    """A forward within its boundary.

    Args:
        forward: It.
        boundary: That of its graph.
    """

    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        args, kwargs = boundary.admit(self, args, kwargs)
        try:
            result = forward(self, *args, **kwargs)
        except Exception as error:
            better = boundary.explain(error, self, args, kwargs) or boundary.unsound(error, self)
            if better is None or better is error:
                raise
            raise better from error
        boundary.has_run = True
        return result

    return run


def nowhere(name: str, wrong: int, size: int) -> InputIndexError:
    """The error about an index that names a node which is not there."""
    return InputIndexError(f"{name} names node {wrong}, and there are {size} nodes: they are counted from 0")


def check_index(index: Tensor, name: str) -> Tensor:
    """An index as int64.

    Raises:
        InputTypeError: If it holds no integers, or narrow ones.

    Example:
        >>> check_index(torch.zeros(2, 3), "edge_index")
        Traceback (most recent call last):
            ...
        dqconvert.errors.InputTypeError: edge_index must hold integers (torch.int64), got torch.float32
    """
    if index.dtype not in (torch.int64, torch.int32):
        raise InputTypeError(f"{name} must hold integers (torch.int64), got {index.dtype}")
    return index.long()


def check_shape(index: Tensor, name: str, ndim: int) -> None:
    """Raises `InputIndexError` unless an index has the shape of one: the two ends of each edge, or one entry a row."""
    if ndim == 2 and (index.dim() != 2 or index.size(0) != 2):
        raise InputIndexError(f"{name} must have shape [2, num_edges], got {tuple(index.shape)}")
    if index.dim() != ndim:
        raise InputIndexError(f"{name} must be a vector, an entry for each row, got shape {tuple(index.shape)}")


def _check_type(module: nn.Module, value: Tensor, given: _Input) -> None:
    """Raises unless a module computes in the type of what it is given."""
    if not value.is_floating_point():
        raise InputTypeError(
            f"{given.name} must hold floating-point values, got {value.dtype}: give {given.name}.float()"
        )
    if torch.is_autocast_enabled(value.device.type):
        return
    # Parameters may have been cast since the model was traced; one without any computes as it was traced.
    held: set[torch.dtype | None] = {t.dtype for t in module.parameters() if t.is_floating_point()} or {
        given.note.dtype
    }
    if value.dtype not in held:
        wanted = given.note.dtype if given.note.dtype in held else min(held, key=str)
        raise InputTypeError(
            f"{given.name} is {value.dtype}, and the model computes in {wanted}: give {given.name}.to({wanted})"
        )


def _no_tensor(name: str, value: Any) -> InputTypeError | None:
    """The error about an argument that is no tensor of values, or none at all."""
    if isinstance(value, Tensor):
        return None
    if value is None or value is _MISSING:
        return InputTypeError(f"{name} is missing, and the model was prepared with it")
    if type(value).__module__ == "numpy":
        return InputTypeError(f"{name} must be a tensor, got a numpy array: give torch.from_numpy({name})")
    return InputTypeError(f"{name} must be a tensor, got one of type {type(value).__name__!r}")


# -- what is known of a graph ------------------------------------------------------------------------------------------


def _inputs(graph: Graph) -> Iterator[_Input]:
    places = {node: place for place, node in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    starred = next((place for node, place in places.items() if str(node.target).startswith("*")), len(places))
    places |= {node: -1 for node in graph.nodes if node.target is read_global}
    for node in graph.nodes:
        note = note_of(node)
        if not is_input(node) or not note.is_tensor or note.sparse:
            continue
        keys: list[tuple[bool, Any]] = []
        holder: Any = node
        while isinstance(holder, Node) and holder.op != "placeholder":
            keys.append((holder.target is operator.getitem, holder.args[1] if len(holder.args) > 1 else None))
            holder = holder.args[0] if holder.target in (operator.getitem, getattr) else None
        if node.target is read_global:
            keys, holder = [(False, node.args)], node
        if holder not in places or places[holder] >= starred or any(isinstance(key, Node) for _, key in keys):
            continue
        name = input_name(node)
        index = _names_rows(node, name)
        if index or note.is_float:
            yield _Input(_input_path(node), places[holder], str(holder.target), tuple(reversed(keys)), note, index)


def _names_rows(node: Node, name: str) -> bool:
    """Whether an input is an index of rows: the ends of edges, or the graph that each row belongs to."""
    if note_of(node).is_float:
        return False
    edges = is_connectivity(node) and ("edge" in _input_path(node) or "index" in name)
    return edges or (note_of(node).ndim == 1 and (name in ("batch", "ptr") or name.endswith("_batch")))


def _input_path(node: Node) -> str:
    """What a user calls an input: ``edge_index``, ``data.edge_index``, ``x_dict['paper']``."""
    if node.op == "placeholder":
        return str(node.target).lstrip("*")
    if node.target is read_global:
        return place_name(*node.args[1:3])  # type: ignore[arg-type]
    holder, key = node.args[0], node.args[1] if len(node.args) > 1 else ""
    if not isinstance(holder, Node):
        return str(key)
    inner = _input_path(holder)
    return f"{inner}[{key!r}]" if node.target is operator.getitem else f"{inner}.{key}"


def _is_part(node: Node) -> bool:
    """Whether a node is a forward argument, or taken out of one by a name."""
    while node.target in (operator.getitem, getattr) and isinstance(node.args[0], Node):
        if isinstance(node.args[1], Node):
            return False
        node = node.args[0]
    return node.op == "placeholder" or node.target is read_global


def _connectivity(node: Node) -> Node | None:
    """The index among the inputs that a value of integers was taken from."""
    pending, seen = [node], set[Node]()
    while pending:
        one = pending.pop(0)
        if one in seen:
            continue
        seen.add(one)
        if is_input(one) and note_of(one).is_tensor and _names_rows(one, input_name(one)):
            return one
        pending += one.all_input_nodes
    return None


def layer_of(node: Node) -> str:
    """The path of the layer that a node is of; ``""`` if it is the root's own."""
    if note_of(node).module:
        return note_of(node).module
    for one in (node, *node.all_input_nodes):
        head, found, _ = str(one.target).partition(".quant.")
        if found and one.op in ("get_attr", "call_module"):
            return head
    return ""


# -- what is known of a call that failed -------------------------------------------------------------------------------


def _failed(error: BaseException, module: nn.Module) -> tuple[str, Mapping[str, Any]] | None:
    """The name of the node that failed, and the values that were there by then, by the names of their nodes."""
    found, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_filename.startswith("<eval_with_key>") and frame.f_locals.get("self") is module:
            line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
            found = line.split("=")[0].split(":")[0].strip(), frame.f_locals
        trace = trace.tb_next
    return found


def _widths(node: Node, values: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """Of a linear layer that failed for the width of its rows: what users call these, how wide they are, should be."""
    if op_of(node).name not in ("linear", "integer_linear") or len(node.args) < 2:
        return None
    x, weight = map_arg(node.args[:2], lambda n: values.get(n.name))
    depth = node.kwargs.get("depth")
    if op_of(node).name == "linear" and isinstance(weight, Tensor) and weight.dim() == 2:
        depth = weight.size(1)
    if not isinstance(x, Tensor) or not isinstance(depth, int) or x.dim() == 0 or x.size(-1) == depth:
        return None
    return _called(node.args[0]), x.size(-1), depth


def _sparse(node: Node, values: Mapping[str, Any]) -> InputTypeError | None:
    """The error about a sparse matrix that a failed node was to round."""
    for source in node.all_input_nodes:
        value = values.get(source.name)
        if isinstance(value, Tensor) and value.layout is not torch.strided and (name := _called(source)):
            return InputTypeError(
                f"{name} is a {value.layout} tensor, and {layer_of(node) or 'the model'} rounds each of its values, "
                f"zeros too: give {name}.to_dense()"
            )
    return None


def _called(value: Any) -> str:
    """What a user calls rows: an argument's name, if they are its rows as they came; else ``""``."""
    while isinstance(value, Node) and not _is_part(value):
        if not value.args or not (op_of(value).keeps_columns or ".quant." in str(value.target)):
            return ""
        value = value.args[0]
    return _input_path(value) if isinstance(value, Node) else ""


def _too_wide(name: str, given: int, layer: str, taken: int) -> InputShapeError:
    return InputShapeError(f"{name} has {_counted(given, 'column')}, {layer} takes {taken}")


def _narrow(given: list[tuple[_Input, Tensor]], layer: str) -> InputShapeError | None:
    """The error about an argument that has another width than while tracing."""
    for one, value in given:
        sizes = one.note.sizes
        if one.index or value.dim() != one.note.ndim or value.dim() < 2 or len({size[-1] for size in sizes}) > 1:
            continue
        if value.size(-1) != sizes[0][-1]:
            return _too_wide(one.name, value.size(-1), layer, sizes[0][-1])
    return None


def _lengths(given: list[tuple[_Input, Tensor]]) -> InputShapeError | None:
    """The error about an argument that has more, or fewer, rows than another one that it has as many of."""
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


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


__all__ = ["Boundary", "check_index", "check_shape", "layer_of", "nowhere"]

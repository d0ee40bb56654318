"""The rules for operations that compute a row from the same row of others, numbers, or parts of tuples."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn
from torch.fx import Node
from torch_geometric.nn.norm import BatchNorm

from dqconvert.lower.movers import keeps_rows
from dqconvert.lower.staged.kinds import (
    OF_ROWS,
    Count,
    End,
    Ends,
    Form,
    Kind,
    Listed,
    Made,
    Nodes,
    Sorted,
    Stacked,
    Whole,
)
from dqconvert.lower.staged.rows import Rows, from_front
from dqconvert.ops import Moves, Op, argument, op_of
from dqconvert.rewrite.derive import dimensions
from dqconvert.rewrite.norms import scale_rows
from dqconvert.trace.note import note_of

_ALONG = {"sum", "mean", "amax", "amin", "prod", "max", "min", "softmax", "log_softmax", "logsumexp"}
"""Operations along the dimensions that they name."""

_LAYERS = (nn.LayerNorm, nn.BatchNorm1d, BatchNorm)
"""Layers that compute row by row in evaluation."""

_MOST_PARTS = 64
"""Parts that a value may be split into."""


def numbering(known: Rows, node: Node) -> Kind | None:
    """Reads numbers off values, and parts off tuples."""
    op, source = op_of(node), node.args[0] if node.args else None
    kind = known.kind(source)
    if node.target is operator.getitem and isinstance(node.args[1], int):
        number = node.args[1]
        if isinstance(kind, tuple):
            return kind[number]
        if isinstance(kind, Ends):
            return End(kind.listing, number % 2)
        if isinstance(kind, Made):
            return known.of_whole(node)
    if op.name == "unbind" and isinstance(kind, Ends):
        return End(kind.listing, 0), End(kind.listing, 1)
    if op.name == "size" and len(node.args) == 2 and isinstance(node.args[1], int):
        return _size(kind, from_front(source, node.args[1]))
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return Whole() if source in known.given else Form()
    kinds = [known.kinds[one] for one in node.all_input_nodes]
    if op.name in ("min", "max") and kinds and all(isinstance(one, Count) for one in kinds) and len(set(kinds)) == 1:
        return kinds[0]
    if all(isinstance(one, Whole | Count | Form) for one in kinds):
        if any(isinstance(one, Count) for one in kinds) and note_of(node).is_tensor:
            return known.of_whole(node)  # a row for each node, say
        return Form() if any(isinstance(one, Form) for one in kinds) else Whole()
    return None


def _size(kind: Kind, dim: int | None) -> Kind | None:
    if isinstance(kind, Whole) or dim is None:
        return kind if isinstance(kind, Whole) else None
    if isinstance(kind, Ends | End):
        return Count(kind.listing) if isinstance(kind, End) or dim == 1 else Whole()
    if isinstance(kind, OF_ROWS) and dim != 0:
        return Form()
    if isinstance(kind, Nodes):
        return Count(kind.space)
    if isinstance(kind, Listed):
        return Count(kind.listing)
    return Count(kind.order.listing) if isinstance(kind, Sorted) else None


def going_row_by_row(known: Rows, node: Node) -> Kind | None:
    """Computes each row from the same row of others."""
    layer = known.layer(node)
    op, sources = op_of(node, layer), node.all_input_nodes
    rows = {kind for source in sources if (kind := known.rows(source)) is not None}
    rest = [known.kinds[source] for source in sources if known.rows(source) is None]
    if len(rows) != 1 or not all(isinstance(kind, Whole | Form | Count) for kind in rest):
        return None
    if op.pointwise and not op.row_by_row and not _aligned(known, node):
        return None
    count, columns = rows.pop(), _beside_rows(known, node, op)
    dim = argument(node, "start_dim" if op.name == "flatten" else "dim", 0)
    behind = op.name in ("unsqueeze", "flatten", "squeeze", "select") and isinstance(dim, int) and dim > 0
    plain = op.pointwise or op.row_by_row > 0 or op.casts or op.drops or op.identity or behind or keeps_rows(node)
    reshaped = op.moves is Moves.RESHAPE and _as_many(known, node, count)
    if isinstance(count, Stacked):
        return _unstacked(node, op, count)
    if op.moves is Moves.STACK and argument(node, "dim", 0) == 0:
        return Stacked(count)
    scaled = node.target is scale_rows and node.args[2:] in ((), (0,)) and not node.kwargs
    if plain or reshaped or columns or scaled or _is_all(known, node, count) or type(layer) in _LAYERS:
        several = op.moves is Moves.SPLIT or (op.name in ("max", "min") and not op.pointwise)
        return (count,) * _MOST_PARTS if several else count
    return None


def _is_all(known: Rows, node: Node, rows: Kind) -> bool:
    """True if a value is cut to as many rows as it has: ``x[:x.size(0)]``."""
    cut = node.args[1] if op_of(node).moves is Moves.ITEM and len(node.args) > 1 else None
    whole = isinstance(cut, slice) and cut.start is None and cut.step is None and isinstance(rows, Nodes)
    return whole and known.kind(cut.stop) == Count(rows.space)  # type: ignore[union-attr]


def _unstacked(node: Node, op: Op, kind: Stacked) -> Kind | None:
    """Reduces values that lie one behind the other to one."""
    if op.name not in _ALONG or _dim(node, op) != 0:
        return None
    return (kind.of, kind.of) if op.name in ("max", "min") else kind.of


def _dim(node: Node, op: Op) -> Any:
    """Returns along which dimensions an operation works."""
    by_position = node.args[1] if not op.parameters and len(node.args) > 1 else None
    return argument(node, "dim", 0 if op.joins or op.moves is Moves.SPLIT else by_position)


def _aligned(known: Rows, node: Node) -> bool:
    """True if operands are broadcast along the dimensions of columns alone."""
    ndim = {note_of(source).ndim for source in node.all_input_nodes if known.rows(source) is not None}
    constants = [note_of(one) for one in node.all_input_nodes if isinstance(known.kinds[one], Whole)]
    lines = all(note.ndim < max(ndim) or note.sizes[0][0] == 1 for note in constants if note.ndim > 0)
    return len(ndim) == 1 and lines


def _beside_rows(known: Rows, node: Node, op: Op) -> bool:
    """True if an operation works along other dimensions than that of the rows."""
    ndim = max((note_of(source).ndim for source in node.all_input_nodes), default=0)
    dims: Any = None
    if op.name in _ALONG or op.joins or op.moves in (Moves.SPLIT, Moves.PICK):
        dims = _dim(node, op)
    elif op.moves is Moves.PERMUTE and op.name == "transpose":
        dims = node.args[1:3]
    ndim += op.moves is Moves.STACK
    found = dims if isinstance(dims, tuple | list) else [dims]
    return all(isinstance(dim, int) and ndim > 0 and dim % ndim != 0 for dim in found)


def _as_many(known: Rows, node: Node, rows: Kind) -> bool:
    """True if a value is given a shape that begins with the number of its rows."""
    shape = node.args[1:] if len(node.args) != 2 or not isinstance(node.args[1], tuple | list) else node.args[1]
    sizes = dimensions(note_of(node.args[0])), dimensions(note_of(node))  # type: ignore[arg-type]
    first = known.kind(shape[0]) if shape else None
    of = rows.space if isinstance(rows, Nodes) else rows.listing if isinstance(rows, Listed) else None
    named = isinstance(first, Count) and first.of == of
    return named and all(sizes) and sizes[0][0] == sizes[1][0]


def following_from_edges(known: Rows, node: Node) -> Kind | None:
    """Computes what follows from the edges, and what is given for each, as a whole."""
    if not op_of(node, known.layer(node)).known or not all(_there(known, one) for one in node.all_input_nodes):
        return None
    return known.of_whole(node)


def _there(known: Rows, node: Node) -> bool:
    """True if a value can be computed for the whole graph; then it is given."""
    kind = known.kinds[node]
    if node in known.given or isinstance(kind, Whole | Made | Count | Ends | End):
        return True
    if not isinstance(kind, Listed) or not all(_there(known, one) for one in node.all_input_nodes):
        return False
    known.given.add(node)
    return True

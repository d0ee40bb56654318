"""Identities, moves and concatenations: they happen to codes as to values."""

from __future__ import annotations

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.lower.lowering import Lowering
from dqconvert.lower.movers import keeps_rows, moves, moves_rows
from dqconvert.lower.values import Codes, GroupCodes, GroupGrid, Joined, Literal, Tabulated, Value, tabular
from dqconvert.ops import Moves, argument, op_of, op_of_layer
from dqconvert.trace.names import module_of
from dqconvert.trace.note import note_of
from dqconvert.trace.runtime import keep_gradient, private


def lower_identity(lowering: Lowering, node: Node) -> Value | None:
    """Returns the argument of what changes nothing in evaluation."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    op = op_of(node)
    if op.drops:
        off = lowering.value(argument(node, "training", True))
        return lowering.values[source] if isinstance(off, Literal) and not off.value else None
    if node.target is keep_gradient:
        return lowering.values[node.all_input_nodes[-1]]  # behind the value whose gradient it keeps
    layer = op_of_layer(lowering.module(node), subclasses=True)
    same = layer.drops or layer.identity or op.identity or op.moves is Moves.COPY or _for_layers(lowering, node)
    return lowering.values[source] if same else None


def _for_layers(lowering: Lowering, node: Node) -> bool:
    """True if a copy is for torch's own layers alone, which change nothing in place here."""
    modules = [lowering.module(user) for user in node.users]
    return node.target is private and all(module_of(type(module)).startswith("torch.nn.") for module in modules)


def lower_move(lowering: Lowering, node: Node) -> Value | None:
    """Moves the codes as the node moves the values; a table stays where its columns do."""
    if not moves(node):
        return None
    source = node.args[0]
    assert isinstance(source, Node)
    value, note = lowering.values[source], note_of(node)
    if not isinstance(value, Codes | Tabulated | GroupCodes):
        return None
    rest = map_arg((node.args[1:], node.kwargs), lowering.plain)

    def move(base: Node) -> Node:
        return lowering.program.copy(node, (base, *rest[0]), rest[1])

    if isinstance(value, GroupCodes):
        if keeps_rows(node):
            return GroupCodes(move(value.node), value.grid)
        if op_of(node).moves is not Moves.PICK or not moves_rows(node):
            return None
        groups = lowering.program.method(
            "index_select", (value.grid.groups, 0, lowering.plain(argument(node, "index")))
        )
        return GroupCodes(move(value.node), GroupGrid(value.grid.grids, groups))
    if isinstance(value, Codes):
        return Codes(move(value.node), value.grid)
    if moves_rows(node):
        return Tabulated(tuple(map(move, value.bases)), value.table)
    ahead = len(value.bases)
    if note.is_tensor and note.ndim > 0 and value.table[(0,) * ahead].numel() == 1:
        table = value.table.reshape(*value.table.shape[:ahead], *[1] * (note.ndim - 1))
        return Tabulated(tuple(map(move, value.bases)), table)
    return None


def lower_join(lowering: Lowering, node: Node) -> Value | None:
    """Concatenates codes of one grid now, and other values where they are needed."""
    if op_of(node).moves is not Moves.JOIN or not isinstance(node.args[0], list | tuple):
        return None
    dim = argument(node, "dim", 0)
    parts = tuple(lowering.values[part] for part in node.args[0] if isinstance(part, Node))
    if not isinstance(dim, int) or not any(map(tabular, parts)):
        return None
    codes = [part for part in parts if isinstance(part, Codes)]
    grids = {part.grid for part in codes}
    if len(codes) == len(parts) and len(grids) == 1:
        nodes = [part.node for part in codes]
        return Codes(lowering.program.call(torch.cat, (nodes, dim), note_of(node)), grids.pop())
    return Joined(parts, dim)

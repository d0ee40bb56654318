"""Attention: softmaxes over the edges of a node, on codes."""

from __future__ import annotations

import inspect
import operator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch_geometric.utils import softmax

from dqconvert.kernels.integer.attention import attention_codes, attention_sums, softmax_codes
from dqconvert.kernels.integer.finish import CODES
from dqconvert.kernels.integer.groups import look_up_groups, quantize_groups
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.kernels.integer.tables import look_up_pairs, plain_look_up
from dqconvert.lower.forms.linear import ended
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.patterns import same, taken
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import in_edge_order, look_up_last
from dqconvert.lower.values import GroupGrid, Plain, QuantizerGrid, Value
from dqconvert.ops import op_name
from dqconvert.quant import groups_of_edges, groups_of_nodes
from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import note_of

_SOFTMAX = inspect.signature(softmax)


class _Softmax(NamedTuple):
    """A call of :func:`torch_geometric.utils.softmax` in the integer graph, over the edges to each node.

    Attributes:
        logits: Its first argument.
        receiver: The node of each edge.
        size: How many nodes.
        grid: That of its result, or those of groups of edges.
        name: Prefix of the constants' names.
    """

    logits: Node
    receiver: Node
    size: Any
    grid: QuantizerGrid | GroupGrid
    name: str


def lower_softmax(lowering: Lowering, node: Node) -> Value | None:
    """Lowers the rounding of a softmax over the edges to each node, whose logits follow from codes."""
    grid, before = lowering.any_grid(node), node.args[0] if node.args else None
    value, note, program = lowering.value(before), note_of(node), lowering.program
    if grid is None or not isinstance(value, Plain) or value.node.target is not softmax:
        return None
    given = _SOFTMAX.bind(*value.node.args, **value.node.kwargs).arguments
    logits, receiver, size = (given.get(name) for name in ("src", "index", "num_nodes"))
    if not isinstance(logits, Node) or not isinstance(receiver, Node) or size is None or given.get("ptr") is not None:
        return None
    if given.get("dim", 0) not in (0, -note.ndim) or note.ndim not in (1, 2) or note.dtype != torch.float32:
        return None
    call = _Softmax(logits, receiver, size, grid, str(node.target))
    found = _of_sums(lowering, call) or _of_pairs(lowering, call) or _of_codes(lowering, call, node)
    if found is None:
        return None
    codes, edges = found
    if note.ndim == 1:
        codes = program.method("flatten", (codes,))
    return ended(program.call(in_edge_order, (codes, edges), note), grid)


class _Groups(NamedTuple):
    """The groups of the edges that a softmax weighs, which are those of the nodes that receive them.

    Attributes:
        edges, nodes: The group of each edge, and of each of those nodes.
        logits: The value of a logit by its code, float32 `[groups, 256]`.
        grids: float32 `[groups, 4]`, of the result.
    """

    edges: Node
    nodes: Node
    logits: Tensor
    grids: Tensor


def _groups(lowering: Lowering, call: _Softmax) -> _Groups | None:
    """Returns how the edges of a softmax differ by group: those of its logits, or those to which it is rounded."""
    looked_up, several = call.logits.target in (look_up_last, look_up_groups), call.logits.target is look_up_groups
    table = lowering.program.tensor(call.logits.args[1]) if looked_up else None
    found: list[Any] = [call.logits.args[2]] if several else []
    found += [call.grid.groups] if isinstance(call.grid, GroupGrid) else []
    if table is None or table.dim() != 1 + several or len(set(found)) != 1:
        return None
    edges = found[0]
    nodes = edges.args[0] if edges.target is groups_of_edges and same(edges.args[1], call.receiver) else None
    if nodes is None or nodes.target is not groups_of_nodes or _counted(nodes.args[0]) in (None, False):
        return None
    if _counted(nodes.args[0]) != _counted(call.size):
        return None
    grids = call.grid.numbers()
    count = len(table) if several else len(grids)
    return _Groups(edges, nodes, table.expand(count, CODES), grids.expand(count, 4))


def _of_sums(lowering: Lowering, call: _Softmax) -> tuple[Node, Node] | None:
    """Writes a softmax of sums of values of both ends, rounded by group; returns what :func:`_of_pairs` does."""
    program, codes, groups = lowering.program, call.logits.args[0], _groups(lowering, call)
    if groups is None or not isinstance(codes, Node) or codes.target is not quantize_groups:
        return None
    sums, steps, of_edges = codes.args
    plain_sum = isinstance(sums, Node) and op_name(sums) == "add" and len(sums.args) == 2 and not sums.kwargs
    if not plain_sum or note_of(codes).ndim != 2 or of_edges is not groups.edges or not _rise(groups.logits):
        return None
    for source, target in (sums.args, sums.args[::-1]):  # type: ignore[union-attr]
        sent, received = _before(program, source), _before(program, target)
        if sent is None or received is None or not same(received[1], call.receiver):
            continue
        if _num_rows(received[0]) != _counted(call.size):
            continue
        rows = program.method("size", (sent[0], 0))
        ptr, senders, edges = program.items(program.call(receiver_order, (sent[1], call.receiver, rows, call.size)), 3)
        logits, grids = program.constant(groups.logits, f"{call.name}.logits"), _grids(program, call, groups)
        args = sent[0], received[0], steps, logits, ptr, senders, grids, groups.nodes
        return program.call(attention_sums, args), edges
    return None


def _grids(program: Program, call: _Softmax, groups: _Groups) -> Any:
    return program.constant(groups.grids, f"{call.name}.grid")


def _before(program: Program, values: Any) -> tuple[Node, Node] | None:
    """Returns values of nodes and which of them each edge takes, of what is looked up after it was taken."""
    if not isinstance(values, Node) or values.target not in (look_up_last, look_up_groups):
        return None
    codes, table, *groups = values.args
    rows, own = taken(codes), [taken(one) for one in groups]
    if rows is None or note_of(rows[0]).ndim != 2 or note_of(values).dtype != torch.float32:
        return None
    if any(one is None or not same(one[1], rows[1]) for one in own):
        return None
    of_nodes = replace(note_of(values), sizes=note_of(rows[0]).sizes)
    args = rows[0], table, *(one[0] for one in own if one is not None)
    return program.call(values.target, args, of_nodes), rows[1]


def _rise(logits: Tensor) -> bool:
    """True if higher codes have higher logits, or equal ones: the kernels find the largest one by the largest code."""
    return bool((logits.diff() >= 0).all() and logits.isfinite().all())


def _of_pairs(lowering: Lowering, call: _Softmax) -> tuple[Node, Node] | None:
    """Writes a softmax of logits that a table has for each pair of codes, one from either end of an edge.

    Returns:
        The codes in the order of the receivers, and the position of each edge in the list; None if it does not apply.
    """
    program, node, tables = lowering.program, call.logits, list[Tensor]()
    if isinstance(call.grid, GroupGrid):
        return None
    while node.target is look_up_last and (table := program.tensor(node.args[1])).dim() == 1:
        tables.insert(0, table)
        assert isinstance(node.args[0], Node)
        node = node.args[0]
    if node.target is not look_up_pairs or note_of(node).ndim != 2:
        return None
    first, second, pairs = node.args
    values = program.tensor(pairs)
    for table in tables:
        values = plain_look_up(values, table)
    for source, target, by_target in ((first, second, values.t()), (second, first, values)):
        sent, received = taken(source), taken(target)
        if sent is None or received is None or not same(received[1], call.receiver):
            continue
        ranked = _ranked(by_target) if _num_rows(received[0]) == _counted(call.size) else None
        if ranked is None:
            continue
        rows = program.method("size", (sent[0], 0))
        ptr, senders, edges = program.items(program.call(receiver_order, (sent[1], call.receiver, rows, call.size)), 3)
        table = program.constant(ranked[0], f"{call.name}.table")
        logits = program.constant(ranked[1], f"{call.name}.logits")
        grid = program.grid(call.grid, f"{call.name}.grid")
        return program.call(attention_codes, (sent[0], received[0], table, logits, ptr, senders, grid)), edges
    return None


def _of_codes(lowering: Lowering, call: _Softmax, node: Node) -> tuple[Node, Node] | None:
    """Writes a softmax of logits that a table has for each code of an edge; returns what :func:`_of_pairs` does."""
    program, logits, groups = lowering.program, call.logits, _groups(lowering, call)
    if groups is not None:
        tables = list(groups.logits)
    elif logits.target is look_up_last and isinstance(call.grid, QuantizerGrid):
        tables = [program.tensor(logits.args[1])]
    else:
        return None
    codes, ranked = logits.args[0], [_ranked(table) if table.dim() == 1 else None for table in tables]
    assert isinstance(codes, Node)
    if None in ranked:
        return None
    if not all(map(_rise, tables)):
        ranks, tables = map(list, zip(*ranked, strict=True))
        rank = program.constant(ranks[0] if groups is None else torch.stack(ranks), f"{call.name}.table")
        if groups is None:
            codes = program.call(look_up_last, (codes, rank), note_of(codes))
        else:
            codes = program.call(look_up_groups, (codes, rank, groups.edges), note_of(codes))
    if note_of(logits).ndim == 1:
        codes = program.method("unsqueeze", (codes, 1))
    sender, rows = _sender(lowering, node) or (call.receiver, call.size)
    ptr, _, edges = program.items(program.call(receiver_order, (sender, call.receiver, rows, call.size)), 3)
    values = program.constant(tables[0] if groups is None else torch.stack(tables), f"{call.name}.logits")
    if groups is None:
        grid = program.grid(call.grid, f"{call.name}.grid")
        return program.call(softmax_codes, (codes, values, ptr, edges, grid)), edges
    return program.call(softmax_codes, (codes, values, ptr, edges, _grids(program, call, groups), groups.nodes)), edges


def _sender(lowering: Lowering, node: Node) -> tuple[Node, Node] | None:
    """Returns the senders of the messages that a softmax weighs, and how many nodes there are: to share their order."""
    matches = lowering.propagations.values()
    match = next((match.message.gather for match in matches if match.message.weight is node), None)
    if match is None or match.edge_index not in lowering.values or match.source not in lowering.values:
        return None
    ends = lowering.plain(match.edge_index)
    sender = lowering.program.call(operator.getitem, (ends, match.row), note_of(match.index))
    return sender, lowering.num_rows(match.source)


def _ranked(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Ranks values by codes, of which higher ones have higher values.

    Returns:
        The codes of the values, and the value of each code; None if 256 codes are not enough.

    Example:
        >>> codes, values = _ranked(torch.tensor([0.5, -1.0, 0.5]))
        >>> codes, values[:2]
        (tensor([1, 0, 1], dtype=torch.uint8), tensor([-1.0000,  0.5000]))
    """
    rising, codes = values.float().unique(return_inverse=True)
    if len(rising) > CODES or not bool(torch.isfinite(rising).all()):
        return None
    rest = rising[-1:].expand(CODES - len(rising))
    return codes.to(torch.uint8), torch.cat([rising, rest])


def _num_rows(node: Node) -> Any:
    """Returns the number of rows that a value had when the model was traced, or the name of what it follows."""
    return dimensions(note_of(node))[0] if note_of(node).sizes else None


def _counted(size: Any) -> Any:
    """Returns the same of the value whose rows a node counts; False if it counts none."""
    counts = isinstance(size, Node) and size.target == "size" and len(size.args) == 2 and size.args[1] == 0
    return _num_rows(size.args[0]) if counts else False

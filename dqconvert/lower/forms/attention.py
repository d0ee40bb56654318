"""Attention: softmaxes over the edges of a node, on codes."""

from __future__ import annotations

import inspect
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch_geometric.utils import softmax

from dqconvert.kernels.integer.attention import attention_codes, softmax_codes
from dqconvert.kernels.integer.finish import CODES
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.kernels.integer.tables import look_up_pairs, plain_look_up
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.patterns import same, taken
from dqconvert.lower.runtime import in_edge_order, look_up_last
from dqconvert.lower.values import Codes, Plain, Value
from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import note_of

_SOFTMAX = inspect.signature(softmax)


class _Softmax(NamedTuple):
    """A call of :func:`torch_geometric.utils.softmax` in the integer graph, over the edges to each node.

    Attributes:
        logits: Its first argument.
        receiver: The node of each edge.
        size: How many nodes.
        grid: The constant that is the grid of its result.
        name: Prefix of the constants' names.
    """

    logits: Node
    receiver: Node
    size: Any
    grid: Node
    name: str


def lower_softmax(lowering: Lowering, node: Node) -> Value | None:
    """Lowers the rounding of a softmax over the edges to each node, whose logits follow from codes."""
    grid, before = lowering.grid(node), node.args[0] if node.args else None
    value, note, program = lowering.value(before), note_of(node), lowering.program
    if grid is None or not isinstance(value, Plain) or value.node.target is not softmax:
        return None
    given = _SOFTMAX.bind(*value.node.args, **value.node.kwargs).arguments
    logits, receiver, size = (given.get(name) for name in ("src", "index", "num_nodes"))
    if not isinstance(logits, Node) or not isinstance(receiver, Node) or size is None or given.get("ptr") is not None:
        return None
    if given.get("dim", 0) not in (0, -note.ndim) or note.ndim not in (1, 2) or note.dtype != torch.float32:
        return None
    name = str(node.target)
    call = _Softmax(logits, receiver, size, program.grid(grid, f"{name}.grid"), name)
    found = _of_pairs(lowering, call) or _of_codes(lowering, call, node)
    if found is None:
        return None
    codes, edges = found
    if note.ndim == 1:
        codes = program.method("flatten", (codes,))
    return Codes(program.call(in_edge_order, (codes, edges), note), grid)


def _of_pairs(lowering: Lowering, call: _Softmax) -> tuple[Node, Node] | None:
    """Writes a softmax of logits that a table has for each pair of codes, one from either end of an edge.

    Returns:
        The codes in the order of the receivers, and the position of each edge in the list; None if it does not apply.
    """
    program, node, tables = lowering.program, call.logits, list[Tensor]()
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
        return program.call(attention_codes, (sent[0], received[0], table, logits, ptr, senders, call.grid)), edges
    return None


def _of_codes(lowering: Lowering, call: _Softmax, node: Node) -> tuple[Node, Node] | None:
    """Writes a softmax of logits that a table has for each code of an edge; returns what :func:`_of_pairs` does."""
    program, logits = lowering.program, call.logits
    if logits.target is not look_up_last or (table := program.tensor(logits.args[1])).dim() != 1:
        return None
    codes, ranked = logits.args[0], _ranked(table)
    assert isinstance(codes, Node)
    if ranked is None:
        return None
    if not bool((table.diff() >= 0).all()):  # the kernel finds the largest logit by the largest code
        codes = program.call(look_up_last, (codes, program.constant(ranked[0], f"{call.name}.table")), note_of(codes))
        table = ranked[1]
    if note_of(logits).ndim == 1:
        codes = program.method("unsqueeze", (codes, 1))
    sender, rows = _sender(lowering, node) or (call.receiver, call.size)
    ptr, _, edges = program.items(program.call(receiver_order, (sender, call.receiver, rows, call.size)), 3)
    values = program.constant(table, f"{call.name}.logits")
    return program.call(softmax_codes, (codes, values, ptr, edges, call.grid)), edges


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

"""Attention: softmaxes over the edges of a node, on codes."""

from __future__ import annotations

import inspect
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch_geometric.utils import softmax

from dqconvert.kernels.integer.attention import attention_codes, softmax_codes
from dqconvert.kernels.integer.finish import CODES
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.kernels.integer.tables import look_up_pairs, plain_look_up
from dqconvert.lower.forms.heads import taken
from dqconvert.lower.runtime import in_edge_order, look_up_last
from dqconvert.lower.values import Codes, Grid, Plain, Value
from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import note_of

if TYPE_CHECKING:
    from dqconvert.lower.walk import Lowering

_SOFTMAX = inspect.signature(softmax)


class _Softmax(NamedTuple):
    """A call in the integer graph of :func:`torch_geometric.utils.softmax`, over the edges to each node.

    Attributes:
        logits: Its first argument.
        receiver: The node of each edge.
        size: How many nodes.
        grid: The constant that is the grid of its result.
        name: What constants are called.
    """

    logits: Node
    receiver: Node
    size: Any
    grid: Node
    name: str


def lower_softmax(lowering: Lowering, node: Node) -> Value | None:
    """The rounding of a softmax over the edges to each node, whose logits follow from codes."""
    quantizer, before = lowering.quantizer(node), node.args[0] if node.args else None
    if quantizer is None or quantizer.channel_dim is not None or not isinstance(before, Node):
        return None
    value, note = lowering.values[before], note_of(node)
    if not isinstance(value, Plain) or value.node.target is not softmax:
        return None
    given = _SOFTMAX.bind(*value.node.args, **value.node.kwargs).arguments
    logits, receiver, size = (given.get(name) for name in ("src", "index", "num_nodes"))
    if not isinstance(logits, Node) or not isinstance(receiver, Node) or size is None or given.get("ptr") is not None:
        return None
    if given.get("dim", 0) not in (0, -note.ndim) or note.ndim not in (1, 2) or note.dtype != torch.float32:
        return None
    grid, name = Grid.of(quantizer), str(node.target)
    call = _Softmax(logits, receiver, size, lowering.out.constant(grid.numbers(), f"{name}.grid"), name)
    found = _of_pairs(lowering, call) or _of_codes(lowering, call, node)
    if found is None:
        return None
    codes, edges = found
    if note.ndim == 1:
        codes = lowering.out.graph.call_method("flatten", (codes,))
    return Codes(lowering.out.call(in_edge_order, (codes, edges), note), grid)


def _of_pairs(lowering: Lowering, call: _Softmax) -> tuple[Node, Node] | None:
    """Of logits that a table has for each pair of codes, one of either end of an edge."""
    out, node, tables = lowering.out, call.logits, list[Tensor]()
    while node.target is look_up_last and (table := _constant(lowering, node.args[1])).dim() == 1:
        tables.insert(0, table)
        assert isinstance(node.args[0], Node)
        node = node.args[0]
    if node.target is not look_up_pairs or note_of(node).ndim != 2:
        return None
    first, second, pairs = node.args
    values = _constant(lowering, pairs)
    for table in tables:
        values = plain_look_up(values, table)
    for source, target, by_target in ((first, second, values.t()), (second, first, values)):
        sent, received = taken(source), taken(target)
        if sent is None or received is None or not _same(received[1], call.receiver):
            continue
        ranked = _ranked(by_target) if _rows(received[0]) == _counted(call.size) else None
        if ranked is None:
            continue
        rows = out.graph.call_method("size", (sent[0], 0))
        ptr, senders, edges = _order(lowering, sent[1], call.receiver, rows, call.size)
        constants = [
            out.constant(t, f"{call.name}.{kind}") for t, kind in zip(ranked, ("table", "logits"), strict=True)
        ]
        args = sent[0], received[0], *constants, ptr, senders, call.grid
        return out.call(attention_codes, args), edges
    return None


def _of_codes(lowering: Lowering, call: _Softmax, node: Node) -> tuple[Node, Node] | None:
    """Of logits that a table has for each code of an edge."""
    out, logits = lowering.out, call.logits
    if logits.target is not look_up_last or (table := _constant(lowering, logits.args[1])).dim() != 1:
        return None
    codes, ranked = logits.args[0], _ranked(table)
    assert isinstance(codes, Node)
    if ranked is None:
        return None
    if not bool((table.diff() >= 0).all()):
        codes = out.call(look_up_last, (codes, out.constant(ranked[0], f"{call.name}.table")), note_of(codes))
        table = ranked[1]
    if note_of(logits).ndim == 1:
        codes = out.graph.call_method("unsqueeze", (codes, 1))
    sender, rows = _sender(lowering, node) or (call.receiver, call.size)
    ptr, _, edges = _order(lowering, sender, call.receiver, rows, call.size)
    values = out.constant(table, f"{call.name}.logits")
    return out.call(softmax_codes, (codes, values, ptr, edges, call.grid)), edges


def _sender(lowering: Lowering, node: Node) -> tuple[Node, Node] | None:
    """Where the messages come from that a softmax weighs, and how many nodes there are: to share their order."""
    matches = lowering.propagations.by_aggregate.values()
    match = next((match.message.gather for match in matches if match.message.weight is node), None)
    if match is None or match.edge_index not in lowering.values or match.source not in lowering.values:
        return None
    ends = lowering.plain(match.edge_index)
    sender = lowering.out.call(operator.getitem, (ends, match.row), note_of(match.index))
    return sender, lowering.rows(match.source)


def _order(lowering: Lowering, sender: Node, receiver: Node, rows: Any, size: Any) -> tuple[Node, Node, Node]:
    order = lowering.out.call(receiver_order, (sender, receiver, rows, size))
    ptr, senders, edges = (lowering.out.call(operator.getitem, (order, k)) for k in range(3))
    return ptr, senders, edges


def _ranked(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Values as codes, of which higher ones have higher values: the codes, and the values by code; if 256 are enough.

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


def _same(one: Node, other: Node) -> bool:
    """Whether two nodes are one, or the same part of another."""
    return one is other or (one.target is other.target is operator.getitem and one.args == other.args)


def _rows(node: Node) -> Any:
    """How many rows a value has on the examples."""
    return dimensions(note_of(node))[0] if note_of(node).sizes else None


def _counted(size: Any) -> Any:
    """Likewise, of that whose rows are counted."""
    counts = isinstance(size, Node) and size.target == "size" and len(size.args) == 2 and size.args[1] == 0
    return _rows(size.args[0]) if counts else False


def _constant(lowering: Lowering, node: Any) -> Tensor:
    return lowering.out.root.get_buffer(str(node.target))

"""Attention: products with vectors by head, softmaxes over the edges of a node, and means of heads, on codes."""

from __future__ import annotations

import inspect
import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch_geometric.utils import softmax

from dqconvert.kernels.integer.attention import attention_codes, softmax_codes
from dqconvert.kernels.integer.codes import look_up_pairs, plain_look_up, plain_quantize
from dqconvert.kernels.integer.edge_products import MOST, edge_products
from dqconvert.kernels.integer.finish import CODES, Finish
from dqconvert.kernels.integer.heads import add_heads
from dqconvert.kernels.integer.linear import integer_linear, pack_weight
from dqconvert.lower.runtime import look_up_last, receiver_order
from dqconvert.lower.values import Codes, Grid, Known, Plain, Value
from dqconvert.quant import FakeQuantize
from dqconvert.rewrite.derive import dimensions
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.ops import op_name

if TYPE_CHECKING:
    from dqconvert.lower.lowering import Lowering

_SOFTMAX = inspect.signature(softmax)


# -- products with a vector by head --------------------------------------------------------------------------------


def lower_products(lowering: Lowering, node: Node) -> Value | None:
    """``(x * weight).sum(-1)`` of codes and a weight that all rows share, rounded right behind."""
    product, grid = node.args[0] if node.args else None, lowering.grid_behind(node)
    if op_name(node) != "sum" or grid is None or not isinstance(product, Node) or not _over(node, note_of(node).ndim):
        return None
    if op_name(product) != "mul" or len(product.args) != 2:
        return None
    for x, weight in (product.args, product.args[::-1]):
        if isinstance(x, Node) and isinstance(weight, Node) and note_of(x).sizes == note_of(product).sizes:
            codes, known = lowering.values[x], lowering.values[weight]
            if isinstance(codes, Codes) and isinstance(known, Known) and known.quantizer is not None:
                found = _products(lowering, node, codes, known.value, known.quantizer, note_of(x), grid)
                if found is not None:
                    return found
    return None


def lower_edge_products(lowering: Lowering, node: Node) -> Value | None:
    """``(a_i * b_j).sum(-1)`` of the codes that lie at both ends of each edge."""
    product, note = node.args[0] if node.args else None, note_of(node)
    if op_name(node) != "sum" or not isinstance(product, Node) or not _over(node, note.ndim) or note.ndim != 2:
        return None
    if op_name(product) != "mul" or len(product.args) != 2 or note.dtype != torch.float32:
        return None
    ends = [_value(lowering, end) for end in product.args]
    sizes = {size[1:] for end in product.args if isinstance(end, Node) for size in note_of(end).sizes}
    if len(sizes) != 1 or not all(isinstance(end, Codes) and _taken(end.node) is not None for end in ends):
        return None
    heads, columns = sizes.pop()
    if columns > MOST:
        return None
    args: list[Any] = []
    for end in ends:
        assert isinstance(end, Codes)
        source, index = _taken(end.node) or (end.node, end.node)
        flat = lowering.out.graph.call_method("reshape", (source, -1, heads * columns))
        annotate(flat, Note(sizes=tuple((size[0], heads * columns) for size in note_of(source).sizes)))
        args += [flat, index, end.grid.zero]
    factor = math.prod(end.grid.scale for end in ends if isinstance(end, Codes))
    return Plain(lowering.out.call(edge_products, (*args, heads, factor), note))


def _over(node: Node, dim: int) -> bool:
    """Whether a sum or mean is over one dimension, which is gone then, and no more."""
    given = dict(zip(("dim", "keepdim", "dtype"), node.args[1:], strict=False)) | node.kwargs
    over = given.pop("dim", None)
    one = over[0] if isinstance(over, tuple | list) and len(over) == 1 else over
    return one in (dim, dim - note_of(node).ndim - 1) and not any(given.values())


def _products(
    lowering: Lowering, node: Node, x: Codes, value: Tensor, quantizer: FakeQuantize, note: Note, grid: Grid
) -> Codes | None:
    """A linear layer whose weight is a block for each head."""
    rest = {size[1:] for size in note.sizes}
    if len(rest) != 1 or quantizer.scale.numel() != 1 or note.ndim < 2:
        return None
    sizes = rest.pop()
    if value.dim() > note.ndim or (value.dim() == note.ndim and value.size(0) != 1):
        return None
    weight_grid, out, label = Grid.of(quantizer), lowering.out, f"{note_of(node).module or node.name}.products"
    codes = plain_quantize(value, weight_grid.numbers(value.device), None, False).to(torch.int16)
    centred = (codes - weight_grid.zero).expand(1, *sizes).reshape(-1, sizes[-1])
    heads, width = centred.size(0), centred.numel()
    factor = torch.tensor([weight_grid.scale], device=value.device) * x.grid.scale
    finish = Finish(
        factor=out.constant(factor, f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(value.device), f"{label}.grid"),  # type: ignore[arg-type]
    )
    weight = out.constant(pack_weight(torch.block_diag(*centred.unsqueeze(1))), f"{label}.weight")
    x_grid = out.constant(x.grid.numbers(value.device), f"{label}.input_grid")
    rows = tuple(size[:1] for size in note.sizes)
    flat = out.graph.call_method("reshape", (x.node, -1, width))
    annotate(flat, Note(sizes=tuple((*size, width) for size in rows)))
    flat_note = Note(sizes=tuple((*size, heads) for size in rows))
    found = out.call(integer_linear, (flat, x_grid, weight, heads, finish), flat_note)
    if note.ndim != 3:
        found = annotate(out.graph.call_method("view", (found, -1, *sizes[:-1])), note_of(node))
    return Codes(found, grid)


def lower_mean(lowering: Lowering, node: Node) -> Value | None:
    """The rounding of ``x.mean(1)``, or of that and a bias, where ``x`` are the codes of all heads."""
    quantizer, mean = lowering.quantizer(node), node.args[0] if node.args else None
    if quantizer is None or quantizer.channel_dim is not None or not isinstance(mean, Node):
        return None
    bias = None
    if op_name(mean) == "add" and len(mean.args) == 2 and not mean.kwargs and not lowering.changes(mean):
        (mean, bias) = mean.args if isinstance(_value(lowering, mean.args[1]), Known) else mean.args[::-1]
    added = _value(lowering, bias)
    if not isinstance(mean, Node) or op_name(mean) != "mean" or not _over(mean, 1):
        return None
    source, note = mean.args[0], note_of(mean)
    x, widths = _value(lowering, source), {size[1] for size in note.sizes if len(size) == 2}
    heads = {size[1] for size in note_of(source).sizes if len(size) == 3} if isinstance(source, Node) else set()
    if not isinstance(x, Codes) or len(widths) != 1 or len(heads) != 1 or note.dtype != torch.float32:
        return None
    columns, count, grid, out, label = widths.pop(), heads.pop(), Grid.of(quantizer), lowering.out, str(node.target)
    if bias is not None and (not isinstance(added, Known) or added.value.shape not in ((columns,), (1, columns))):
        return None
    finish = Finish(
        factor=out.constant(torch.tensor([x.grid.scale]) / count, f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(), f"{label}.grid"),  # type: ignore[arg-type]
        bias=out.constant(added.value.float().view(-1), f"{label}.bias") if isinstance(added, Known) else None,  # type: ignore[arg-type]
    )
    flat = out.graph.call_method("reshape", (x.node, -1, count * columns))
    annotate(flat, Note(sizes=tuple((size[0], count * columns) for size in note.sizes)))
    x_grid = out.constant(x.grid.numbers(), f"{label}.input_grid")
    return Codes(out.call(add_heads, (flat, x_grid, columns, finish), note_of(node)), grid)


# -- softmax over the edges of a node ------------------------------------------------------------------------------


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
    if quantizer is None or quantizer.channel_dim is not None or not isinstance(before, Node) or lowering.in_place:
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
    taken = _Softmax(logits, receiver, size, lowering.out.constant(grid.numbers(), f"{name}.grid"), name)
    found = _of_pairs(lowering, taken) or _of_codes(lowering, taken, node)
    if found is None:
        return None
    codes, edges = found
    if note.ndim == 1:
        codes = lowering.out.graph.call_method("flatten", (codes,))
    return Codes(lowering.out.call(in_edge_order, (codes, edges), note), grid)


def in_edge_order(codes: Tensor, edges: Tensor) -> Tensor:
    """What belongs to edges in the order of their receivers, in the order of their list.

    Args:
        codes: ``[num_edges, *rest]``.
        edges: int64 ``[num_edges]``, the position of each in the list.

    Example:
        >>> in_edge_order(torch.tensor([10, 20, 30]), torch.tensor([2, 0, 1]))
        tensor([20, 30, 10])
    """
    return torch.empty_like(codes).index_copy_(0, edges, codes)


def join_orders(graph: Graph) -> None:
    """Takes in the order of the receivers, in place, what was in that order before it was put in that of the list."""
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "index_select" and node.args[1] == 0:
            listed = node.args[0]
            if isinstance(listed, Node) and listed.target is in_edge_order and listed.args[1] is node.args[2]:
                node.replace_all_uses_with(listed.args[0])
                graph.erase_node(node)


def _of_pairs(lowering: Lowering, taken: _Softmax) -> tuple[Node, Node] | None:
    """Of logits that a table has for each pair of codes, one of either end of an edge."""
    out, node, tables = lowering.out, taken.logits, list[Tensor]()
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
        sent, received = _taken(source), _taken(target)
        if sent is None or received is None or not _same(received[1], taken.receiver):
            continue
        ranked = _ranked(by_target) if _rows(received[0]) == _counted(taken.size) else None
        if ranked is None:
            continue
        rows = out.graph.call_method("size", (sent[0], 0))
        ptr, senders, edges = _order(lowering, sent[1], taken.receiver, rows, taken.size)
        constants = [
            out.constant(t, f"{taken.name}.{kind}") for t, kind in zip(ranked, ("table", "logits"), strict=True)
        ]
        args = sent[0], received[0], *constants, ptr, senders, taken.grid
        return out.call(attention_codes, args), edges
    return None


def _of_codes(lowering: Lowering, taken: _Softmax, node: Node) -> tuple[Node, Node] | None:
    """Of logits that a table has for each code of an edge."""
    out, logits = lowering.out, taken.logits
    if logits.target is not look_up_last or (table := _constant(lowering, logits.args[1])).dim() != 1:
        return None
    codes, ranked = logits.args[0], _ranked(table)
    assert isinstance(codes, Node)
    if ranked is None:
        return None
    if not bool((table.diff() >= 0).all()):
        codes = out.call(look_up_last, (codes, out.constant(ranked[0], f"{taken.name}.table")), note_of(codes))
        table = ranked[1]
    if note_of(logits).ndim == 1:
        codes = out.graph.call_method("unsqueeze", (codes, 1))
    sender, rows = _sender(lowering, node) or (taken.receiver, taken.size)
    ptr, _, edges = _order(lowering, sender, taken.receiver, rows, taken.size)
    values = out.constant(table, f"{taken.name}.logits")
    return out.call(softmax_codes, (codes, values, ptr, edges, taken.grid)), edges


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


def _taken(node: Any) -> tuple[Node, Node] | None:
    """What rows are taken from, and which."""
    if not isinstance(node, Node) or node.target != "index_select" or node.args[1] != 0:
        return None
    source, _, index = node.args
    return (source, index) if isinstance(source, Node) and isinstance(index, Node) else None


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


def _value(lowering: Lowering, node: Any) -> Value | None:
    return lowering.values[node] if isinstance(node, Node) else None


def _constant(lowering: Lowering, node: Any) -> Tensor:
    return lowering.out.root.get_buffer(str(node.target))

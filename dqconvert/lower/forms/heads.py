"""What attention does with heads, on codes: products with vectors, products of both ends of an edge, means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.integer.codes import plain_quantize
from dqconvert.kernels.integer.edge_products import MOST, edge_products
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.heads import add_heads
from dqconvert.kernels.integer.linear import integer_linear, pack_weight
from dqconvert.lower.builder import Builder
from dqconvert.lower.values import Codes, Grid, Known, Plain, Value
from dqconvert.quant import FakeQuantize
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.ops import argument, op_name

if TYPE_CHECKING:
    from dqconvert.lower.walk import Lowering


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
    if len(sizes) != 1 or not all(isinstance(end, Codes) and taken(end.node) is not None for end in ends):
        return None
    heads, columns = sizes.pop()
    if columns > MOST:
        return None
    args: list[Any] = []
    for end in ends:
        assert isinstance(end, Codes)
        source, index = taken(end.node) or (end.node, end.node)
        args += [_flat(lowering.out, source, heads * columns), index, end.grid.zero]
    factor = math.prod(end.grid.scale for end in ends if isinstance(end, Codes))
    return Plain(lowering.out.call(edge_products, (*args, heads, factor), note))


def _over(node: Node, dim: int) -> bool:
    """Whether a sum or mean is over one dimension, which is gone then, and no more."""
    over = argument(node, "dim")
    one = over[0] if isinstance(over, tuple | list) and len(over) == 1 else over
    further = argument(node, "keepdim", False), argument(node, "dtype")
    return one in (dim, dim - note_of(node).ndim - 1) and not any(further)


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
    factor = torch.tensor([weight_grid.scale], dtype=torch.float32, device=value.device) * x.grid.scale
    finish = Finish(
        factor=out.constant(factor, f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(value.device), f"{label}.grid"),  # type: ignore[arg-type]
    )
    weight = out.constant(pack_weight(torch.block_diag(*centred.unsqueeze(1))), f"{label}.weight")
    x_grid = out.constant(x.grid.numbers(value.device), f"{label}.input_grid")
    # Rows that are taken for each edge are multiplied before they are taken.
    source, index = taken(x.node) or (x.node, None)
    found = out.call(integer_linear, (_flat(out, source, width), x_grid, weight, heads, finish), _matrix(source, heads))
    found.kwargs = {"depth": width}
    if index is not None:
        found = annotate(out.graph.call_method("index_select", (found, 0, index)), _matrix(x.node, heads))
    if note.ndim != 3:
        found = annotate(out.graph.call_method("view", (found, -1, *sizes[:-1])), note_of(node))
    return Codes(found, grid)


def lower_mean(lowering: Lowering, node: Node) -> Value | None:
    """The rounding of ``x.mean(1)``, or of that and a bias, where ``x`` are the codes of all heads."""
    quantizer, mean = lowering.quantizer(node), node.args[0] if node.args else None
    if quantizer is None or quantizer.channel_dim is not None or not isinstance(mean, Node):
        return None
    bias = None
    if op_name(mean) == "add" and len(mean.args) == 2 and not mean.kwargs:
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
        factor=out.constant(torch.tensor([x.grid.scale], dtype=torch.float32) / count, f"{label}.factor"),  # type: ignore[arg-type]
        grid=out.constant(grid.numbers(), f"{label}.grid"),  # type: ignore[arg-type]
        bias=out.constant(added.value.float().view(-1), f"{label}.bias") if isinstance(added, Known) else None,  # type: ignore[arg-type]
    )
    x_grid = out.constant(x.grid.numbers(), f"{label}.input_grid")
    args = _flat(out, x.node, count * columns), x_grid, columns, finish
    return Codes(out.call(add_heads, args, note_of(node)), grid)


def _flat(out: Builder, source: Node, width: int) -> Node:
    """Codes, one row for each row."""
    return annotate(out.graph.call_method("reshape", (source, -1, width)), _matrix(source, width))


def _matrix(rows: Node, width: int) -> Note:
    """The note of a matrix of as many rows."""
    return Note(sizes=tuple((size[0], width) for size in note_of(rows).sizes))


def taken(node: Any) -> tuple[Node, Node] | None:
    """What rows are taken from, and which."""
    if not isinstance(node, Node) or node.target != "index_select" or node.args[1] != 0:
        return None
    source, _, index = node.args
    return (source, index) if isinstance(source, Node) and isinstance(index, Node) else None


def _value(lowering: Lowering, node: Any) -> Value | None:
    return lowering.values[node] if isinstance(node, Node) else None

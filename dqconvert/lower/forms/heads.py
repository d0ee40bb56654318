"""Heads of attention, on codes: products with vectors, products of both ends of an edge, means."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from dqconvert.kernels.integer.edge_products import MOST, edge_products
from dqconvert.kernels.integer.heads import add_heads
from dqconvert.kernels.integer.linear import integer_linear, pack_weight
from dqconvert.lower.forms.linear import by_group, centred_codes, ended, finish_products
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.patterns import taken
from dqconvert.lower.values import Codes, Constant, GroupCodes, GroupGrid, Plain, QuantizerGrid, Value
from dqconvert.ops import argument, op_name
from dqconvert.trace.note import Note, note_of


def lower_products(lowering: Lowering, node: Node) -> Value | None:
    """Lowers ``(x * weight).sum(-1)`` of codes and a weight that all rows share, rounded right behind."""
    grid = lowering.any_grid_behind(node)
    for x, weight in _summed_products(node) if grid is not None else ():
        value, known = lowering.value(x), lowering.value(weight)
        whole = isinstance(x, Node) and note_of(x).sizes == note_of(node.args[0]).sizes  # type: ignore[arg-type]
        if whole and isinstance(value, Codes | GroupCodes) and isinstance(known, Constant):
            assert grid is not None
            found = _products(lowering, node, value, known, note_of(x), grid)
            if found is not None:
                return found
    return None


def _products(
    lowering: Lowering,
    node: Node,
    x: Codes | GroupCodes,
    weight: Constant,
    note: Note,
    grid: QuantizerGrid | GroupGrid,
) -> Codes | GroupCodes | None:
    """Writes the products of all heads as one linear layer, whose weight is block diagonal: a block for each head."""
    rest, quantizer, value = {size[1:] for size in note.sizes}, weight.quantizer, weight.value
    if len(rest) != 1 or quantizer is None or quantizer.scale.numel() != 1 or note.ndim < 2:
        return None
    if value.dim() > note.ndim or (value.dim() == note.ndim and value.size(0) != 1):
        return None
    # Rows that are taken for each edge are multiplied before they are taken.
    source, index = taken(x.node) or (x.node, None)
    of_rows = {one.groups for one in (x.grid, grid) if isinstance(one, GroupGrid)}
    if of_rows and (len(of_rows) > 1 or index is not None):
        return None
    program, label, sizes = lowering.program, f"{note_of(node).module or node.name}.products", rest.pop()
    centred = centred_codes(value, quantizer).expand(1, *sizes).reshape(-1, sizes[-1])
    heads, width = centred.size(0), centred.numel()
    scale = quantizer.scale.float().reshape(1)
    finish = finish_products(program, scale, x.grid, grid, label)
    packed = program.constant(pack_weight(torch.block_diag(*centred.unsqueeze(1))), f"{label}.weight")
    x_grid = program.grid(x.grid, f"{label}.input_grid", scale.device)
    args = _flat(lowering, source, width), x_grid, packed, heads, finish
    found = program.call(integer_linear, args, _matrix(source, heads), depth=width)
    if index is not None:
        found = program.method("index_select", (found, 0, index), _matrix(x.node, heads))
    if note.ndim != 3:
        found = program.method("view", (found, -1, *sizes[:-1]), note_of(node))
    return GroupCodes(found, grid) if isinstance(grid, GroupGrid) else Codes(found, grid)


def lower_edge_products(lowering: Lowering, node: Node) -> Value | None:
    """Lowers ``(a_i * b_j).sum(-1)`` of the codes at both ends of each edge, as float32 that is not rounded."""
    note = note_of(node)
    ends = next(iter(_summed_products(node)), ())
    sizes = {size[1:] for end in ends if isinstance(end, Node) for size in note_of(end).sizes}
    if note.ndim != 2 or note.dtype != torch.float32 or len(sizes) != 1:
        return None
    values = [lowering.value(end) for end in ends]
    codes = [value for value in values if isinstance(value, Codes) and taken(value.node) is not None]
    heads, columns = sizes.pop()
    if len(codes) != 2 or columns > MOST:
        return None
    args: list[Any] = []
    for end in codes:
        source, index = taken(end.node) or (end.node, end.node)
        args += [_flat(lowering, source, heads * columns), index, end.grid.zero]
    factor = math.prod(end.grid.scale for end in codes)
    return Plain(lowering.program.call(edge_products, (*args, heads, factor), note))


def lower_mean(lowering: Lowering, node: Node) -> Value | None:
    """Lowers ``x.mean(1)``, or that and a bias, where ``x`` are the codes of all heads.

    What is rounded right behind becomes codes, with the rounding; all else leaves as float32.
    """
    rounds = lowering.quantizer(node) is not None
    grid, mean, bias = lowering.any_grid(node), node.args[0] if rounds else node, None
    if (rounds and grid is None) or not isinstance(mean, Node):
        return None
    if op_name(mean) == "add" and len(mean.args) == 2 and not mean.kwargs:
        known = isinstance(lowering.value(mean.args[1]), Constant)
        mean, bias = mean.args if known else mean.args[::-1]
    if not isinstance(mean, Node) or op_name(mean) != "mean" or not _over(mean, 1):
        return None
    x, added, note = lowering.value(mean.args[0]), lowering.value(bias), note_of(mean)
    sizes = note_of(mean.args[0]).sizes if isinstance(mean.args[0], Node) else ()
    widths = {size[1] for size in note.sizes if len(size) == 2}
    heads = {size[1] for size in sizes if len(size) == 3}
    if not isinstance(x, Codes | GroupCodes) or len(widths) != 1 or len(heads) != 1 or note.dtype != torch.float32:
        return None
    of_rows = [one for one in (x.grid, grid) if isinstance(one, GroupGrid)]
    if len({one.groups for one in of_rows}) > 1:
        return None
    columns, count, label = widths.pop(), heads.pop(), str(node.target) if rounds else f"{note.module}.mean"
    if bias is not None and (not isinstance(added, Constant) or added.value.shape not in ((columns,), (1, columns))):
        return None
    steps = (x.grid,) if isinstance(x.grid, QuantizerGrid) else x.grid.grids
    factor, ends, groups = torch.tensor([one.scale for one in steps], dtype=torch.float32) / count, grid, None
    if of_rows:
        factor, groups = factor.unsqueeze(1).expand(len(of_rows[0].grids), 1), of_rows[0].groups
        ends = None if grid is None else by_group(grid, of_rows[0])
    offset = added.value if isinstance(added, Constant) else None
    finish = lowering.program.finish(factor, ends, label, offset, groups=groups)
    x_grid = lowering.program.grid(x.grid, f"{label}.input_grid")
    args = _flat(lowering, x.node, count * columns), x_grid, columns, finish
    return ended(lowering.program.call(add_heads, args, note_of(node)), grid)


def _summed_products(node: Node) -> tuple[tuple[Any, ...], ...]:
    """Returns the factors of ``(a * b).sum(-1)``, in either order; nothing if a node is no such sum."""
    product = node.args[0] if node.args else None
    if op_name(node) != "sum" or not isinstance(product, Node) or not _over(node, note_of(node).ndim):
        return ()
    return (product.args, product.args[::-1]) if op_name(product) == "mul" and len(product.args) == 2 else ()


def _over(node: Node, dim: int) -> bool:
    """True if a sum or mean is over one dimension, ``dim`` of the argument, and drops it."""
    over = argument(node, "dim")
    one = over[0] if isinstance(over, tuple | list) and len(over) == 1 else over
    further = argument(node, "keepdim", False), argument(node, "dtype")
    return one in (dim, dim - note_of(node).ndim - 1) and not any(further)


def _flat(lowering: Lowering, source: Node, width: int) -> Node:
    """Returns codes as a matrix."""
    return lowering.program.method("reshape", (source, -1, width), _matrix(source, width))


def _matrix(rows: Node, width: int) -> Note:
    """Returns the note of a matrix with the rows of a value."""
    return Note(sizes=tuple((size[0], width) for size in note_of(rows).sizes))

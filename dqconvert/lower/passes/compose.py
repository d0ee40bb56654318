"""Tables move into the operations before them: what is looked up in the end needs no result in between."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import CODES, Finish
from dqconvert.kernels.integer.linear import integer_linear
from dqconvert.kernels.integer.on_grid import codes_of
from dqconvert.kernels.integer.plane import plane_of
from dqconvert.kernels.integer.tables import look_up_pairs, plain_look_up
from dqconvert.lower.evaluation import remove_unused
from dqconvert.lower.movers import reshapes
from dqconvert.lower.places import hold_instead, hold_nothing
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import look_up_last
from dqconvert.ops import op_of
from dqconvert.trace.note import note_of


def compose(out: Program) -> None:
    """Puts tables into the operations whose results they alone use; rows that are only multiplied are quantized there.

    Args:
        out: A graph that is written and changes nothing in place.
    """
    for node in list(out.graph.nodes):
        if node.target is look_up_last:
            _into_what_is_before(out, node)
        elif node.target is look_up_pairs:
            _pairs(out, node)
        elif node.target is integer_linear:
            _quantized_on_the_way_in(node)
    remove_unused(out.graph)


def _into_what_is_before(out: Program, node: Node) -> None:
    base, table = node.args
    assert isinstance(base, Node)
    path = [base]
    while _only(path[-1], node if len(path) == 1 else path[-2]) and reshapes(path[-1]):
        path.append(path[-1].all_input_nodes[0])
    source, user = path[-1], node if len(path) == 1 else path[-2]
    if not _only(source, user):
        return
    second = tensor_of(out, table)
    if source.target is look_up_last and _follows(tensor_of(out, source.args[1]), second, reshaped=len(path) > 1):
        first = tensor_of(out, source.args[1])
        source.args = (source.args[0], out.constant(_chained(first, second), "table"))
    elif op_of(source).finish is not None and _ends(second) and (second.dim() == 1 or _columns(source) == len(second)):
        finish = finish_of(source)
        if finish.table is not None:
            first = tensor_of(out, finish.table)
            if first.dtype != torch.uint8 or (finish.other is not None and second.dim() > 1):
                return
            table = out.constant(_chained(first, second), "table")
        _end_with(source, table, finish.other)
    else:
        return
    for step in path:
        hold_nothing(step)
    hold_instead(base, node)
    node.replace_all_uses_with(base)
    node.graph.erase_node(node)


def _ends(table: Tensor) -> bool:
    """Whether an operation may end with a table: of codes, or of float32. Other values are looked up by themselves."""
    return table.dtype in (torch.uint8, torch.float32)


def _follows(first: Tensor, second: Tensor, *, reshaped: bool) -> bool:
    """Whether one table can follow the other: not where their columns are counted differently."""
    return first.dtype == torch.uint8 and (first.dim() == second.dim() == 1 or not reshaped)


def _chained(first: Tensor, second: Tensor) -> Tensor:
    """The table of one look-up after the other."""
    if second.dim() == 1:
        return plain_look_up(first, second)
    return plain_look_up(first.expand(second.size(0), CODES).t(), second).t().contiguous()


def _pairs(out: Program, node: Node) -> None:
    """A table of pairs ends the later of the two operations that made the codes."""
    first, second, table = node.args
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    own, other = (first, second) if second < first else (second, first)
    if own is other or not _only(own, node) or op_of(own).finish is None or finish_of(own).table is not None:
        return
    if not _ends(tensor_of(out, table)):
        return
    if own is second:
        table = out.constant(tensor_of(out, table).t().contiguous(), "table")
    _end_with(own, table, other)
    hold_instead(own, node)
    node.replace_all_uses_with(own)
    node.graph.erase_node(node)


def planes(out: Program) -> None:
    """Tables of pairs that rise or fall evenly become the few numbers that say how.

    Args:
        out: A graph whose tables have moved into the operations before them.
    """
    for node in out.graph.nodes:
        finish = finish_of(node) if op_of(node).finish is not None else None
        if finish is None or finish.other is None:
            continue
        # Of the other value nothing is known but that most are on a grid of as many codes.
        table = tensor_of(out, finish.table)[: int(tensor_of(out, finish.grid)[2]) + 1]
        grid = torch.empty(0, dtype=torch.float32)
        if table.dtype == torch.float32 and (found := codes_of(array(table))) is not None:
            table, grid = map(torch.from_numpy, found)
        plane = plane_of(table) if table.dtype == torch.uint8 else None
        if plane is not None:
            _end_with(node, out.constant(torch.cat([plane, grid]), "plane"), finish.other)


def _quantized_on_the_way_in(node: Node) -> None:
    """Rows that nothing else needs as codes."""
    rows = node.args[0]
    if isinstance(rows, Node) and rows.target is quantize and _only(rows, node):
        values = rows.args[0]
        if isinstance(values, Node) and note_of(values).ndim == 2 and note_of(values).dtype == torch.float32:
            node.args = (values, *node.args[1:])


def _only(node: Node, user: Node) -> bool:
    return list(node.users) == [user]


def _finish_at(node: Node) -> int:
    """Returns the position of the :class:`Finish` among the arguments; before it stand the columns."""
    at = op_of(node).finish
    assert at is not None
    return at


def finish_of(node: Node) -> Finish:
    """What an operation on integers ends with."""
    finish = node.args[_finish_at(node)]
    assert isinstance(finish, Finish)
    return finish


def _columns(node: Node) -> object:
    return node.args[_finish_at(node) - 1]


def _end_with(node: Node, table: object, other: object) -> None:
    with_finish(node, finish_of(node)._replace(table=table, other=other))  # type: ignore[arg-type]


def with_finish(node: Node, finish: Finish) -> None:
    """Lets an operation on integers end with something else, in place."""
    at = _finish_at(node)
    node.args = (*node.args[:at], finish, *node.args[at + 1 :])


def tensor_of(out: Program, constant: object) -> Tensor:
    """What a node reads that stands for a constant."""
    assert isinstance(constant, Node)
    return out.root.get_buffer(str(constant.target))

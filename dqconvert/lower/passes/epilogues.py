"""Look-ups become epilogues of the operations before them, whose results then need not be in memory."""

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
from dqconvert.lower.movers import reshapes
from dqconvert.lower.places import hold_nothing, put_in_place
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import look_up_last
from dqconvert.ops import op_of
from dqconvert.trace.note import note_of


def fuse_tables(program: Program) -> Program:
    """Fuses look-ups into the operations whose results they alone use, and quantizing into the products behind it."""
    for node in list(program.graph.nodes):
        if node.target is look_up_last:
            _fuse_table(program, node)
        elif node.target is look_up_pairs:
            _fuse_pairs(program, node)
        elif node.target is integer_linear:
            _fuse_quantizing(node)
    return program


def _fuse_table(program: Program, node: Node) -> None:
    """Fuses a look-up into another look-up or an epilogue before it, across reshapes."""
    base, table = node.args
    assert isinstance(base, Node)
    path = [node, base]
    while _only(path[-1], path[-2]) and reshapes(path[-1]):
        path.append(path[-1].all_input_nodes[0])
    source = path[-1]
    if not _only(source, path[-2]):
        return
    second = program.tensor(table)
    if source.target is look_up_last and _follows(program.tensor(source.args[1]), second, reshaped=len(path) > 2):
        first = program.tensor(source.args[1])
        source.args = (source.args[0], program.constant(_chained(first, second), "table"))
    elif op_of(source).finish is not None and _ends(second) and (second.dim() == 1 or _columns(source) == len(second)):
        finish = finish_of(source)
        if finish.table is not None:
            first = program.tensor(finish.table)
            if first.dtype != torch.uint8 or (finish.other is not None and second.dim() > 1):
                return
            table = program.constant(_chained(first, second), "table")
        _end_with(source, table, finish.other)
    else:
        return
    for step in path[1:]:
        hold_nothing(step)
    put_in_place(base, node)


def _ends(table: Tensor) -> bool:
    """True if an epilogue can hold a table: of codes, or of float32. Other values are looked up by themselves."""
    return table.dtype in (torch.uint8, torch.float32)


def _follows(first: Tensor, second: Tensor, *, reshaped: bool) -> bool:
    """True if one table can follow the other: not where their columns are counted differently."""
    return first.dtype == torch.uint8 and (first.dim() == second.dim() == 1 or not reshaped)


def _chained(first: Tensor, second: Tensor) -> Tensor:
    """Returns the table of one look-up after the other."""
    if second.dim() == 1:
        return plain_look_up(first, second)
    return plain_look_up(first.expand(second.size(0), CODES).t(), second).t().contiguous()


def _fuse_pairs(program: Program, node: Node) -> None:
    """Fuses a table of pairs of codes into the later of the two operations that made them."""
    first, second, table = node.args
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    own, other = (first, second) if second < first else (second, first)
    if own is other or not _only(own, node) or op_of(own).finish is None or finish_of(own).table is not None:
        return
    if not _ends(program.tensor(table)):
        return
    if own is second:
        table = program.constant(program.tensor(table).t().contiguous(), "table")
    _end_with(own, table, other)
    put_in_place(own, node)


def tables_to_planes(program: Program) -> Program:
    """Replaces tables of pairs that rise or fall evenly by the few numbers that say how."""
    for node in program.graph.nodes:
        finish = finish_of(node) if op_of(node).finish is not None else None
        if finish is None or finish.other is None:
            continue
        # Of the other value nothing is known but that most are on a grid of as many codes.
        table = program.tensor(finish.table)[: int(program.tensor(finish.grid)[2]) + 1]
        grid = torch.empty(0, dtype=torch.float32)
        if table.dtype == torch.float32 and (found := codes_of(array(table))) is not None:
            table, grid = map(torch.from_numpy, found)
        plane = plane_of(table) if table.dtype == torch.uint8 else None
        if plane is not None:
            _end_with(node, program.constant(torch.cat([plane, grid]), "plane"), finish.other)
    return program


def _fuse_quantizing(node: Node) -> None:
    """Lets a product quantize its rows itself, if nothing else needs their codes."""
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
    """Returns the epilogue of an operation on integers."""
    finish = node.args[_finish_at(node)]
    assert isinstance(finish, Finish)
    return finish


def _columns(node: Node) -> object:
    return node.args[_finish_at(node) - 1]


def _end_with(node: Node, table: object, other: object) -> None:
    with_finish(node, finish_of(node)._replace(table=table, other=other))  # type: ignore[arg-type]


def with_finish(node: Node, finish: Finish) -> None:
    """Gives an operation on integers another epilogue, in place."""
    at = _finish_at(node)
    node.args = (*node.args[:at], finish, *node.args[at + 1 :])

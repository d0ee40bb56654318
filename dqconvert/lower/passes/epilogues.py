"""Look-ups become epilogues of the operations before them, whose results then need not be in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from dqconvert.kernels.cpu.arrays import array
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import CODES, Finish
from dqconvert.kernels.integer.groups import look_up_groups, look_up_pairs_groups, quantize_groups
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
        elif node.target in (look_up_pairs, look_up_pairs_groups):
            _fuse_pairs(program, node)
        elif node.target is look_up_groups:
            _fuse_group_table(program, node)
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
        if finish.groups is not None:
            return  # codes of one grid, made of rows of several
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


def _fuse_group_table(program: Program, node: Node) -> None:
    """Fuses a look-up by group into another one or an epilogue before it."""
    base, table, groups = node.args
    second = program.tensor(table)
    if not isinstance(base, Node) or not _only(base, node) or not _ends(second):
        return
    if base.target is look_up_groups and base.args[2] is groups:
        first = program.tensor(base.args[1])
        if first.dtype == torch.uint8:
            chained = [_chained(*pair) for pair in zip(first, second, strict=True)]
            base.args = (base.args[0], program.constant(torch.stack(chained), "table"), groups)
            put_in_place(base, node)
        return
    if op_of(base).finish is None or finish_of(base).groups not in (None, groups):
        return
    finish = finish_of(base)
    if second.dim() == 3 and _columns(base) != second.size(1):
        return
    if finish.table is not None:
        first = program.tensor(finish.table)
        if first.dtype != torch.uint8 or (finish.other is not None and second.dim() > 2):
            return
        first = first if finish.groups is not None else first.expand(len(second), *first.shape)
        second = torch.stack([_chained(*pair) for pair in zip(first, second, strict=True)])
    _end_with_groups(program, base, groups, second, finish.other)
    put_in_place(base, node)


def _end_with_groups(program: Program, node: Node, groups: object, table: Tensor, other: object) -> None:
    """Gives an operation an epilogue by group: what was one of all rows is that of each."""
    finish = finish_of(node)
    if finish.groups is None:
        count = len(table)
        factor, grid = (
            program.constant(program.tensor(one).expand(count, -1), name)
            for one, name in ((finish.factor, "factor"), (finish.grid, "grid"))
        )
        finish = finish._replace(factor=factor, grid=grid, groups=groups)  # type: ignore[arg-type]
    constant = program.constant(table.contiguous(), "table")
    with_finish(node, finish._replace(table=constant, other=other))  # type: ignore[arg-type]


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
    first, second, table, *groups = node.args
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    own, other = (first, second) if second < first else (second, first)
    if own is other or not _only(own, node) or op_of(own).finish is None or finish_of(own).table is not None:
        return
    entries = program.tensor(table)
    if not _ends(entries) or finish_of(own).groups not in (None, *groups):
        return
    if own is second:
        entries = entries.transpose(-2, -1).contiguous()
    if groups:
        _end_with_groups(program, own, groups[0], entries, other)
    elif finish_of(own).groups is None:
        _end_with(own, program.constant(entries, "table") if own is second else table, other)
    else:
        return
    put_in_place(own, node)


def tables_to_planes(program: Program) -> Program:
    """Replaces tables of pairs that rise or fall evenly by the few numbers that say how."""
    for node in program.graph.nodes:
        finish = finish_of(node) if op_of(node).finish is not None else None
        if finish is None or finish.other is None:
            continue
        if finish.groups is not None:
            _group_planes(program, node, finish)
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


def _group_planes(program: Program, node: Node, finish: Finish) -> None:
    """Replaces the tables of pairs of all groups, if all rise or fall evenly."""
    tables, tops = program.tensor(finish.table), program.tensor(finish.grid)[:, 2]
    if tables.dtype != torch.uint8:
        return
    planes: list[Tensor] = []
    for table, top in zip(tables, tops.tolist(), strict=True):
        plane = plane_of(table[: int(top) + 1])
        if plane is None:
            return
        planes.append(plane)
    _end_with(node, program.constant(torch.stack(planes), "plane"), finish.other)


def _fuse_quantizing(node: Node) -> None:
    """Lets a product quantize its rows itself, if nothing else needs their codes."""
    rows = node.args[0]
    if isinstance(rows, Node) and rows.target in (quantize, quantize_groups) and _only(rows, node):
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

"""Codes below 16 are held two to a byte, where what makes them and all that takes them can."""

from __future__ import annotations

import torch
from torch.fx import Node

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.propagate import MessageWeight
from dqconvert.lower.passes.epilogues import finish_of, with_finish
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import look_up_last
from dqconvert.ops import op_of
from dqconvert.trace.note import note_of


def pack_codes(program: Program) -> Program:
    """Packs codes that go from one operation on integers to others and nowhere else."""
    for node in list(program.graph.nodes):
        if _below_sixteen(program, node) and node.users and all(_takes_packed(user, node) for user in node.users):
            if node.target in (quantize, look_up_last):
                node.kwargs = {**node.kwargs, "packed": True}
            else:
                with_finish(node, finish_of(node)._replace(packed=True))
            for user in list(node.users):
                if op_of(user).packs:
                    user.kwargs = {**user.kwargs, "packed_input": True}
    return program


def _below_sixteen(program: Program, node: Node) -> bool:
    """True if a node makes codes, all of them below 16."""
    if node.target is quantize:
        return note_of(node).ndim == 2 and _top(program, node.args[1]) < 16
    if node.target is look_up_last:
        table = program.tensor(node.args[1])
        return note_of(node).ndim == 2 and table.dtype == torch.uint8 and int(table.max()) < 16
    if not op_of(node).packs:
        return False
    finish = finish_of(node)
    if finish.grid is None:
        return False
    top = _top(program, finish.grid)
    if finish.table is None:
        return top < 16
    table = program.tensor(finish.table)
    by_code = table.transpose(0, 1) if finish.groups is not None else table
    reached = by_code[: top + 1] if finish.other is not None else table[..., : top + 1]
    return table.dtype == torch.uint8 and int(reached.max()) < 16


def _top(program: Program, grid: object) -> int:
    return int(program.tensor(grid)[..., 2].max())


def _takes_packed(user: Node, codes: Node) -> bool:
    """True if a node takes packed codes, or counts their rows."""
    if user.op == "call_method" and user.target == "size":
        return user.args[1:] == (0,)
    if not op_of(user).packs or user.args[0] is not codes or finish_of(user).other is codes:
        return False
    # With several heads the bytes of one must fill whole registers: with one they always do.
    weight = user.kwargs.get("weight")
    return not isinstance(weight, MessageWeight) or (_one_head(weight) and _of_one_grid(weight))


def _of_one_grid(weight: MessageWeight) -> bool:
    multipliers = weight.multipliers
    return isinstance(multipliers, Node) and note_of(multipliers).ndim == 1


def _one_head(weight: MessageWeight) -> bool:
    codes = weight.codes
    return isinstance(codes, Node) and codes.target == "unsqueeze"

"""Sums of several values that are rounded right behind become one operation, whatever the values are held as."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.fx import Node

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.groups import look_up_groups, quantize_groups
from dqconvert.kernels.integer.sums import quantize_sum
from dqconvert.lower.places import put_in_place
from dqconvert.lower.program import Program
from dqconvert.lower.runtime import look_up_last
from dqconvert.ops import op_of
from dqconvert.trace.note import note_of


class _Term(NamedTuple):
    """A term of a sum.

    Attributes:
        value: Codes, or a float32 matrix or row.
        weight: The constant of the codes' table, or of a factor, ``[1]``.
    """

    value: Node
    weight: Node


def fuse_sums(program: Program) -> Program:
    """Fuses sums of matrices, and the look-ups and factors of their terms, into the rounding behind them."""
    one = torch.ones(1, dtype=torch.float32)
    for node in list(program.graph.nodes):
        total = node.args[0] if node.target in (quantize, quantize_groups) else None
        if not isinstance(total, Node) or not _is_sum(total) or len(total.users) > 1:
            continue
        groups = node.args[2] if node.target is quantize_groups else None
        terms = _terms(program, total, note_of(total).sizes, one, groups)
        with program.graph.inserting_before(node):
            args = [term.value for term in terms], [term.weight for term in terms], node.args[1]
            new = program.call(quantize_sum, args if groups is None else (*args, groups), note_of(node))
        put_in_place(new, node)
    return program


def _is_sum(node: Node) -> bool:
    """True if a node adds up a float32 matrix and another one, or a row."""
    note = note_of(node)
    if op_of(node).name != "add" or len(node.args) != 2 or node.kwargs or note.dtype != torch.float32 or note.ndim != 2:
        return False
    fits = [isinstance(term, Node) and _fits(term, note.sizes) for term in node.args]
    return all(fits) and any(isinstance(term, Node) and _is_matrix(term, note.sizes) for term in node.args)


def _fits(term: Node, sizes: tuple[tuple[int, ...], ...]) -> bool:
    row = term.op == "get_attr" and note_of(term).dtype == torch.float32 and note_of(term).sizes == (sizes[0][1:],)
    return row or _is_matrix(term, sizes)


def _is_matrix(node: Node, sizes: tuple[tuple[int, ...], ...]) -> bool:
    return note_of(node).dtype == torch.float32 and note_of(node).sizes == sizes


def _terms(
    program: Program, total: Node, sizes: tuple[tuple[int, ...], ...], one: torch.Tensor, groups: object
) -> list[_Term]:
    """Returns what is added up, in order; the first two may change places, which changes no bit."""
    first, second = total.args
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    if _is_sum(second) and len(second.users) == 1 and not (_is_sum(first) and len(first.users) == 1):
        first, second = second, first
    if _is_sum(first) and len(first.users) == 1:
        before = _terms(program, first, sizes, one, groups)
    else:
        before = [_term(program, first, sizes, one, groups)]
    return [*before, _term(program, second, sizes, one, groups)]


def _term(program: Program, node: Node, sizes: tuple[tuple[int, ...], ...], one: torch.Tensor, groups: object) -> _Term:
    if len(node.users) == 1:
        if node.target is look_up_groups and node.args[2] is groups and isinstance(node.args[0], Node):
            table = program.tensor(node.args[1])
            by_column = table if table.dim() == 3 else table.unsqueeze(1)
            return _Term(node.args[0], program.constant(by_column, "table"))
        if node.target is look_up_last and isinstance(node.args[0], Node) and isinstance(node.args[1], Node):
            return _Term(node.args[0], node.args[1])
        if op_of(node).name == "mul" and len(node.args) == 2:
            for values, factor in (node.args, node.args[::-1]):
                if isinstance(values, Node) and _is_matrix(values, sizes) and _is_number(factor):
                    return _Term(values, _factor(program, factor))
    return _Term(node, program.constant(one, "one"))


def _is_number(factor: object) -> bool:
    if isinstance(factor, Node):
        return factor.op == "get_attr" and note_of(factor).sizes in (((),), ((1,),))
    return isinstance(factor, int | float)


def _factor(program: Program, factor: object) -> Node:
    """Returns a number as float32 ``[1]``, as which it multiplies float32."""
    if isinstance(factor, Node):
        return program.constant(program.tensor(factor).float().reshape(1), "factor")
    return program.constant(torch.tensor([float(factor)], dtype=torch.float32), "factor")  # type: ignore[arg-type]

"""Arguments that hold NaN are refused: no code stands for it, and a prediction that ignores it would be wrong."""

from __future__ import annotations

import operator

from dqconvert.fuse.context import reads_form
from dqconvert.kernels.integer.codes import check_numbers
from dqconvert.lower.program import Program
from dqconvert.ops import op_of
from dqconvert.rewrite.connectivity import input_name, is_input
from dqconvert.trace.globals import read_global
from dqconvert.trace.note import annotate, note_of


def refuse_nan(program: Program) -> Program:
    """Lets the operation that quantizes an argument look for NaN on the way.

    An argument that something else reads first is looked at before that.
    """
    graph = program.graph
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in order:
        note = note_of(node)
        taken_out = node.op == "placeholder" or node.target in (getattr, operator.getitem, read_global)
        if not (taken_out and is_input(node)) or not note.is_float or note.sparse:
            continue
        name = input_name(node) if node.op == "placeholder" else note.source.removeprefix("argument ")
        readers = [
            user for user in node.users if not reads_form(user) and user.op != "output" and not op_of(user).checks
        ]
        if not readers:
            continue
        first = min(readers, key=order.__getitem__)
        if op_of(first).refuses_nan and first.args[0] is node:
            first.kwargs = {**first.kwargs, "name": name}
            continue
        with graph.inserting_after(node):
            checked = annotate(graph.call_function(check_numbers, (node, name)), note)
        for user in readers:
            user.replace_input_with(node, checked)
    return program

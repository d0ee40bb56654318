"""Passes over an integer graph that is written: ``program → program``.

A pass changes a :class:`~dqconvert.lower.program.Program` in place and returns it. Their order, and what each needs, is
:data:`dqconvert.lower.PASSES`. Behind each, nodes that nothing reads are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dqconvert.lower.evaluation import remove_unused
from dqconvert.lower.program import Program

Pass = Callable[[Program], Program]


def run_passes(program: Program, passes: Iterable[Pass]) -> Program:
    """Returns a program after some passes, without nodes and constants that nothing reads."""
    remove_unused(program.graph)
    for rewrite in passes:
        program = rewrite(program)
        remove_unused(program.graph)
    program.drop_constants()
    return program

"""Lowering: prepared graph → integer graph, and the module that holds it.

Three steps for each graph of a prepared module:

1. :mod:`.evaluation` copies the graph as evaluation sees it, and :mod:`.check` refuses what has no ranges.
2. :mod:`.walk` writes the integer graph, a :class:`.program.Program`: each node by the first of the :mod:`.forms` that
   applies. :mod:`.values` says what is known of a value, :mod:`.lowering` what forms may ask.
3. The :mod:`.passes` rewrite it, in the order of :data:`PASSES`.

:mod:`.merge` joins the graphs of several methods, :mod:`.module` is what :func:`dqconvert.convert` returns, and
:mod:`.skeleton` its parts. :mod:`.runtime` holds the functions that integer graphs call besides the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch.fx import Node

from dqconvert.errors import GuardError, LoweringError
from dqconvert.lower.check import check_plain, check_ready
from dqconvert.lower.evaluation import evaluation_of, refused
from dqconvert.lower.left_out import not_done, settings
from dqconvert.lower.merge import merge
from dqconvert.lower.module import IntegerModule
from dqconvert.lower.passes import Pass, run_passes
from dqconvert.lower.passes.colors import fold_colors
from dqconvert.lower.passes.epilogues import fuse_tables, tables_to_planes
from dqconvert.lower.passes.nan import refuse_nan
from dqconvert.lower.passes.orders import cancel_orders, drop_checks, order_norms, pin_norms
from dqconvert.lower.passes.packing import pack_codes
from dqconvert.lower.passes.remember import remember_graph
from dqconvert.lower.passes.sharing import share_calls, share_sizes
from dqconvert.lower.passes.sums import fuse_sums
from dqconvert.lower.program import Program
from dqconvert.lower.report import Float, IntegerReport
from dqconvert.lower.skeleton import skeleton_of
from dqconvert.lower.walk import walk
from dqconvert.prepared import PreparedModule
from dqconvert.report import PreparedMethod
from dqconvert.trace.hooks import share_hooks
from dqconvert.trace.method import Method, words_of

PASSES: tuple[Pass, ...] = (
    share_sizes,  # needs nothing; rows are counted where they come from, so that sums in between have no other reader
    fuse_sums,  # needs look-ups that stand alone; gives one operation for a sum of several values and its rounding
    fuse_tables,  # needs the sums fused, which look up their terms; gives look-ups as epilogues
    refuse_nan,  # needs to know which operation quantizes an argument; gives that operation a check for NaN
    pack_codes,  # needs the epilogues; gives codes below 16 two to a byte between operations that can take them
    tables_to_planes,  # needs the packing, which reads the tables; gives a few numbers instead of 65,536
    share_sizes,  # again, for the operations that the sums and epilogues have become
    pin_norms,  # needs nothing; gives all layers norms of one dtype, so that they are equal calls
    share_calls,  # needs equal arguments; gives one sort, one norm, one order for all layers
    order_norms,  # needs norms and orders shared; gives the codes of a norm in the order of the sums
    cancel_orders,  # needs nothing; gives attention without leaving the order of the receivers
    drop_checks,  # needs the readers to be final; gives sorts without positions, checks made once
    fold_colors,  # needs one order for all layers; gives one row for all nodes that a layer cannot tell apart
    remember_graph,  # needs everything that depends on the graph alone to be final; gives modules that remember it
)
"""The passes behind the walk, in order. Any of them may be left out, and the outputs stay the same, bit for bit."""


def lower(module: PreparedModule, *, passes: Sequence[Pass] = PASSES) -> IntegerModule:
    """Returns the integer module of a prepared module that has ranges, with all of its methods.

    Args:
        passes: What to do with each integer graph once it is written: all of :data:`PASSES`, or some of them.

    Raises:
        LoweringError: If a quantizer has no range, or a weight is NaN.
    """
    first, *others = _evaluated(module)
    own, floats = _lower_graph(first, module, passes)
    prepared = [method.eval_graph or method.graph for method in (first, *others)]
    report = replace(
        IntegerReport.of(module.report.model, own.graph, floats),
        methods=module.report.methods,
        remarks=not_done(prepared),
        settings=settings(prepared, module),
    )
    more: list[Method] = []
    left_out: dict[str, str] = {}

    def take(method: Method, program: Program, floats: Mapping[Node, Float]) -> IntegerReport:
        """Adds one more lowered method to the module; returns the report that includes it."""
        merge(own.root, program.root, program.graph)
        more.append(Method(name=method.name, graph=program.graph, how=method.how))
        return report.and_of(IntegerReport.of(module.report.model, program.graph, floats))

    for method in others:
        try:
            program, floats = _lower_graph(method, module, passes)
        except LoweringError as error:
            if method.how == "named":
                raise LoweringError(f"{method.name}: {error}") from error
            left_out[method.name] = str(error)
        else:
            report = take(method, program, floats)
    skeleton, own_code = skeleton_of(module), dict(module.own_code)
    for method in module.plain_methods:
        try:
            check_plain(method, module, skeleton)
            program, floats = _lower_graph(method, module, passes)
        except (GuardError, LoweringError) as error:
            own_code[method.name] = f"{method.how}, and no graph that holds now ({error})"
            continue
        report = take(method, program, floats)
        entry = PreparedMethod(name=method.name, arguments=words_of(method.graph), how=method.how)
        read = settings([method.eval_graph or method.graph], module)
        report = replace(
            report, methods=(*report.methods, entry), settings=tuple(dict.fromkeys((*report.settings, *read)))
        )
    integer: IntegerModule = IntegerModule.build(
        own.root,
        own.graph,
        report=report,
        graph_method=module.graph_method,
        called_method=module.called_method,
        more_methods=tuple(more),
        own_code=own_code,
        left_out=left_out,
        skeleton=skeleton,
    )
    share_hooks(module, integer)
    return integer.eval()


def _evaluated(module: PreparedModule) -> list[Method]:
    """Returns the methods whose arguments the model takes in evaluation; first the one of them that ``graph`` is of.

    Raises:
        LoweringError: If the model takes arguments of no form there that the method was called on.
    """
    found = [method for method in module.all_methods() if refused(method.graph) is None]
    own = next((method for method in found if method.name == module.graph_method), None)
    if own is None:
        refusal = refused(module.graph)
        raise LoweringError(
            f"{module.graph_method}({words_of(module.graph)}) is what the model refuses in evaluation ({refusal}): "
            f"call the prepared module once, in evaluation, on arguments that it takes there, before convert."
        )
    return [own, *(method for method in found if method is not own)]


def _lower_graph(
    method: Method, module: PreparedModule, passes: Sequence[Pass]
) -> tuple[Program, Mapping[Node, Float]]:
    """Returns the finished integer graph of one method, and what stays in float there."""
    graph = evaluation_of(method.eval_graph or method.graph, module)
    check_ready(graph, module)
    lowering = walk(graph, module)
    return run_passes(lowering.program, passes), lowering.floats


__all__ = ["PASSES", "IntegerModule", "IntegerReport", "lower"]

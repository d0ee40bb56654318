"""Prepared graph → integer graph, and the module that holds it.

From the bottom: :mod:`.values` (what is known of a value), :mod:`.runtime` (functions that the integer graph calls),
:mod:`.tables` and :mod:`.movers` (functions of single entries, and of their places), :mod:`.builder` (writes the
graph), :mod:`.linear`, :mod:`.messages` and :mod:`.groups` (sums of integers), :mod:`.embedding`, :mod:`.lowering`
(the walk over the graph), :mod:`.sums` (sums of several values), :mod:`.compose` (tables into the operations before
them), :mod:`.inputs` (refuses NaN), :mod:`.packing` (codes below 16, two to a byte), :mod:`.orders` and
:mod:`.remember` (what depends on the graph alone), :mod:`.merge` (several methods), :mod:`.skeleton` (parts, and code
that is no graph), :mod:`.fold` (one row for all nodes that a layer cannot tell apart).
"""

from __future__ import annotations

from dataclasses import replace

from dqconvert.errors import LoweringError
from dqconvert.lower.check import check_ready
from dqconvert.lower.evaluation import evaluation_of, refused, remove_unused
from dqconvert.lower.left_out import not_done, settings
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.merge import merge
from dqconvert.lower.module import IntegerModule
from dqconvert.lower.passes.colors import fold
from dqconvert.lower.passes.compose import compose, planes
from dqconvert.lower.passes.inputs import refuse_nan
from dqconvert.lower.passes.orders import join_orders, look_once, one_dtype, order_norms
from dqconvert.lower.passes.packing import pack_codes
from dqconvert.lower.passes.remember import remember, share, share_sizes
from dqconvert.lower.passes.sums import sums
from dqconvert.lower.program import drop_constants
from dqconvert.lower.report import IntegerReport
from dqconvert.lower.skeleton import skeleton_of
from dqconvert.lower.walk import walk
from dqconvert.prepared import PreparedModule
from dqconvert.trace.method import Method, words_of


def lower(module: PreparedModule) -> IntegerModule:
    """The integer module of a prepared module that has ranges, with all of its methods.

    Raises:
        LoweringError: If a quantizer has no range, or a weight is NaN.
    """
    first, *others = _evaluated(module)
    lowering = _lower_graph(first, module)
    root, graph = lowering.program.root, lowering.program.graph
    prepared = [method.eval_graph or method.graph for method in (first, *others)]
    report = replace(
        IntegerReport.of(module.report.model, graph, lowering.floats),
        methods=module.report.methods,
        remarks=not_done(prepared),
        settings=settings(prepared, module),
    )
    more: list[Method] = []
    left_out: dict[str, str] = {}
    for method in others:
        try:
            lowering = _lower_graph(method, module)
        except LoweringError as error:
            if method.how == "named":
                raise LoweringError(f"{method.name}: {error}") from error
            left_out[method.name] = str(error)
            continue
        merge(root, lowering.program.root, lowering.program.graph)
        report = report.and_of(IntegerReport.of(module.report.model, lowering.program.graph, lowering.floats))
        more.append(Method(name=method.name, graph=lowering.program.graph, how=method.how))
    integer: IntegerModule = IntegerModule.build(
        root,
        graph,
        report=report,
        method=module.method,
        called_method=module.called_method,
        more_methods=tuple(more),
        own_code=module.own_code,
        left_out=left_out,
        skeleton=skeleton_of(module),
    )
    return integer.eval()


def _evaluated(module: PreparedModule) -> list[Method]:
    """The methods whose arguments the model takes in evaluation; first the one of them that ``graph`` is of.

    Raises:
        LoweringError: If the model takes arguments of no form there that the method was called on.
    """
    found = [method for method in module.all_methods() if refused(method.graph) is None]
    own = next((method for method in found if method.name == module.method), None)
    if own is None:
        refusal = refused(module.graph)
        raise LoweringError(
            f"{module.method}({words_of(module.graph)}) is what the model refuses in evaluation ({refusal}): call the "
            f"prepared module once, in evaluation, on arguments that it takes there, before convert."
        )
    return [own, *(method for method in found if method is not own)]


def _lower_graph(method: Method, module: PreparedModule) -> Lowering:
    """The integer graph of one method, finished."""
    graph = evaluation_of(method.eval_graph or method.graph, module)
    check_ready(graph, module)
    lowering = walk(graph, module)
    written = lowering.program.graph
    remove_unused(written)
    share_sizes(written)
    sums(lowering.program)
    compose(lowering.program)
    refuse_nan(written)
    pack_codes(lowering.program)
    planes(lowering.program)
    share_sizes(written)
    one_dtype(written)
    share(written)
    order_norms(written)
    join_orders(written)
    remove_unused(written)
    look_once(written)
    fold(written)
    remember(lowering.program)
    drop_constants(lowering.program)
    return lowering


__all__ = ["IntegerModule", "IntegerReport", "lower"]

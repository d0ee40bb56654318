"""Prepares a prepared module once more, from its float graphs; ranges that still fit stay."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch.fx import Graph

from dqconvert.fuse import fuse_method
from dqconvert.prepared.base import add_rewritten, fuse_more, rewrite_more
from dqconvert.prepared.float_view import float_view
from dqconvert.prepared.module import PreparedModule, assemble
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.rewrite.rewrite import no_quantizers, rewrite
from dqconvert.trace import Trace, TracedModule
from dqconvert.trace.method import Method


def prepare_again(prepared: PreparedModule, qconfig: QConfig, *, fuse: bool) -> PreparedModule:
    """Prepares a module with another config, on a copy of its present weights, with every method that it has.

    Args:
        prepared: The module; it is not changed.
        fuse: Whether groups of nodes run as one operator each.

    Raises:
        ConfigError: If a rule of the config matches nothing.
    """
    ledger = RuleLedger(qconfig)
    first, *others = prepared.all_methods()
    root = TracedModule.build(float_view(prepared), *_source(first))
    rewritten = rewrite(Trace(module=root, islands=prepared.islands).method(first.name), root, ledger)
    if not rewritten.found:
        raise no_quantizers()
    fused = fuse_method(rewritten.method, root, groups=fuse)
    report = prepared.report
    remarks = tuple(remark for remark in report.remarks if remark not in report.of_config)
    module = assemble(root, rewritten, fused, qconfig, called=prepared.called_method, fuse=fuse, remarks=remarks)
    for one in others:
        graph, eval_graph = _source(one)
        more = rewrite_more(module, replace(one, graph=graph, eval_graph=eval_graph), ledger)
        if more.found:
            add_rewritten(module, more, fuse_more(module, more))
    ledger.check()
    module.own_code, module.plain_methods = prepared.own_code, copy.deepcopy(prepared.plain_methods)
    _keep_ranges(prepared, module)
    return module


def _source(method: Method) -> tuple[Graph, Graph | None]:
    """Returns copies of the float graphs that a method was made of."""
    assert method.source is not None
    graph, eval_graph = method.source
    return copy.deepcopy(graph), copy.deepcopy(eval_graph)


def _keep_ranges(old: PreparedModule, new: PreparedModule) -> None:
    """Copies the ranges of quantizers that are in both modules, if they are of the same values, in the same groups."""
    known = dict(old.quantizers())
    if old.qconfig.norm != new.qconfig.norm:  # which rows that are sent are multiplied by
        sent = [entry.path for entry in new.report.entries if entry.role in ("feature", "message")]
        known = {path: quantizer for path, quantizer in known.items() if path not in sent}
    for path, quantizer in new.quantizers():
        before = known.get(path)
        alike = before is not None and before.spec.granularity == quantizer.spec.granularity
        if before is not None and alike and before.min_val.shape == quantizer.min_val.shape:
            state = before.state_dict()
            learned = "learned" in (before.spec.range, quantizer.spec.range)
            if learned and (before.spec, before.signed) != (quantizer.spec, quantizer.signed):  # in codes of its grid
                lo, hi = before.range
                state = {**quantizer.state_dict(), "min_val": lo, "max_val": hi}
            quantizer.load_state_dict(state)

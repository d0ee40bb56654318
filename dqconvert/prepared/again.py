"""Preparing a prepared module once more: back to its float graphs, and the ranges that still fit."""

from __future__ import annotations

import copy

from dqconvert.prepared.assemble import add_method, rewrite
from dqconvert.prepared.float_view import float_view
from dqconvert.prepared.module import PreparedModule
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.trace import Trace, TracedModule


def prepare_again(prepared: PreparedModule, qconfig: QConfig, *, fuse: bool) -> PreparedModule:
    """A prepared module with another config, on a copy of its present weights, with every method that it has.

    Args:
        prepared: The module; it is not changed.
        qconfig: The new config.
        fuse: Whether groups of nodes run as one operator each.

    Raises:
        ConfigError: If a rule of the config matches nothing.
    """
    graph, eval_graph = copy.deepcopy(prepared.source[0]), copy.deepcopy(prepared.source[1])
    traced = TracedModule.build(float_view(prepared), graph, eval_graph)
    trace = Trace(module=traced, islands=prepared.islands, remarks=prepared.report.remarks)
    ledger = RuleLedger(qconfig)
    method, called = prepared.method, prepared.called_method
    module = rewrite(trace, qconfig, method, fuse, called=called, ledger=ledger)
    for more in copy.deepcopy(prepared.more_methods):
        assert more.source is not None
        add_method(module, more.source, more.name, more.how, islands=more.islands, ledger=ledger)
    ledger.check()
    module.own_code = prepared.own_code
    _keep_ranges(prepared, module)
    return module


def _keep_ranges(old: PreparedModule, new: PreparedModule) -> None:
    """Copies the ranges of quantizers that are in both modules, if they have the same shape."""
    known = dict(old.quantizers())
    for path, quantizer in new.quantizers():
        before = known.get(path)
        if before is not None and before.min_val.shape == quantizer.min_val.shape:
            quantizer.load_state_dict(before.state_dict())

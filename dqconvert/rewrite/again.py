"""Preparing a prepared module once more: back to its float graph, and the ranges that still fit."""

from __future__ import annotations

import copy

from dqconvert.quant import FakeQuantize, Protection
from dqconvert.rewrite.module import PreparedModule
from dqconvert.rewrite.place import Quantizers
from dqconvert.trace import Trace, TracedModule


def traced_again(prepared: PreparedModule) -> Trace:
    """The float graph that a prepared module was made from, on a copy of its present weights."""
    module = copy.deepcopy(prepared)
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Quantizers | FakeQuantize | Protection):
                delattr(owner, name)
    _, _, state = module._parts()
    own = ("qconfig", "report", "source", "method", "islands")
    graph, eval_graph = module.source
    kept = {key: value for key, value in state.items() if key not in own}
    traced = TracedModule._assemble(module._user_class, kept, graph, eval_graph)
    return Trace(module=traced, islands=prepared.islands, remarks=prepared.report.remarks)


def keep_ranges(old: PreparedModule, new: PreparedModule) -> None:
    """Copies the ranges of quantizers that are in both modules, if they have the same shape."""
    known = dict(old.quantizers())
    for path, quantizer in new.quantizers():
        before = known.get(path)
        if before is not None and before.min_val.shape == quantizer.min_val.shape:
            quantizer.load_state_dict(before.state_dict())

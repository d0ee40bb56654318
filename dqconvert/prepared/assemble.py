"""Float graph in, prepared module out."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch.fx import Graph

from dqconvert.errors import TraceError
from dqconvert.prepared.module import PreparedModule
from dqconvert.prepared.undo import forget_keepers
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.report import PreparedMethod, Report
from dqconvert.rewrite.known import Known
from dqconvert.rewrite.rewrite import rewrite_graphs
from dqconvert.trace import Island, Trace
from dqconvert.trace.method import Method, words_of


def rewrite(
    trace: Trace,
    qconfig: QConfig,
    method: str = "forward",
    fuse: bool = True,
    *,
    called: str | None = None,
    ledger: RuleLedger | None = None,
) -> PreparedModule:
    """Inserts quantizers and protection into a traced model.

    Args:
        trace: From :func:`dqconvert.trace.trace`; it is used up.
        qconfig: What to quantize, and how.
        method: The method that the graph stands for.
        fuse: Whether groups of nodes run as one operator each.
        called: The method that calling the module runs, if that is another one.
        ledger: Keeps account of the rules, for a caller who checks them when other methods are rewritten, too.

    Raises:
        ConfigError: If a rule of the config matches nothing.
        TraceError: If the model has nothing to quantize.

    Example:
        >>> from torch_geometric.nn import SAGEConv
        >>> from dqconvert.qconfig import presets
        >>> from dqconvert.trace import trace
        >>> module = rewrite(trace(SAGEConv(8, 4)), presets["int8-dq"])
        >>> [entry.path for entry in module.report.entries][:2]
        ['quant.message', 'quant.aggregate']
    """
    root = trace.module
    source = (copy.deepcopy(root.graph), copy.deepcopy(root.eval_graph))
    rules = ledger or RuleLedger(qconfig)
    rewritten = rewrite_graphs(
        root, (root.graph, root.eval_graph), trace.islands, qconfig, rules, products=trace.products
    )
    if rewritten is None:
        raise TraceError(
            "the model has no weighted operation (a linear layer, a product with a parameter) and no message passing: "
            "there is nothing to quantize."
        )
    if ledger is None:
        rules.check()
    report = Report(
        model=root._user_class.__name__,
        entries=tuple(rewritten.entries),
        left_float=rewritten.left_float,
        remarks=trace.remarks,
        protection=rewritten.protection,
        methods=(PreparedMethod(name=method, arguments=words_of(root.graph), how="named"),),
    )
    graph, eval_graph, state = root._parts()
    del state["_objects"]  # the modules have quantizers now
    state |= {
        "qconfig": qconfig,
        "report": report,
        "source": source,
        "method": method,
        "called_method": called or method,
        "islands": trace.islands,
        "fuse": fuse,
        "user_fuse": state.get("fuse"),
    }
    return PreparedModule._assemble(root._user_class, state, graph, eval_graph)


def add_method(
    module: PreparedModule,
    graphs: tuple[Graph, Graph | None],
    name: str,
    how: str,
    *,
    islands: tuple[Island, ...] = (),
    products: tuple[Island, ...] = (),
    remarks: tuple[str, ...] = (),
    ledger: RuleLedger | None = None,
) -> Method | None:
    """Gives a prepared module the graph of one more method, which shares the quantizers that are there.

    Args:
        module: It; changed in place.
        graphs: What the float method does, in training and, where that differs, in evaluation; used up.
        name: Its name, behind the path of its part.
        how: How it came to be traced, in words for the report.
        islands: Modules that it calls whole.
        products: Layers whose messages its graphs cannot show.
        remarks: What the report is to say.
        ledger: Keeps account of the rules, likewise.

    Returns:
        What was added; ``None`` if there is nothing to quantize in it.
    """
    graph, eval_graph = graphs
    source = (copy.deepcopy(graph), copy.deepcopy(eval_graph))
    known = Known(module, module.report.entries, (g for method in module.all_methods() for g in method.graphs()))
    before = set(dict(module.named_modules()))
    rules = ledger or RuleLedger(module.qconfig)
    rewritten = rewrite_graphs(module, graphs, islands, module.qconfig, rules, known, products)
    if rewritten is None:
        return None
    forget_keepers(module)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    for path, child in module.named_modules():
        if path not in before:
            child.to(device)
    report = module.report
    entry = PreparedMethod(name=name, arguments=words_of(graph), how=how)
    module.report = replace(
        report,
        entries=(*report.entries, *rewritten.entries),
        left_float=tuple(dict.fromkeys((*report.left_float, *rewritten.left_float))),
        remarks=tuple(dict.fromkeys((*report.remarks, *remarks))),
        protection=tuple(dict.fromkeys((*report.protection, *rewritten.protection))),
        methods=(*(m for m in report.methods if (m.name, m.how) != (name, DEFERRED)), entry),
    )
    method = Method(name=name, graph=graph, eval_graph=eval_graph, source=source, islands=islands, how=how)
    module.add_method(method)
    return method


DEFERRED = "named, traced at its first call"
"""How the report says that a named method had no inputs yet."""

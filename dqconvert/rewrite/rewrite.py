"""Float graph in, prepared module out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import TraceError
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.quant import Protection
from dqconvert.report import Entry, LeftFloat, PreparedMethod, Report
from dqconvert.rewrite.known import Known
from dqconvert.rewrite.module import PreparedModule
from dqconvert.rewrite.open import open_leaves
from dqconvert.rewrite.place import Placer, Quantizers, attach, container_name
from dqconvert.rewrite.protect import ARGUMENT, Masks
from dqconvert.rewrite.roles import Roles
from dqconvert.rewrite.spaces import RowSpaces, parameter_paths
from dqconvert.rewrite.undo import forget_keepers
from dqconvert.trace import Island, Trace
from dqconvert.trace.leaves import WEIGHTED_MODULES
from dqconvert.trace.method import Method, words_of
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.products import cut_products, use_products
from dqconvert.trace.runtime import stage_output


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
    rewritten = _rewrite_graphs(
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
    rewritten = _rewrite_graphs(module, graphs, islands, module.qconfig, rules, known, products)
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


@dataclass(frozen=True)
class _Rewritten:
    entries: list[Entry]
    left_float: tuple[LeftFloat, ...]
    protection: tuple[str, ...]


def _rewrite_graphs(
    root: nn.Module,
    graphs: tuple[Graph, Graph | None],
    islands: tuple[Island, ...],
    qconfig: QConfig,
    ledger: RuleLedger,
    known: Known | None = None,
    products: tuple[Island, ...] = (),
) -> _Rewritten | None:
    """Rewrites the graphs of one method in place, and gives ``root`` the modules that they call; ``None``: there is
    nothing to quantize."""
    whole = frozenset(island.module for island in islands)
    graph, eval_graph = graphs
    train = Placer(root, ledger, known=known)
    prefix = container_name(root)
    protections = _protections(root, prefix)
    if not _rewrite_graph(root, graph, qconfig, train, whole, protections):
        return None
    placers = [train]
    if eval_graph is not None:
        placers.append(Placer(root, ledger, training=train))
        _rewrite_graph(root, eval_graph, qconfig, placers[1], whole, protections)
    for name, protection in protections.items():
        attach(root, f"{prefix}.{name}", protection)
    left = [left for placer in placers for left in placer.left_float]
    left += [LeftFloat(what=i.module, reason=f"the module {i.reason}", source=i.source) for i in islands]
    left += [
        LeftFloat(what=f"{p.module or 'the root module'}: message", reason=p.reason, source=p.source) for p in products
    ]
    left += _closed(root, graph)
    return _Rewritten(train.entries, tuple(dict.fromkeys(left)), tuple(f"{prefix}.{name}" for name in protections))


def _protections(root: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """What draws protected nodes for the methods that were rewritten before, by name."""
    container = getattr(root, prefix, None)
    found = dict(container.named_children()) if isinstance(container, Quantizers) else {}
    return {name: child for name, child in found.items() if isinstance(child, Protection)}


def _rewrite_graph(
    root: nn.Module,
    graph: Graph,
    qconfig: QConfig,
    placer: Placer,
    islands: frozenset[str],
    protections: dict[str, nn.Module],
) -> bool:
    """Rewrites one graph in place, and returns whether there was anything to quantize."""
    open_leaves(graph, root)
    products = cut_products(graph)
    rows = RowSpaces(graph, parameter_paths(root))
    sites = Roles(graph, root, rows, islands).find()
    if not sites:
        return False
    _add_argument(graph)
    masks = None
    if qconfig.protect is not None:
        masks = Masks(graph, rows, qconfig.protect, protections, container_name(root))
    placer.place(graph, sites, masks)
    # Where no quantizer came between a layer's inputs and its messages.
    use_products(
        graph,
        products,
        placer.quantized,
        lambda messages, sources: placer.quantizers_before([messages]) == placer.quantizers_before(sources),
    )
    erase_marks(graph)
    return True


def _add_argument(graph: Graph) -> None:
    """Adds the optional keyword argument ``protect_prob``, behind the user's own arguments."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    before = next((node for node in inputs if str(node.target).startswith("**")), None)
    if before is not None:
        place = graph.inserting_before(before)
    else:
        place = graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before(next(iter(graph.nodes)))
    with place:
        annotate(graph.create_node("placeholder", ARGUMENT, (None,)), Note(source=f"argument {ARGUMENT!r}"))


def erase_marks(graph: Graph) -> None:
    """Takes the identity nodes out that marked the stages; what they marked is quantized by now."""
    for node in list(graph.nodes):
        if node.target is stage_output:
            value = node.args[0]
            assert isinstance(value, Node)
            node.replace_all_uses_with(value)
            graph.erase_node(node)


def _closed(root: nn.Module, graph: Graph) -> list[LeftFloat]:
    """Weighted layers that are still called as a whole."""
    found = []
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), WEIGHTED_MODULES):
            why = "it has hooks, or changes its own weights, and is called as it is"
            found.append(LeftFloat(what=str(node.target), reason=why, source=""))
    return found

"""Float graph in, prepared module out."""

from __future__ import annotations

import copy

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import TraceError
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.report import LeftFloat, Report
from dqconvert.rewrite.module import PreparedModule
from dqconvert.rewrite.open import open_leaves
from dqconvert.rewrite.place import Placer, attach, container_name
from dqconvert.rewrite.protect import ARGUMENT, Masks
from dqconvert.rewrite.roles import Roles
from dqconvert.rewrite.spaces import RowSpaces, parameter_paths
from dqconvert.trace import Trace
from dqconvert.trace.leaves import WEIGHTED_MODULES
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.products import cut_products, use_products
from dqconvert.trace.runtime import stage_output


def rewrite(trace: Trace, qconfig: QConfig, method: str = "forward", fuse: bool = True) -> PreparedModule:
    """Inserts quantizers and protection into a traced model.

    Args:
        trace: From :func:`dqconvert.trace.trace`; it is used up.
        qconfig: What to quantize, and how.
        method: The method that the graph stands for.
        fuse: Whether groups of nodes run as one operator each.

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
    ledger = RuleLedger(qconfig)
    islands = {island.module: island for island in trace.islands}
    train = Placer(root, ledger)
    protections: dict[str, nn.Module] = {}
    _rewrite_graph(root, root.graph, qconfig, train, frozenset(islands), protections)
    placers = [train]
    if root.eval_graph is not None:
        placers.append(Placer(root, ledger, known=train.placed))
        _rewrite_graph(root, root.eval_graph, qconfig, placers[1], frozenset(islands), protections)
    ledger.check()
    prefix = container_name(root)
    for name, protection in protections.items():
        attach(root, f"{prefix}.{name}", protection)
    left = [left for placer in placers for left in placer.left_float]
    left += [LeftFloat(what=i.module, reason=f"the module {i.reason}", source=i.source) for i in islands.values()]
    left += [
        LeftFloat(what=f"{p.module or 'the root module'}: message", reason=p.reason, source=p.source)
        for p in trace.products
    ]
    left += _closed(root)
    report = Report(
        model=root._user_class.__name__,
        entries=tuple(train.entries),
        left_float=tuple(dict.fromkeys(left)),
        remarks=trace.remarks,
        protection=tuple(f"{prefix}.{name}" for name in protections),
    )
    graph, eval_graph, state = root._parts()
    state |= {
        "qconfig": qconfig,
        "report": report,
        "source": source,
        "method": method,
        "islands": trace.islands,
        "fuse": fuse,
    }
    return PreparedModule._assemble(root._user_class, state, graph, eval_graph)


def _rewrite_graph(
    root: nn.Module,
    graph: Graph,
    qconfig: QConfig,
    placer: Placer,
    islands: frozenset[str],
    protections: dict[str, nn.Module],
) -> None:
    open_leaves(graph, root)
    products = cut_products(graph)
    rows = RowSpaces(graph, parameter_paths(root))
    sites = Roles(graph, root, rows, islands).find()
    if not sites:
        raise TraceError(
            "the model has no weighted operation (a linear layer, a product with a parameter) and no message passing: "
            "there is nothing to quantize."
        )
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


def _closed(root: nn.Module) -> list[LeftFloat]:
    """Weighted layers that are still called as a whole."""
    found = []
    for node in root.graph.nodes:  # type: ignore[union-attr]
        if node.op == "call_module" and isinstance(root.get_submodule(node.target), WEIGHTED_MODULES):
            why = "it has hooks, or changes its own weights, and is called as it is"
            found.append(LeftFloat(what=node.target, reason=why, source=""))
    return found

"""Float graph in, prepared module out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, Node

from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.quant import Protection
from dqconvert.report import Entry, LeftFloat
from dqconvert.rewrite.known import Known
from dqconvert.rewrite.open import open_leaves
from dqconvert.rewrite.place import Placer, Quantizers, attach, container_name
from dqconvert.rewrite.protect import ARGUMENT, Masks
from dqconvert.rewrite.roles import Roles
from dqconvert.rewrite.spaces import RowSpaces, parameter_paths
from dqconvert.trace import Island
from dqconvert.trace.leaves import WEIGHTED_MODULES
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.products import cut_products, use_products
from dqconvert.trace.runtime import stage_output


@dataclass(frozen=True)
class Rewritten:
    entries: list[Entry]
    left_float: tuple[LeftFloat, ...]
    protection: tuple[str, ...]


def rewrite_graphs(
    root: nn.Module,
    graphs: tuple[Graph, Graph | None],
    islands: tuple[Island, ...],
    qconfig: QConfig,
    ledger: RuleLedger,
    known: Known | None = None,
    products: tuple[Island, ...] = (),
) -> Rewritten | None:
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
    return Rewritten(train.entries, tuple(dict.fromkeys(left)), tuple(f"{prefix}.{name}" for name in protections))


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

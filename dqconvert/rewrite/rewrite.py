"""Float graphs in, graphs with quantizers and protection out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import TraceError
from dqconvert.qconfig import RuleLedger
from dqconvert.quant import Protection
from dqconvert.report import Entry, LeftFloat
from dqconvert.rewrite.dropouts import Dropouts
from dqconvert.rewrite.known import Known
from dqconvert.rewrite.norms import fold_norms
from dqconvert.rewrite.open import open_leaves
from dqconvert.rewrite.place import Placer, Quantizers, attach, container_name
from dqconvert.rewrite.protect import ARGUMENT, Masks
from dqconvert.rewrite.roles import Roles
from dqconvert.rewrite.spaces import RowSpaces, parameter_paths
from dqconvert.trace import Island
from dqconvert.trace.leaves import WEIGHTED_MODULES
from dqconvert.trace.method import Method
from dqconvert.trace.module import write_nowhere
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.products import Product, cut_products, use_products
from dqconvert.trace.runtime import stage_output


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A method whose graphs call quantizers.

    Attributes:
        method: The graphs, and the float graphs that they were made of; these alone if there is nothing to quantize.
        entries: The quantizers that are new.
        left_float: The values that stay in float.
        protection: Paths of the modules that draw the protected nodes.
        remarks: What else the report is to say.
        found: Whether there is anything to quantize.
    """

    method: Method
    entries: tuple[Entry, ...]
    left_float: tuple[LeftFloat, ...]
    protection: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    found: bool = True


def rewrite(
    method: Method,
    root: nn.Module,
    ledger: RuleLedger,
    *,
    known: Known | None = None,
    products: tuple[Island, ...] = (),
) -> Rewritten:
    """Inserts quantizers and protection into the graphs of a method.

    Args:
        method: The float graphs; they are used up.
        root: The module that they are of; it gets the quantizers.
        ledger: Applies the rules of the config, and keeps account of them.
        known: The quantizers that ``root`` has already; those on the same values are shared.
        products: Layers whose messages the graphs cannot show.

    Returns:
        The rewritten method; as it was, if there is nothing to quantize in it.

    Example:
        >>> from torch_geometric.nn import SAGEConv
        >>> from dqconvert.qconfig import presets
        >>> from dqconvert.trace import trace
        >>> found = trace(SAGEConv(8, 4))
        >>> rewritten = rewrite(found.method("forward"), found.module, RuleLedger(presets["int8-dq"]))
        >>> [entry.path for entry in rewritten.entries][:2]
        ['quant.message', 'quant.aggregate']
    """
    graph, eval_graph = method.graph, method.eval_graph
    source = (copy.deepcopy(graph), copy.deepcopy(eval_graph))
    write_nowhere(root, graph, eval_graph)
    whole = frozenset(island.module for island in method.islands)
    train = Placer(root, ledger, known=known)
    prefix = container_name(root)
    protections = _protections(root, prefix)
    graphs = [graph] if eval_graph is None else [graph, eval_graph]
    for one in graphs:
        open_leaves(one, root)
    cut = [cut_products(one) for one in graphs]
    if ledger.qconfig.norm == "nodes":
        train.remarks += fold_norms(graphs, root)
    if not _rewrite_graph(root, graph, train, whole, protections, cut[0]):
        plain = replace(method, graph=source[0], eval_graph=source[1])
        return Rewritten(method=plain, entries=(), left_float=(), protection=(), found=False)
    placers = [train]
    if eval_graph is not None:
        placers.append(Placer(root, ledger, training=train))
        _rewrite_graph(root, eval_graph, placers[1], whole, protections, cut[1])
    for name, protection in protections.items():
        attach(root, f"{prefix}.{name}", protection)
    left = [left for placer in placers for left in placer.left_float]
    left += [LeftFloat(what=i.module, reason=f"the module {i.reason}", source=i.source) for i in method.islands]
    left += [
        LeftFloat(what=f"{p.module or 'the root module'}: message", reason=p.reason, source=p.source) for p in products
    ]
    left += _closed(root, graph)
    remarks = tuple(dict.fromkeys(remark for placer in placers for remark in placer.remarks))
    return Rewritten(
        method=replace(method, source=source),
        entries=tuple(train.entries),
        left_float=tuple(dict.fromkeys(left)),
        protection=tuple(f"{prefix}.{name}" for name in protections),
        remarks=remarks,
    )


def no_quantizers() -> TraceError:
    """Returns the error about a model that :func:`rewrite` finds nothing in."""
    return TraceError(
        "the model has no weighted operation (a linear layer, a product with a parameter) and no message passing: "
        "there is nothing to quantize."
    )


def _protections(root: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Returns the modules that draw protected nodes for methods that were rewritten before, by name."""
    container = getattr(root, prefix, None)
    found = dict(container.named_children()) if isinstance(container, Quantizers) else {}
    return {name: child for name, child in found.items() if isinstance(child, Protection)}


def _rewrite_graph(
    root: nn.Module,
    graph: Graph,
    placer: Placer,
    islands: frozenset[str],
    protections: dict[str, nn.Module],
    products: list[Product],
) -> bool:
    """Rewrites one graph in place, whose products were cut out of it.

    Returns:
        True if there was anything to quantize.
    """
    dropouts = Dropouts(graph, root) if placer.ledger.qconfig.placement == "before_dropout" else None
    if dropouts is not None:
        dropouts.move_behind_messages()
    rows = RowSpaces(graph, parameter_paths(root))
    sites = Roles(graph, root, rows, islands, dropouts).find()
    if not sites:
        return False
    _add_argument(graph)
    masks = None
    if (protect := placer.ledger.qconfig.protect) is not None:
        masks = Masks(graph, rows, protect, protections, container_name(root))
    placer.place(graph, sites, masks, rows)
    placer.remarks += [] if dropouts is None else dropouts.remarks
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
    """Erases the identity nodes that marked the stages; what they marked is quantized by now."""
    for node in list(graph.nodes):
        if node.target is stage_output:
            value = node.args[0]
            assert isinstance(value, Node)
            node.replace_all_uses_with(value)
            graph.erase_node(node)


def _closed(root: nn.Module, graph: Graph) -> list[LeftFloat]:
    """Returns the weighted layers that are still called as a whole."""
    found = []
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), WEIGHTED_MODULES):
            why = "it has hooks, or changes its own weights, and is called as it is"
            found.append(LeftFloat(what=str(node.target), reason=why, source=""))
    return found

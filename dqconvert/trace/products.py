"""Layers over sparse adjacencies whose result a graph holds twice: added up from messages, and as PyG's one product.

Messages are what a quantizer needs. Where a config quantizes none of a layer's, the product takes their place, which
adds in another order: what is left in float is what the float model computes, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from dqconvert.trace import verify
from dqconvert.trace.guards import guard
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.merge import erase_unused
from dqconvert.trace.module import TracedModule
from dqconvert.trace.note import Stage, note_of
from dqconvert.trace.runtime import either
from dqconvert.words import raised


@dataclass(frozen=True)
class ProductStep:
    """One call of a product; its arguments may name the calls before it, and nodes of the layer's graph."""

    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Product:
    """A layer's product, taken out of its graph.

    Attributes:
        messages: The node that holds the same result, added up from messages.
        result: What holds the product's: one of the calls.
        steps: The calls that compute it, in order.
    """

    messages: Node
    result: Node
    steps: tuple[ProductStep, ...]

    def sources(self) -> set[Node]:
        """Returns the nodes of the layer's graph that the product is computed from."""
        found: set[Node] = {self.result}
        for step in self.steps:
            map_arg((step.args, step.kwargs), found.add)
        return found - {step.node for step in self.steps}


def cut_products(graph: Graph) -> list[Product]:
    """Takes all products out of a graph, in place, so that messages are all that is left."""
    found: list[Product] = []
    for mark in list(graph.find_nodes(op="call_function", target=either)):
        messages, result = mark.args[:2]
        assert isinstance(messages, Node)
        assert isinstance(result, Node)
        mark.replace_all_uses_with(messages)
        graph.erase_node(mark)
        found.append(_cut(graph, messages, result))
    return found


def _cut(graph: Graph, messages: Node, result: Node) -> Product:
    propagation = note_of(messages).propagation
    steps: list[ProductStep] = []
    for node in reversed(list(graph.nodes)):
        note = note_of(node)
        inside = note.stage is Stage.PRODUCT and note.propagation == propagation
        # A comparison of sizes stays: the messages rely on it, too.
        if inside and not node.users and node.target is not guard:
            steps.append(ProductStep(node, node.args, dict(node.kwargs)))
            graph.erase_node(node)
    return Product(messages, result, tuple(reversed(steps)))


def use_products(
    graph: Graph,
    products: Iterable[Product],
    now: Mapping[Node, Node] | None = None,
    where: Callable[[Node, Collection[Node]], bool] = lambda messages, sources: True,
) -> None:
    """Puts products in the places of their messages.

    Args:
        graph: The graph that they were taken out of; changed in place.
        products: From :func:`cut_products`.
        now: What stands in the graph for a node of then, where that is another.
        where: Whether to, by the messages' result and what the product would be computed from.
    """
    known: dict[Node, Node] = {}
    for product in products:
        sources = {node: (now or {}).get(node, known.get(node, node)) for node in product.sources()}
        if where(product.messages, sources.values()):
            known[product.messages] = _use(graph, product, sources)


def _use(graph: Graph, product: Product, now: Mapping[Node, Node]) -> Node:
    made: dict[Node, Node] = dict(now)
    last = product.messages
    for step in product.steps:
        with graph.inserting_after(last):
            args, kwargs = map_arg((step.args, step.kwargs), lambda node: made.get(node, node))
            last = graph.create_node(step.node.op, step.node.target, args, kwargs)
        last.meta.update(step.node.meta)
        made[step.node] = last
    own, result = {made[step.node] for step in product.steps}, made.get(product.result, product.result)
    product.messages.replace_all_uses_with(result, delete_user_cb=lambda user: user not in own)
    _erase_messages(graph, product, own)
    return result


def keep_products(traced: TracedModule, model: nn.Module, inputs: Iterable[Inputs], method: str) -> str | None:
    """Leaves the products in a traced module if with them it computes what the model computes; else takes them out.

    Args:
        traced: Its graphs are changed in place.
        model: As it was given: it computes products itself.
        inputs: To compare the two on.
        method: What the graph stands for.

    Returns:
        What the user should know.
    """
    if not any(graph.find_nodes(op="call_function", target=either) for graph in traced.graphs()):
        return None
    with_products = copy.deepcopy(traced)
    for graph in with_products.graphs():
        use_products(graph, cut_products(graph))
    with_products.recompile()
    different = next(filter(None, (_differs(with_products, model, one, method) for one in inputs)), None)
    if different is None:
        return None
    for graph in traced.graphs():
        cut_products(graph)
    traced.recompile()
    return (
        f"over a sparse adjacency the graph adds messages one by one, also where nothing is quantized: the last bits "
        f"may not be the float model's (its product was recorded, and {different})"
    )


def _differs(with_products: TracedModule, model: nn.Module, inputs: Inputs, method: str) -> str | None:
    for training in inputs.modes:
        try:
            different = verify.compare(model, method, with_products, inputs, training, as_given=True)
        except (RuntimeError, NotImplementedError) as error:  # a product that torch cannot differentiate
            different = raised(error)
        if different is not None:
            return different
    return None


def _erase_messages(graph: Graph, product: Product, kept: Collection[Node]) -> None:
    """Erases what only served the messages, and the checks that they asked for."""
    propagation = note_of(product.messages).propagation
    inside = (Stage.MESSAGE, Stage.AGGREGATE, Stage.UPDATE)

    def serves(node: Node) -> bool:
        note = note_of(node)
        own = note.propagation == propagation and node not in kept
        return own and (node.target is not guard or note.stage in inside)

    erase_unused(graph, serves)

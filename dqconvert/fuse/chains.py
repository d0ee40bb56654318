"""Fuses chains: quantizers of node features with a sum and a ReLU between them, and the operation before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeGuard

from torch.fx import Node

from dqconvert.fuse.context import Context, groups_of, only_user, protection_of, reads_form
from dqconvert.ops import op_of
from dqconvert.quant.fused import FusedChain, batch_norm, chain, linear
from dqconvert.quant.fused_messages import message_passing
from dqconvert.rewrite.derive import Size
from dqconvert.trace.note import annotate, note_of


def fuse_chains(context: Context) -> None:
    """Replaces ``third(relu(second(first(x) + ...)))``, or a part of it, by :func:`dqconvert.quant.fused.chain`.

    All quantizers of a chain have the same protection, and no value within it is used elsewhere. A linear layer or the
    message passing that alone makes the rows becomes part of the operator. A quantizer alone, of other rows, stays as
    it is.
    """
    done: set[Node] = set()
    for node in list(context.graph.nodes):
        if node not in done and context.is_quantizer(node) and isinstance(node.args[0], Node):
            found = _chain_from(context, node)
            done.update(found.nodes)
            source = _source(context, found)
            if source is not None or (len(found.nodes) > 1 and context.undisturbed(found.nodes)):
                _write(context, found, source)


@dataclass(frozen=True, kw_only=True)
class _Added:
    """The term that a chain adds: ``bias``, or ``other``, or ``alpha * other``.

    Attributes:
        bias: A vector, the same for all rows.
        other: A tensor of the chain's own shape.
        alpha: A tensor of one element.
        product: The node that multiplies both; it becomes part of the chain.
    """

    bias: Node | None = None
    other: Node | None = None
    alpha: Node | None = None
    product: Node | None = None


@dataclass(frozen=True, kw_only=True)
class _ChainNodes:
    """The nodes that become one operator, named as in :func:`dqconvert.quant.fused.chain`.

    Attributes:
        nodes: The group, in order.
        first: The call of the quantizer before the sum; ``None`` where nothing is added.
        added: What is added.
        second: The call of the quantizer behind the sum, or of the only one.
        relu: Whether a ReLU comes next.
        third: The call of the quantizer behind that; ``None``: there is none.
    """

    nodes: tuple[Node, ...]
    first: Node | None
    added: _Added
    second: Node
    relu: bool
    third: Node | None


# -- finding them ------------------------------------------------------------------------------------------------


def _chain_from(context: Context, start: Node) -> _ChainNodes:
    """Returns the longest chain that begins with the call of a quantizer, which may be all there is of it."""

    def follows(user: Node | None) -> TypeGuard[Node]:
        """True if a node is a quantizer with the same protection, and the same groups of rows."""
        return user is not None and context.is_quantizer(user) and _same_rows(user, start)

    first, added, second, third, nodes = None, _Added(), start, None, [start]
    add = only_user(start)
    total = None if add is None else _added(add, start)
    if add is not None and total is not None and follows(behind := only_user(add)):
        first, added, second = start, total, behind
        nodes += [add, behind] if total.product is None else [total.product, add, behind]
    relu = only_user(second)
    if relu is None or not _is_relu(context, relu):
        return _ChainNodes(nodes=tuple(nodes), first=first, added=added, second=second, relu=False, third=None)
    nodes.append(relu)
    if follows(last := only_user(relu)):
        third = last
        nodes.append(last)
    return _ChainNodes(nodes=tuple(nodes), first=first, added=added, second=second, relu=True, third=third)


def _added(add: Node, start: Node) -> _Added | None:
    """Returns the term that is added to ``start``: a bias, or a tensor of the same shape, perhaps times a scalar."""
    if op_of(add).name != "add" or add.kwargs or len(add.args) != 2:
        return None
    other = add.args[1] if add.args[0] is start else add.args[0]
    shape = note_of(start).sizes
    if not isinstance(other, Node) or other is start or note_of(add).sizes != shape or not shape:
        return None
    if note_of(other).dtype != note_of(start).dtype:
        return None
    if note_of(other).sizes == shape:
        scaled = _scaled(other, shape) if len(other.users) == 1 else None
        return scaled or _Added(other=other)
    vector = all(size == (before[-1],) for size, before in zip(note_of(other).sizes, shape, strict=True))
    return _Added(bias=other) if vector and len(set(note_of(other).sizes)) == 1 else None


def _scaled(product: Node, shape: tuple[Size, ...]) -> _Added | None:
    """Returns the scalar and the tensor of a product with a tensor of one element."""
    if op_of(product).name != "mul" or len(product.args) != 2 or product.kwargs:
        return None
    for scalar, tensor in (product.args, product.args[::-1]):
        if isinstance(scalar, Node) and isinstance(tensor, Node) and note_of(tensor).sizes == shape:
            one = note_of(scalar).sizes
            if one and all(size in ((), (1,)) for size in one) and note_of(scalar).dtype == note_of(tensor).dtype:
                return _Added(other=tensor, alpha=scalar, product=product)
    return None


def _same_rows(one: Node, other: Node) -> bool:
    return protection_of(one) is protection_of(other) and groups_of(one) is groups_of(other)


def _is_relu(context: Context, node: Node) -> bool:
    return op_of(node, context.plain_module(node)).name == "relu"


def fuse_entries(context: Context) -> None:
    """Fuses a quantizer into the linear layer behind it, where it is no part of a chain and serves that layer alone."""
    for node in list(context.graph.nodes):
        if node.op != "call_function" or node.target is not linear:
            continue
        quantize, *rest = node.args
        if not isinstance(quantize, Node) or len(quantize.users) > 1 or not context.is_quantizer(quantize):
            continue
        own = protection_of(quantize), groups_of(quantize)
        protected, groups = (rest[3], rest[5] if len(rest) > 5 else None) if len(rest) > 3 else own
        if protected is own[0] and groups is own[1] and context.undisturbed((quantize, node)):
            _enter(context, quantize, node, own)


# -- writing them ------------------------------------------------------------------------------------------------


SOURCES: Mapping[Any, tuple[str, int]] = MappingProxyType(
    {linear: ("linear", 3), batch_norm: ("batch norm", 2), message_passing: ("message passing", 11)}
)
"""What can send its rows straight into a chain: its name in the report, and its number of arguments before that."""


def _given(groups: Any) -> tuple[Any, ...]:
    return () if groups is None else (groups,)


def _of_chain(source: Node, groups: Any) -> tuple[Any, ...]:
    """Returns the arguments of an operation behind its chain: of a linear layer there is its entry between them."""
    return (None, *_given(groups)) if source.target is linear and groups is not None else _given(groups)


def _source(context: Context, found: _ChainNodes) -> Node | None:
    """Returns the operation that makes the rows of a chain, if it can be part of the operator."""
    source = found.nodes[0].args[0]
    assert isinstance(source, Node)
    if source.op != "call_function" or source.target not in SOURCES or source.kwargs:
        return None
    # What reads the form of a value within the group would have nothing left to read it from.
    alone = all(len(node.users) == 1 for node in (source, *found.nodes[:-1]))
    if source.target is message_passing and "max" in source.args:
        return None  # the largest messages go through no chain
    ends = source.args[SOURCES[source.target][1] :]
    # There is no chain yet, but messages may have groups: their sums have them, too, or are left alone.
    fits = alone and not any(ends[:2]) and (not ends or groups_of(found.nodes[0]) is ends[-1])
    return source if fits and context.undisturbed((source, *found.nodes)) else None


def _enter(context: Context, quantize: Node, node: Node, own: tuple[Any, Any]) -> None:
    graph = context.graph
    with graph.inserting_before(node):
        entry = graph.get_attr(str(quantize.target))
        args = (quantize.args[0], *node.args[1:4], *(None,) * (4 - len(node.args)), own[0], entry, *_given(own[1]))
        new = annotate(graph.call_function(linear, args), note_of(node))
    before = context.fusions.get(node)
    context.replace((quantize, node), new, "quantizer, " + (before.op if before is not None else "linear"))


def _write(context: Context, found: _ChainNodes, source: Node | None) -> None:
    graph, start, end = context.graph, found.nodes[0], found.nodes[-1]
    form, added = start.args[0], found.added

    def module(quantize: Node | None) -> Node | None:
        return None if quantize is None else graph.get_attr(str(quantize.target))

    with graph.inserting_before(end):
        first, second, third = (module(quantize) for quantize in (found.first, found.second, found.third))
        # With nodes for its fields, which the graph's code fills in.
        steps: Any = FusedChain(first, added.bias, added.other, added.alpha, second, found.relu, third)  # type: ignore[arg-type]
        if source is None:
            new = graph.call_function(chain, (form, steps, protection_of(start), *_given(groups_of(start))))
        else:
            assert callable(source.target)
            count = SOURCES[source.target][1]
            own, missing = source.args[:count], (None,) * (count - len(source.args))
            more = _of_chain(source, groups_of(start))
            new = graph.call_function(source.target, (*own, *missing, steps, protection_of(start), *more))
        annotate(new, note_of(end))
    assert isinstance(form, Node)
    for node in found.nodes[:-1]:
        for user in [user for user in node.users if reads_form(user)]:
            user.replace_input_with(node, form)  # every value in a chain has the form of the first
    if source is None:
        context.replace(found.nodes, new, "chain")
    else:
        context.replace((source, *found.nodes), new, f"{SOURCES[source.target][0]}, chain")

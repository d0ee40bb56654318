"""The graph that a prepared module runs: the prepared graph, with groups of nodes replaced by one operator each.

The prepared graph stays what is saved, shown and prepared again; this one is made from it whenever code is generated.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops

from dqconvert.quant import FakeQuantize, gather_protected
from dqconvert.quant.fused import EdgeOrders, Remembered, chain, dropout, linear, message_passing, own_memory
from dqconvert.report import Fusion
from dqconvert.rewrite.place import attach, container_name
from dqconvert.rewrite.spaces import end_of_edges, gather
from dqconvert.trace.note import annotate, note_of
from dqconvert.trace.ops import op_name

AGGREGATIONS: dict[type[nn.Module], bool] = {SumAggregation: False, MeanAggregation: True}
"""Aggregations that the fused message passing knows, and whether they average."""


REMEMBERED = (gcn_norm, add_self_loops, remove_self_loops, add_remaining_self_loops)
"""Functions whose results depend, without edge weights, on the graph alone."""

STAND_INS: dict[Any, Any] = {
    torch.nn.functional.linear: linear,
    torch.nn.functional.dropout: dropout,
}
"""Functions that have a counterpart with the same results."""


def fuse(graph: Graph, root: nn.Module) -> tuple[Graph, tuple[Fusion, ...]]:
    """The fused graph, and what was fused. ``graph`` stays as it is; ``root`` gets what remembers
    the order of edges, among its quantizers.

    Example:
        >>> from torch_geometric.nn import GIN
        >>> from dqconvert import prepare
        >>> module, _ = prepare(GIN(8, 16, num_layers=1), "int8-dq")
        >>> [fusion.op for fusion in fuse(module.graph, module)[1]]
        ['message passing', 'chain']
    """
    fused = copy.deepcopy(graph)
    fuser = _Fuser(fused, root)
    fuser.message_passing()
    fuser.chains()
    fuser.stand_ins()
    fuser.remember()
    for node in reversed(fused.nodes):
        if not node.users and _droppable(node):
            fused.erase_node(node)
    return fused, tuple(fuser.fusions)


def guard_islands(graph: Graph, islands: Sequence[str]) -> None:
    """Gives modules that were not traced tensors in memory of their own, and copies what they return.

    What they do with that memory is unknown: reversible layers free that of their inputs, and later of their outputs.
    """
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in islands:
            for tensor in [n for n in node.all_input_nodes if note_of(n).is_tensor]:
                with graph.inserting_before(node):
                    copied = annotate(graph.call_function(own_memory, (tensor,)), note_of(tensor))
                node.replace_input_with(tensor, copied)
            with graph.inserting_after(node):
                result = annotate(graph.call_function(own_memory, (node,)), note_of(node))
            node.replace_all_uses_with(result, delete_user_cb=lambda user, result=result: user is not result)


class _Fuser:
    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self.graph = graph
        self.root = root
        self.fusions: list[Fusion] = []
        self._orders: dict[Any, Node] = {}
        self._memos: dict[Any, str] = {}
        self._modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
        self._position = {node: i for i, node in enumerate(graph.nodes)}

    # -- message passing -------------------------------------------------------------------------------------------

    def message_passing(self) -> None:
        """Gather, product with an edge weight, quantizer of the message, and sum or mean."""
        for node in list(self.graph.nodes):
            if self._quantizer(node) is not None:
                self._fuse_messages(node)

    def _fuse_messages(self, quantize: Node) -> None:
        aggregate = _only_user(quantize)
        message = quantize.args[0]
        if aggregate is None or aggregate.op != "call_module" or not isinstance(message, Node):
            return
        mean = AGGREGATIONS.get(type(self._modules[str(aggregate.target)]))
        found = self._message(message)
        if mean is None or found is None or _hooked(self._modules[str(aggregate.target)]):
            return
        rows, weight, inner = found
        taken = gather(rows)
        receiver = aggregate.args[1] if len(aggregate.args) > 1 else aggregate.kwargs.get("index")
        if taken is None or taken.dim != 0 or not isinstance(receiver, Node) or note_of(taken.edge_index).sparse:
            return
        if end_of_edges(receiver) != (taken.edge_index, 1 - taken.row):
            return
        ptr, size, dim = (aggregate.kwargs.get(name) for name in ("ptr", "dim_size", "dim"))
        if ptr is not None or size is None or dim not in (0, -note_of(message).ndim):
            return
        mask = self._sender_mask(quantize, taken.edge_index, taken.row)
        if mask is False:
            return
        with self.graph.inserting_before(aggregate):
            senders = self.graph.call_method("size", (taken.source, 0))
            orders = self._order(receiver, taken.index, size), self._order(taken.index, receiver, senders)
            module = self.graph.get_attr(str(quantize.target))
            args = (taken.source, weight, taken.index, receiver, size, *orders, module, mask, mean)
            new = annotate(self.graph.call_function(message_passing, args), note_of(aggregate))
        self._replace(aggregate, new, "message passing", [rows, *inner, quantize, aggregate])

    def _message(self, message: Node) -> tuple[Node, Node | None, list[Node]] | None:
        """The gather of a message, the weights of the edges, and the nodes between."""
        if gather(message) is not None:
            return message, None, []
        if op_name(message) != "mul" or len(message.args) != 2:
            return None
        one, two = message.args
        for rows, factor in ((one, two), (two, one)):
            if not isinstance(rows, Node) or not isinstance(factor, Node) or gather(rows) is None:
                continue
            if len(rows.users) > 1 or note_of(rows).sizes != note_of(message).sizes:
                continue
            weight = _per_edge(factor, note_of(message).sizes)
            if weight is not None:
                return rows, weight, [message] if weight is factor else [factor, message]
        return None

    def _sender_mask(self, quantize: Node, edge_index: Node, row: int) -> Any:
        """Which senders are protected; False if the mask of the messages is another one."""
        mask = quantize.args[1] if len(quantize.args) > 1 else None
        if mask is None:
            return None
        if not isinstance(mask, Node) or mask.target is not gather_protected:
            return False
        index = mask.args[1]
        ends = isinstance(index, Node) and end_of_edges(index) == (edge_index, row)
        return mask.args[0] if ends else False

    def _order(self, index: Node, other: Node, size: Any) -> Node:
        # Every layer takes the ends of edges out of edge_index for itself, or out of an edge_index of its own.
        edge_index, row = end_of_edges(index) or (index, 0)
        one = (edge_index, row, _value_of(size))
        if one not in self._orders:
            path = self._memo("edge_order", (_origin(edge_index), row, _value_of(size)), EdgeOrders)
            self._orders[one] = self.graph.call_module(path, (index, other, size))
        return self._orders[one]

    def _memo(self, name: str, key: Any, make: Callable[[], nn.Module]) -> str:
        """The path of a module that remembers, one for all that probably ask it for the same."""
        if key not in self._memos:
            path = f"{container_name(self.root)}.{name}_{len(self._memos)}"
            if path not in self._modules:
                self._modules[path] = make()
                attach(self.root, path, self._modules[path])
            self._memos[key] = path
        return self._memos[key]

    # -- chains ----------------------------------------------------------------------------------------------------

    def chains(self) -> None:
        """Quantizers with sums and ReLUs between them."""
        self._position = {node: i for i, node in enumerate(self.graph.nodes)}
        done: set[Node] = set()
        for node in list(self.graph.nodes):
            if node not in done and self._chains_from(node):
                done.update(self._fuse_chain(node))

    def _chains_from(self, node: Node) -> bool:
        return self._quantizer(node) is not None and isinstance(node.args[0], Node)

    def _fuse_chain(self, start: Node) -> list[Node]:
        mask = start.args[1] if len(start.args) > 1 else None
        parts: dict[str, Any] = {}
        nodes = [start]

        def follows(user: Node | None) -> bool:
            """Whether a node is a quantizer with the same protection."""
            if user is None or self._quantizer(user) is None:
                return False
            return (user.args[1] if len(user.args) > 1 else None) is mask

        after = _only_user(start)
        total = self._sum(after, start) if after is not None else None
        behind = _only_user(after) if after is not None else None
        if total is not None and after is not None and behind is not None and follows(behind):
            product = total.pop("product", None)
            parts |= {"first": start, **total, "second": behind}
            nodes += [after, behind] if product is None else [product, after, behind]
        else:
            parts["second"] = start
        user = _only_user(nodes[-1])
        if user is not None and self._is_relu(user):
            parts["relu"] = True
            nodes.append(user)
            user = _only_user(user)
            if follows(user):
                assert user is not None
                parts["third"] = user
                nodes.append(user)
        if len(nodes) > 1:
            self._write_chain(nodes, parts, mask)
        return nodes

    def _sum(self, add: Node, start: Node) -> dict[str, Any] | None:
        """What is added to ``start``: a bias, or another tensor of the same shape, perhaps times a scalar."""
        if op_name(add) != "add" or add.kwargs or len(add.args) != 2:
            return None
        other = add.args[1] if add.args[0] is start else add.args[0]
        shape = note_of(start).sizes
        if not isinstance(other, Node) or other is start or note_of(add).sizes != shape or not shape:
            return None
        if note_of(other).dtype != note_of(start).dtype:
            return None
        if note_of(other).sizes == shape:
            scaled = self._scaled(other, shape) if len(other.users) == 1 else None
            return {"other": scaled[1], "alpha": scaled[0], "product": other} if scaled else {"other": other}
        if all(size == (before[-1],) for size, before in zip(note_of(other).sizes, shape, strict=True)):
            return {"bias": other} if len({size[0] for size in note_of(other).sizes}) == 1 else None
        return None

    def _scaled(self, node: Node, shape: tuple[tuple[int, ...], ...]) -> tuple[Node, Node] | None:
        """``(scalar, tensor)`` of a product with a tensor of one element."""
        if op_name(node) != "mul" or len(node.args) != 2 or node.kwargs:
            return None
        for scalar, tensor in (node.args, node.args[::-1]):
            if isinstance(scalar, Node) and isinstance(tensor, Node) and note_of(tensor).sizes == shape:
                one = note_of(scalar).sizes
                if one and all(size in ((), (1,)) for size in one) and note_of(scalar).dtype == note_of(tensor).dtype:
                    return scalar, tensor
        return None

    def _is_relu(self, node: Node) -> bool:
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            return type(module) is nn.ReLU and not _hooked(module)
        return op_name(node) == "relu"

    def _write_chain(self, nodes: list[Node], parts: dict[str, Any], mask: Any) -> None:
        def module(node: Node | None) -> Node | None:
            return None if node is None else self.graph.get_attr(str(node.target))

        with self.graph.inserting_before(nodes[-1]):
            first, second, third = (module(parts.get(place)) for place in ("first", "second", "third"))
            added = parts.get("bias"), parts.get("other"), parts.get("alpha")
            args = (nodes[0].args[0], first, *added, second, parts.get("relu", False), third, mask)
            new = annotate(self.graph.call_function(chain, args), note_of(nodes[-1]))
        self._replace(nodes[-1], new, "chain", nodes)

    # -- one for one -----------------------------------------------------------------------------------------------

    def stand_ins(self) -> None:
        """Functions and modules that have a counterpart with the same results."""
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node.target in STAND_INS:
                node.target = STAND_INS[node.target]
            elif node.op == "call_module":
                module = self._modules[str(node.target)]
                if type(module) is nn.Dropout and not _hooked(module):
                    with self.graph.inserting_before(node):
                        p, training = (self.graph.get_attr(f"{node.target}.{name}") for name in ("p", "training"))
                        new = self.graph.call_function(dropout, (node.args[0], p, training))
                    node.replace_all_uses_with(annotate(new, note_of(node)))
                    self.graph.erase_node(node)

    def remember(self) -> None:
        """Functions of the graph alone, which often stays the same."""
        paths = {}
        for node in list(self.graph.nodes):
            if node.op != "call_function" or node.target not in REMEMBERED:
                continue
            tensors = [n for n in node.all_input_nodes if note_of(n).is_tensor]
            if any(note_of(n).is_float or note_of(n).sparse for n in tensors):
                continue
            paths[node] = self._memo("remembered", _origin(node), partial(Remembered, node.target))
        for node, path in paths.items():
            node.op, node.target = "call_module", path

    # -- both ------------------------------------------------------------------------------------------------------

    def _quantizer(self, node: Node) -> FakeQuantize | None:
        """The plain quantizer of rows that a node calls."""
        if node.op != "call_module":
            return None
        module = self._modules.get(str(node.target))
        if not isinstance(module, FakeQuantize) or type(module) is not FakeQuantize or _hooked(module):
            return None
        return module if module.channel_dim is None and module.row_dim == 0 else None

    def _replace(self, old: Node, new: Node, op: str, nodes: list[Node]) -> None:
        quantizers = tuple(str(node.target) for node in nodes if self._quantizer(node) is not None)
        source = nodes[0].args[0]
        for node in nodes[:-1]:
            for user in list(node.users):
                if op == "chain" and _reads_form(user):  # every value in a chain has the form of the first
                    user.replace_input_with(node, source)  # type: ignore[arg-type]
        self.fusions.append(Fusion(op=op, quantizers=quantizers, nodes=tuple(node.name for node in nodes)))
        old.replace_all_uses_with(new)
        for node in reversed(nodes):
            if not node.users:
                self.graph.erase_node(node)


def _only_user(node: Node) -> Node | None:
    users = [user for user in node.users if not _reads_form(user)]
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _reads_form(node: Node) -> bool:
    """Whether a node reads a tensor's shape, type or device alone."""
    if node.target is getattr:
        return node.args[1] in ("dtype", "device", "shape", "ndim")
    return node.op == "call_method" and node.target in ("size", "dim")


def _origin(value: Any) -> Any:
    """What a value comes from: equal for two nodes that probably hold the same. Of use for what checks that."""
    if isinstance(value, slice):
        return "slice", _origin(value.start), _origin(value.stop), _origin(value.step)
    if isinstance(value, dict):
        return tuple((name, _origin(item)) for name, item in value.items())
    if not isinstance(value, Node):
        return tuple(map(_origin, value)) if isinstance(value, tuple | list) else value
    if value.target is getattr and value.args[1] == "dtype":
        return "dtype", note_of(value.args[0]).dtype if isinstance(value.args[0], Node) else None
    if value.target is operator.getitem or value.target in REMEMBERED:
        kwargs = tuple((name, _origin(item)) for name, item in sorted(value.kwargs.items()))
        return value.target, tuple(map(_origin, value.args)), kwargs
    return _value_of(value)


def _value_of(size: Any) -> Any:
    """What a size is read off, so that two nodes that read the same size count as one."""
    if isinstance(size, Node) and op_name(size) == "size":
        source, dim = size.args
        if isinstance(source, Node) and isinstance(dim, int) and note_of(source).sizes:
            return tuple(shape[dim] for shape in note_of(source).sizes)
    return size


def _per_edge(factor: Node, sizes: tuple[tuple[int, ...], ...]) -> Node | None:
    """The weights behind a factor that is spread over the channels of a message: ``[E]`` or ``[E, heads]``."""
    shape = note_of(factor).sizes
    spread = tuple((*size[:-1], 1) for size in sizes)
    if shape != spread:
        return None
    if op_name(factor) in ("view", "unsqueeze", "reshape") and isinstance(factor.args[0], Node):
        inner = factor.args[0]
        if note_of(inner).sizes == tuple(size[:-1] for size in sizes):
            return inner
    return factor


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _droppable(node: Node) -> bool:
    """Whether a node without users was only needed for what was fused."""
    return node.target is gather_protected or op_name(node) in ("index_select", "view", "unsqueeze", "size", "getitem")

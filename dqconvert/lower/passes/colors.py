"""Color folding, written into the graph: a layer computes one row for all nodes that it cannot tell apart.

The node features are folded where they come in. What is computed row by row goes on with the rows that are left;
messages over the edges of the graph lead to the rows of the next level; whatever else reads a value gets the rows of
all nodes back. The operations are in :mod:`dqconvert.kernels.integer.folding`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.fx import Graph, Node

from dqconvert.fuse.context import reads_form
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.folding.fold import Level, fold_nodes, place_rows, take_rows
from dqconvert.kernels.integer.propagate import MessageWeight, integer_propagate
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.lower.movers import keeps_rows
from dqconvert.lower.program import Program
from dqconvert.ops import op_of
from dqconvert.quant import groups_of_nodes
from dqconvert.rewrite.connectivity import is_input
from dqconvert.trace.note import annotate, note_of


def fold_colors(program: Program) -> Program:
    """Folds a graph whose messages all pass over the same edges, and whose weights follow from the graph alone."""
    graph = program.graph
    orders = [node for node in graph.nodes if node.target in (receiver_order, gcn_order)]
    if len(orders) != 1 or any(argument.shares is not None for argument in _finishes(graph)):
        return program  # a norm of its own sets nodes apart that have the same features
    if any(node.target is groups_of_nodes for node in graph.nodes):
        return program  # so do grids by in-degree
    order = orders[0]
    parts = {user.args[1]: user for user in order.users if user.target is operator.getitem}
    over = [node for node in graph.nodes if node.target is integer_propagate and node.args[2] is parts.get(0)]
    weights = [weight for node in over if (weight := _weight(node)) is not None]
    x = _features(order)
    if x is not None and over and all(weight.target is gcn_codes for weight in weights):
        _Folding(program, x, parts[0], parts[1], bool(weights)).run()
    return program


def _finishes(graph: Graph) -> Iterator[Finish]:
    return (argument for node in graph.nodes for argument in node.args if isinstance(argument, Finish))


def _features(order: Node) -> Node | None:
    """Returns the argument whose rows are the nodes, at both ends of the edges; None if there is no such one."""
    sizes = order.args[2:] if order.target is receiver_order else order.args[1:] * 2
    size = sizes[0]
    if size is not sizes[1] or not isinstance(size, Node) or size.target != "size":
        return None
    x = size.args[0]
    return x if isinstance(x, Node) and is_input(x) and not note_of(x).sparse and note_of(x).ndim > 0 else None


def _weight(node: Node) -> Node | None:
    weight = node.kwargs.get("weight")
    return weight.codes if isinstance(weight, MessageWeight) else None  # type: ignore[return-value]


class _Folding:
    """The folding of one graph: knows how many layers are before each value that has the rows that are left."""

    def __init__(self, program: Program, x: Node, ptr: Node, senders: Node, weighted: bool) -> None:
        self._graph, self._order = program.graph, (ptr, senders)
        self._folded = self._graph.call_function(fold_nodes, (x, ptr, senders, 0, weighted))
        self._parts: dict[tuple[int, str], Node] = {}
        self._made: dict[tuple[object, Node, Node], Node] = {}
        taken = self._graph.call_function(take_rows, (x, self._part(0, "own")))
        annotate(taken, note_of(x))
        x.replace_all_uses_with(taken, delete_user_cb=lambda user: user not in (self._folded, taken) and _reads(user))
        program.sort()
        self._levels = {taken: 0}

    def run(self) -> None:
        """Rewrites what reads the features, and what reads that."""
        for node in list(self._graph.nodes):
            if self._levels.keys().isdisjoint(node.all_input_nodes) or node.target is take_rows:
                continue
            if node.target is integer_propagate:
                self._propagate(node)
            elif (rows := self._rows(node)) is not None:
                self._levels[node] = level = max(self._levels[value] for value in rows)
                for value in rows:
                    self._replace(node, value, self._at(value, level, node))
            else:
                self._unfold(node, node.all_input_nodes)
        self._folded.args = (*self._folded.args[:3], max(self._levels.values()), *self._folded.args[4:])

    def _propagate(self, node: Node) -> None:
        """Lets messages over the graph's edges lead to the next level; others come from the rows that are left."""
        x, other, weight = node.args[0], node.args[5].other, _weight(node)  # type: ignore[union-attr]
        level = self._levels.get(x, -1) + 1  # type: ignore[arg-type]
        if node.args[2] is not self._order[0]:
            self._unfold(node, [other])
            if level > 0:
                rows: Any = node.args[3]
                self._replace(node, rows, self._call(place_rows, rows, self._part(level - 1, "place"), node))
        elif level > 0 and (other is None or self._levels.get(other, level + 1) <= level):
            self._levels[node] = level
            self._replace(node, self._order[0], self._part(level, "ptr"))
            self._replace(node, self._order[1], self._part(level, "senders"))
            if weight is not None:
                self._replace(node, weight, self._call(take_rows, weight, self._part(level, "edges"), node))
            if other is not None:
                # If x itself is added, it stays x where it is sent.
                finish = node.args[5]._replace(other=self._at(other, level, node))  # type: ignore[union-attr]
                node.args = (*node.args[:5], finish, *node.args[6:])
        else:
            self._unfold(node, [x, other])

    def _rows(self, node: Node) -> list[Node] | None:
        """Returns the values that a node's rows come from; ``None`` if one is not folded, or the node mixes rows."""
        op = op_of(node)
        count = op.row_by_row
        if count == 0:
            alone = len(node.all_input_nodes) == 1 and (op.pointwise or op.casts or keeps_rows(node))
            return node.all_input_nodes if alone else None
        given: list[object] = []
        for argument in node.args[:count]:
            given += argument if isinstance(argument, list | tuple) else [argument]
        given += [argument.other for argument in node.args if isinstance(argument, Finish)]
        rows = [value for value in given if isinstance(value, Node) and not _is_line(value)]
        return rows if all(value in self._levels for value in rows) else None

    def _at(self, value: Node, level: int, reader: Node) -> Node:
        """Returns a folded value with the rows of a later level."""
        for later in range(self._levels[value] + 1, level + 1):
            value = self._call(take_rows, value, self._part(later, "own"), reader)
        return value

    def _unfold(self, node: Node, values: Iterable[object]) -> None:
        """Gives a node the rows of all nodes."""
        for value in values:
            if isinstance(value, Node) and value in self._levels:
                place = self._part(self._levels[value], "place")
                self._replace(node, value, self._call(take_rows, value, place, node))

    def _part(self, level: int, name: str) -> Node:
        key = level, name
        if key not in self._parts:
            with self._graph.inserting_after(self._folded):
                found = self._graph.call_function(operator.getitem, (self._folded, level))
            with self._graph.inserting_after(found):
                self._parts[key] = self._graph.call_function(operator.getitem, (found, Level._fields.index(name)))
        return self._parts[key]

    def _call(self, function: Callable[..., Any], value: Node, which: Node, reader: Node) -> Node:
        """Returns a call, written once, before its first reader."""
        key = function, value, which
        if key not in self._made:
            with self._graph.inserting_before(reader):
                self._made[key] = annotate(self._graph.call_function(function, (value, which)), note_of(value))
        return self._made[key]

    def _replace(self, node: Node, old: Node, new: Node) -> None:
        if new is not old:
            node.replace_input_with(old, new)


def _reads(user: Node) -> bool:
    """True if a node reads values, not only how many there are."""
    return user.target != "size" and not op_of(user).checks and not reads_form(user)


def _is_line(value: Node) -> bool:
    """True if a value is one row, which is broadcast over all rows."""
    return value.op == "get_attr" and note_of(value).ndim == 1

"""What each value is: the role that a quantizer would have on it, by what the records of operations say.

The words (weight, input, feature, edge_weight, message, aggregate, update) are Degree-Quant's (Tailor et al., ICLR
2021, and its implementation). Nothing is inserted here; a :class:`Site` says where a quantizer belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from dqconvert.ops import op_of, qualified_name
from dqconvert.rewrite.connectivity import gather, is_input
from dqconvert.rewrite.dropouts import Dropouts
from dqconvert.rewrite.norms import scale_rows
from dqconvert.rewrite.open import call_with_weights
from dqconvert.rewrite.signs import Signs
from dqconvert.rewrite.sites import (
    Grids,
    Site,
    keeps_grid,
    keeps_grid_or_joins,
    leads_from_logits,
    moves,
    reshapes,
    step_above,
)
from dqconvert.rewrite.spaces import Level, RowSpaces
from dqconvert.trace.nested import nodes_in
from dqconvert.trace.note import Stage, note_of
from dqconvert.trace.runtime import stage_output


class Roles:
    """Finds the sites of one graph.

    Args:
        graph: The traced graph, weights visible.
        root: The module that its paths refer to.
        rows: Its row spaces.
        islands: Paths of modules that stay whole.
        dropouts: Those of the graph, to place quantizers before; ``None``: they stand behind.
    """

    def __init__(
        self,
        graph: Graph,
        root: nn.Module,
        rows: RowSpaces,
        islands: frozenset[str],
        dropouts: Dropouts | None = None,
    ) -> None:
        self.graph = graph
        self.root = root
        self.rows = rows
        self.islands = islands
        self.dropouts = dropouts
        self.signs = Signs(root)
        self.sites: list[Site] = []
        self._grids = Grids(root)

    def find(self) -> list[Site]:
        """Returns all sites, in the order in which the graph computes their values."""
        for node in self.graph.nodes:
            if node.op == "call_module" and node.target in self.islands:
                self._island(node)
            elif node.target is stage_output:
                self._stage(node)
            elif node.target is call_with_weights:
                self._whole(node)
            elif op_of(node).name == "softmax":
                self._softmax(node)
            elif op_of(node).weighted or op_of(node).name == "einsum":
                self._weighted(node)
            elif op_of(node).name == "mul":
                self._product(node)
            elif (gathered := gather(node)) is not None and self.rows.parameter_only(gathered.source):
                self._add_weight(gathered.source, node)  # an embedding table that messages are taken from
        return self.sites

    # -- one method per kind of node -------------------------------------------------------------------------------

    def _weighted(self, node: Node) -> None:
        """Adds the sites of a matrix product: a weighted op with a parameter; in a message it may weight the edges."""
        operands = [operand for operand in self._operands(node) if isinstance(operand, Node)]
        weights = [operand for operand in operands if self.rows.parameter_only(operand)]
        values = [operand for operand in operands if not self.rows.parameter_only(operand)]
        if weights and values:
            self._weighted_op(node, values, weights, node)
        elif len(values) == 2:
            self._edge_factor(node, values[0], values[1])

    def _product(self, node: Node) -> None:
        """Adds the sites of a product: a weighted op with an attention vector; in a message it may weight edges."""
        operands = [operand for operand in node.args if isinstance(operand, Node) and note_of(operand).is_float]
        if len(operands) != 2:
            return
        weights = [operand for operand in operands if self.rows.parameter_only(operand)]
        if not weights:
            self._edge_factor(node, *operands)
            return
        # `(x * att).sum(-1)` is a product with a vector; `x * gain`, as norms have it, is not.
        users = list(node.users)
        summed = len(users) == 1 and op_of(users[0]).name == "sum"
        values = [operand for operand in operands if not self.rows.parameter_only(operand)]
        if values and summed and max(size[0] for size in _sizes(weights[0])) > 1:
            self._weighted_op(node, values, weights, users[0])

    def _weighted_op(self, node: Node, values: list[Node], weights: list[Node], output: Node) -> None:
        for value in values:
            if note_of(value).is_float:
                self._add_input(value, node)
        for weight in weights:
            self._add_weight(weight, node)
        # What a norm of the nodes scales is rounded once it is; the numbers must be there.
        scaled = only_reader(output)
        if scaled is not None and scaled.target is scale_rows and scaled.args[1] < output:  # type: ignore[operator]
            output = scaled
        self._add("feature", output, op=node)

    def _stage(self, node: Node) -> None:
        stage, value = note_of(node).stage, node.args[0]
        assert isinstance(value, Node)
        if stage is Stage.MESSAGE:
            self._add("message", node, op=node)
        elif stage is Stage.AGGREGATE:
            self._add("aggregate", node, op=node)
        elif stage is Stage.LAYER and self._grids.of(value, reshapes) is None:
            self._add("update", node, op=node)

    def _edge_factor(self, node: Node, left: Node, right: Node) -> None:
        """Adds a site for the norm or attention coefficient that multiplies the features of a message."""
        if note_of(node).stage is not Stage.MESSAGE:
            return
        factor = self._factor(left, right)
        if factor is None:
            return
        base = self._grids.through(factor, reshapes)
        if self._grids.of(base, keeps_grid) is None and self.rows.level(base) is Level.EDGE:
            self._add("edge_weight", base, user=node if base is factor else step_above(factor, base), op=node)

    def _factor(self, left: Node, right: Node) -> Node | None:
        """Returns the operand that weights the other: the one of the graph alone, the squashed or the smaller one."""
        alone = [operand for operand in (left, right) if not self.rows.from_features(operand)]
        squashed = [operand for operand in (left, right) if self._is_coefficient(operand)]
        larger = max(_elements(left), _elements(right))
        smaller = [operand for operand in (left, right) if _elements(operand) < larger]
        if len(alone) == 2:
            return None
        return next((picked[0] for picked in (alone, squashed, smaller) if len(picked) == 1), None)

    def _is_coefficient(self, node: Node) -> bool:
        """True if a value came out of a squashing function, and was only moved or dropped out since."""
        return op_of(self._grids.through(node, keeps_grid)).squashes

    def _softmax(self, node: Node) -> None:
        """Adds a site for attention logits: they are features, quantized before their nonlinearity."""
        value = node.args[0] if node.args else None
        if not isinstance(value, Node) or note_of(node).stage not in (Stage.MESSAGE, Stage.EDGE_UPDATE):
            return
        logit = self._grids.through(value, leads_from_logits)
        if self._grids.of(logit, keeps_grid) is None and not is_input(logit):
            self._add("feature", logit, op=node)

    def _whole(self, node: Node) -> None:
        """Adds the sites of a recurrent or multi-head layer: its weights, inputs and outputs, and nothing inside."""
        weights = node.args[1]
        assert isinstance(weights, dict)
        for weight in weights.values():
            self._add_weight(weight, node)
        self._boundary(node, list(node.args[2:]) + list(node.kwargs.values()))

    def _island(self, node: Node) -> None:
        self._boundary(node, list(node.args) + list(node.kwargs.values()))

    def _boundary(self, node: Node, arguments: list[Any]) -> None:
        for value in nodes_in(arguments):
            if note_of(value).is_float and not self.rows.parameter_only(value):
                self._add_input(value, node)
        outputs = [node] if note_of(node).is_float else [n for n in node.users if note_of(n).is_float]
        for output in outputs:
            self._add("feature", output, op=node)

    # -- adding sites ----------------------------------------------------------------------------------------------

    def _add_input(self, value: Node, user: Node) -> None:
        if self._grids.of(value, keeps_grid_or_joins) is not None:
            return
        before = None if self.dropouts is None else self.dropouts.before(value, user, self.rows)
        value, reader = before or (value, user)
        self._add("input", value, user=reader, op=user)

    def _add_weight(self, weight: Node, user: Node) -> None:
        """Adds a site on a parameter that is only reshaped or picked from on its way, else on what it becomes."""
        base = self._grids.through(weight, moves)
        place = base if base.op == "get_attr" else weight
        if place not in self._grids:
            owner = str(place.target).rpartition(".")[0] if place.op == "get_attr" else note_of(user).module
            self._add("weight", place, op=user, module=owner)

    def _add(self, role: str, value: Node, *, op: Node, user: Node | None = None, module: str | None = None) -> None:
        if value in self._grids and user is None:
            return
        level = Level.PARAMETER if role == "weight" else self.rows.level(value)
        site = Site(
            role=role,
            value=value,
            user=user,
            module=note_of(op).module if module is None else module,
            op=qualified_name(op),
            level=level,
            rule_level=self.rows.level(_result(op)) if role == "weight" else level,
            row_dim=0 if level in (Level.PARAMETER, Level.GRAPH) else self.rows.row_dim(value),
            protected=level is Level.NODE
            or (level is Level.EDGE and (role == "message" or self.rows.from_features(value))),
            nonnegative=self.signs.is_nonnegative(value),
            cut=user is None and level is not Level.PARAMETER and self.signs.is_cut(value),
            source=note_of(op).source,
            behind=self.dropouts.behind(value, self.rows) if self.dropouts and role in ("input", "message") else (),
        )
        self.sites.append(site)
        if user is None:
            self._grids.add(site)

    # -- walking the graph -----------------------------------------------------------------------------------------

    def _operands(self, node: Node) -> Iterator[Any]:
        arguments = list(node.args) + list(node.kwargs.values())
        if op_of(node).name == "einsum":
            yield from nodes_in(arguments)
            return
        for position in op_of(node).weighted:
            if position < len(arguments):
                yield arguments[position]


def _result(node: Node) -> Node:
    """Returns what an operation makes: of several results, one that is read."""
    return node if note_of(node).is_float else next((user for user in node.users if note_of(user).is_float), node)


def only_reader(node: Node) -> Node | None:
    """Returns what alone reads the values of a node; ``None`` if nothing does, or several."""
    readers = [user for user in node.users if not op_of(user).reads_size and user.target is not getattr]
    return readers[0] if len(readers) == 1 else None


def _sizes(node: Node) -> list[tuple[int, ...]]:
    note = note_of(node)
    return list(zip(*note.sizes, strict=True)) or [(1,)]


def _elements(node: Node) -> int:
    sizes = note_of(node).sizes
    return int(torch.Size(sizes[-1]).numel()) if sizes else 1

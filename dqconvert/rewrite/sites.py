"""Places for quantizers, and which quantizer's grid a value is already on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from dqconvert.ops import Op, op_of, op_of_layer
from dqconvert.qconfig import QSpec
from dqconvert.quant.fake_quantize import Dropout
from dqconvert.rewrite.connectivity import is_input
from dqconvert.rewrite.spaces import Level
from dqconvert.trace.note import Stage, note_of
from dqconvert.trace.runtime import stage_output


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place for a quantizer.

    Attributes:
        role: The role of the value there.
        value: The node whose value is quantized.
        user: The one node that sees the quantized value; ``None`` if all users do.
        module: Path of the module that the quantizer belongs to.
        op: Qualified name of the operation that gives the value its role, as rules match it.
        level: What one row of the value belongs to.
        rule_level: What rules take for it: of a weight, the level of what is made with it.
        row_dim: The dimension of the rows.
        protected: Whether protected rows pass in full precision here.
        nonnegative: Whether the value cannot be negative.
        cut: Whether what is below zero counts as zero in all that reads it.
        source: File and line.
        behind: The dropouts that scale the value in training, where the quantizer is to round as if before them.
    """

    role: str
    value: Node
    user: Node | None
    module: str
    op: str
    level: Level
    rule_level: Level
    row_dim: int
    protected: bool
    nonnegative: bool
    cut: bool
    source: str
    behind: tuple[Dropout, ...] = ()

    def signed(self, spec: QSpec) -> bool:
        """True if the codes that a spec gives the value are signed."""
        return spec.signed_for(role=self.role, nonnegative=self.nonnegative, cut=self.cut)


class Grids:
    """Knows the quantizers that are on values of a graph, and the values on whose grids others still are.

    A quantized value that is only moved stays on its quantizer's grid: another quantizer would change nothing.

    Args:
        root: The module that the graph is of.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._on: dict[Node, Site] = {}

    def __contains__(self, value: Node) -> bool:
        return value in self._on

    def add(self, site: Site) -> None:
        """Takes a quantizer whose value all users see quantized."""
        self._on[site.value] = site

    def through(self, node: Node, sees_through: Callable[[Op], bool]) -> Node:
        """Returns the value that ``node`` shows, seen through operations that change it in no way that counts."""
        while node not in self._on and self._passes(node, sees_through):
            step = node.args[0]
            assert isinstance(step, Node)
            node = step
        return node

    def of(self, node: Node, sees_through: Callable[[Op], bool]) -> Site | None:
        """Returns the quantizer whose grid the value is already on; ``None`` if it is on none."""
        node = self.through(node, sees_through)
        if node in self._on:
            return self._on[node]
        op = op_of(node)
        if op.joins and sees_through(op) and node.args and isinstance(node.args[0], tuple | list):
            grids = [self.of(part, sees_through) if isinstance(part, Node) else None for part in node.args[0]]
            return grids[0] if grids and all(grid is grids[0] for grid in grids) else None
        return None

    def _passes(self, node: Node, sees_through: Callable[[Op], bool]) -> bool:
        if node.op == "call_module":
            op = op_of_layer(self._root.get_submodule(str(node.target)), subclasses=True)
            passes = op.identity or sees_through(op)
        else:
            marker = node.target is stage_output and note_of(node).stage is not Stage.MESSAGE
            passes = marker or sees_through(op_of(node))
        return passes and bool(node.args) and isinstance(node.args[0], Node) and not is_input(node)


def step_above(node: Node, base: Node) -> Node:
    """Returns the first operation after ``base`` on the way to ``node``."""
    while node.args[0] is not base:
        step = node.args[0]
        assert isinstance(step, Node)
        node = step
    return node


def keeps_grid(op: Op) -> bool:
    """Returns True if a quantized value stays on its grid through an operation."""
    return op.keeps_grid


def keeps_grid_or_joins(op: Op) -> bool:
    """Returns True if values on one grid stay on it through an operation that may take several."""
    return op.keeps_grid or op.joins


def moves(op: Op) -> bool:
    """Returns True if an operation only moves entries."""
    return op.keeps_grid and not op.drops


def reshapes(op: Op) -> bool:
    """Returns True if an operation only changes shapes and strides."""
    return op.reshapes


def leads_from_logits(op: Op) -> bool:
    """Returns True for what may stand between an attention logit and its softmax."""
    return op.activation or op.reshapes or (op.drops and op.keeps_grid)

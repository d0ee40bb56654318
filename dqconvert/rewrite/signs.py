"""Finds the values that cannot be negative, or count as zero there: an unsigned grid wastes nothing on them."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Node

from dqconvert.ops import Op, Sign, op_of, op_of_layer
from dqconvert.trace.leaves import has_hooks
from dqconvert.trace.note import note_of


class Signs:
    """Knows, for the graphs of one module, which values cannot be negative.

    A number that the graph reads off a module (``relu(h) * self.alpha``) may be set to anything later, so whatever its
    sign is now, its product may become negative; a literal (``relu(h) * 0.5``) stays.

    Example:
        >>> from dqconvert.trace import trace
        >>> module = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout())).module
        >>> signs = Signs(module)
        >>> [signs.is_nonnegative(node) for node in module.graph.nodes if node.op == "call_module"]
        [False, True, True]
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._known: dict[Node, bool] = {}
        self._cut: dict[Node, bool] = {}

    def is_nonnegative(self, node: Node) -> bool:
        """Returns True if the value of a node cannot be negative, whatever the inputs."""
        # An explicit stack: graphs of hundreds of layers would overflow Python's.
        stack = [node]
        while stack:
            top = stack[-1]
            verdict = self._known.get(top, self._alone(top))
            operands = [operand for operand in top.all_input_nodes if note_of(operand).is_float]
            pending = [operand for operand in operands if operand not in self._known] if verdict is None else []
            if pending:
                stack.extend(pending)
                continue
            if verdict is None:
                verdict = bool(operands) and all(self._known[operand] for operand in operands)
            self._known[top] = verdict
            stack.pop()
        return self._known[node]

    def is_cut(self, node: Node) -> bool:
        """Returns True if all that reads a value, but for its shape and type, takes what is below zero for zero.

        Each way from it leads through operations that commute with a ReLU to one.

        Example:
            >>> from dqconvert.trace import trace
            >>> module = trace(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.ReLU(), nn.Linear(2, 2))).module
            >>> signs = Signs(module)
            >>> [signs.is_cut(node) for node in module.graph.nodes if node.op == "call_module"]
            [True, True, False, False]
        """
        stack = [node]
        while stack:
            top = stack[-1]
            readers = [user for user in top.users if not (op_of(user).reads_size or user.target is getattr)]
            verdict = self._cut.get(top)
            if verdict is None and not all(map(self._cuts_or_passes, readers)):
                verdict = False
            passing = [user for user in readers if not self._op(user).cuts]
            pending = [user for user in passing if user not in self._cut] if verdict is None else []
            if pending:
                stack.extend(pending)
                continue
            if verdict is None:
                verdict = bool(readers) and all(self._cut[user] for user in passing)
            self._cut[top] = verdict
            stack.pop()
        return self._cut[node]

    def _cuts_or_passes(self, reader: Node) -> bool:
        op = self._op(reader)
        return op.cuts or op.commutes_with_relu

    def _op(self, node: Node) -> Op:
        if node.op != "call_module":
            return op_of(node)
        layer = self.root.get_submodule(str(node.target))
        return op_of(node) if has_hooks(layer) else op_of_layer(layer)  # hooks see what is below zero

    def _alone(self, node: Node) -> bool | None:
        """Returns the answer if the operation settles it, ``None`` if it depends on its operands."""
        if node.op == "call_module":
            sign = op_of_layer(self.root.get_submodule(str(node.target)), subclasses=True).sign
        else:
            sign = op_of(node).sign
        if sign is Sign.ARITHMETIC and any(map(_may_be_negative, (*node.args, *node.kwargs.values()))):
            return False
        return {Sign.NONNEGATIVE: True, Sign.ANY: False}.get(sign)


def _may_be_negative(operand: object) -> bool:
    """Returns True if an operand of arithmetic is a negative number, or a number or integers of unknown sign."""
    if isinstance(operand, Node):
        return not note_of(operand).is_float and note_of(operand).dtype is not torch.bool
    return isinstance(operand, int | float) and operand < 0

"""Placement ``before_dropout``: values are rounded before some of them are dropped.

Behind a dropout a range is that of values scaled by ``1 / (1 - p)``, most of them zero. In evaluation, where nothing is
dropped, both placements compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.ops import Op, Sign, argument, op_of, op_of_layer
from dqconvert.quant.fake_quantize import Dropout
from dqconvert.quant.fused import dropout
from dqconvert.rewrite.connectivity import gather
from dqconvert.rewrite.norms import scale_rows
from dqconvert.rewrite.spaces import RowSpaces
from dqconvert.trace.leaves import has_hooks
from dqconvert.trace.note import Stage, annotate, note_of
from dqconvert.trace.runtime import stage_output


def drop_messages(message: Tensor, like: Tensor, p: float, training: bool = True) -> Tensor:
    """Returns messages as a dropout of their coefficients would leave them, in training.

    Args:
        message: ``[num_edges, *features]``.
        like: Of the shape of the coefficients, ``[num_edges]`` or with more of the dimensions of ``message``: one
            number is drawn for each.
        p: The probability of a coefficient to become zero; the others are multiplied by ``1 / (1 - p)``.
        training: ``False``: nothing is dropped.

    Example:
        >>> drop_messages(torch.ones(2, 2), torch.empty(2), 1.0)
        tensor([[0., 0.],
                [0., 0.]])
    """
    if not training:
        return message
    kept = dropout(torch.ones_like(like, dtype=message.dtype, requires_grad=False), p)
    return message * kept.reshape(*kept.shape, *[1] * (message.dim() - kept.dim()))


LAYERS = (nn.modules.dropout._DropoutNd,)
"""Layers that drop, with a probability ``p``."""


class Dropouts:
    """Finds the dropouts of a graph that quantizers can stand before.

    Args:
        graph: A traced graph, weights visible.
        root: The module that it is of.

    Attributes:
        remarks: Where a quantizer stays behind its dropout, and why.
    """

    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self._graph, self._root = graph, root
        self.remarks: list[str] = []

    def move_behind_messages(self) -> None:
        """Lets, in place, messages be dropped instead of the coefficients that multiply them, if that is all they do.

        The product is then quantized whole: coefficient, dropout, product, quantizer becomes coefficient, product,
        quantizer, :func:`drop_messages`.
        """
        for node in list(self._graph.nodes):
            inner = node.args[0] if node.args else None
            if not self._drops(node) or not isinstance(inner, Node) or not op_of(_coefficients(inner)).squashes:
                continue
            if node.op == "call_function" and not isinstance(argument(node, "training", True), Node):
                continue  # it drops in evaluation, too
            marker = _message_of(node, inner)
            if marker is None:
                where = note_of(node).module or "the root module"
                self.remarks.append(
                    f"{where}: coefficients are dropped before they are rounded: they make no message alone"
                )
                continue
            p, training = self._options(node, marker)
            node.replace_all_uses_with(inner)
            with self._graph.inserting_after(marker):
                args = (marker, inner, p, training)
                dropped = annotate(self._graph.call_function(drop_messages, args), note_of(marker))
            for user in [user for user in marker.users if user is not dropped]:
                user.replace_input_with(marker, dropped)
            self._graph.erase_node(node)

    def before(self, value: Node, reader: Node, rows: RowSpaces) -> tuple[Node, Node] | None:
        """Returns what an input of a layer was before it was dropped out, and the dropout; ``None`` if there is none.

        Args:
            value: The input.
            reader: The layer's operation.
            rows: The row spaces of the graph.

        All that reads the result of the dropout must be such layers: nothing else is to see rounded values.
        """
        top, node = None, value
        while self._passes(node):
            top = node if self._drops(node) else top
            node = node.args[0]  # type: ignore[assignment]
        if top is None:
            return None
        reached = [top]
        for node in reached:
            for user in _readers(node):
                if self._passes(user) and user.args[0] is node:
                    reached.append(user)
                elif not op_of(user).product or not any(map(rows.parameter_only, user.all_input_nodes)):
                    where = note_of(user).source or user.name
                    what = note_of(reader).module or "the root module"
                    self.remarks.append(
                        f"{what}: its input is rounded behind the dropout, whose result something else reads: {where}"
                    )
                    return None
        base = top.args[0]
        assert isinstance(base, Node)
        return base, top

    def behind(self, value: Node, rows: RowSpaces) -> tuple[Dropout, ...]:
        """Returns the dropouts that a value carries the scale of, in training, as quantizers take them.

        A message that is a dropped row, or its product with what the graph alone says, is as many times larger as the
        dropout makes what it keeps.
        """
        found: list[Dropout] = []
        while value.args:
            step = value.args[0]
            if self._drops(value):
                found += self._scale(value)
            elif op_of(value).name == "mul" and note_of(value).stage is Stage.MESSAGE:
                dropped = [part for part in value.args if isinstance(part, Node) and rows.from_features(part)]
                step = dropped[0] if len(dropped) == 1 else None
            elif (taken := gather(value)) is not None:
                step = taken.source
            elif value.target not in (stage_output, scale_rows) and not self._passes(value):
                break
            if not isinstance(step, Node):
                break
            value = step
        return tuple(found)

    def _scale(self, node: Node) -> list[Dropout]:
        if node.op == "call_module":
            return [str(node.target)] if isinstance(self._root.get_submodule(str(node.target)), LAYERS) else []
        p, training = argument(node, "p", 0.5), argument(node, "training", True)
        if not isinstance(training, Node):
            return []  # it drops in evaluation, too, and scales what calibration sees
        computed = [
            name for name, one in (("p", p), ("training", training)) if getattr(one, "op", "get_attr") != "get_attr"
        ]
        if computed:
            where, what = note_of(node).source or node.name, computed[0]
            self.remarks.append(
                f"{where}: what is dropped is rounded behind the dropout, whose {what} the forward computes"
            )
            return []
        return [(str(p.target) if isinstance(p, Node) else float(p), str(training.target))]

    def _op(self, node: Node) -> Op:
        if node.op != "call_module":
            return op_of(node)
        layer = self._root.get_submodule(str(node.target))
        return op_of(node) if has_hooks(layer) else op_of_layer(layer)

    def _drops(self, node: Node) -> bool:
        op = self._op(node)
        return op.drops and op.sign is Sign.KEEPS and node.target is not drop_messages

    def _passes(self, node: Node) -> bool:
        op = self._op(node)
        return (op.reshapes or op.identity or self._drops(node)) and bool(node.args) and isinstance(node.args[0], Node)

    def _options(self, node: Node, marker: Node) -> tuple[Any, Any]:
        """Returns the probability of a dropout, and whether it is in training: of a module, read at each call."""
        if node.op == "call_module":
            with self._graph.inserting_before(marker):
                return self._graph.get_attr(f"{node.target}.p"), self._graph.get_attr(f"{node.target}.training")
        return argument(node, "p", 0.5), argument(node, "training", True)


def _readers(node: Node) -> Iterator[Node]:
    """Yields what reads the values of a node, not only their shape, type or device."""
    return (user for user in node.users if not op_of(user).reads_size and user.target is not getattr)


def _coefficients(node: Node) -> Node:
    """Returns what was only reshaped since."""
    while _reshapes(node) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _reshapes(node: Node) -> bool:
    marks = node.target is stage_output and note_of(node).stage is not Stage.MESSAGE
    return marks or op_of(node).reshapes


def _message_of(coefficient: Node, inner: Node) -> Node | None:
    """Returns the mark of the message that a coefficient multiplies and that is all that it serves; or ``None``."""
    node = coefficient
    while True:
        readers = list(_readers(node))
        if len(readers) != 1:
            return None
        (node,) = readers
        if not _reshapes(node):
            break
    marks = list(_readers(node))
    if op_of(node).name != "mul" or len(marks) != 1 or marks[0].target is not stage_output:
        return None
    message = note_of(marks[0])
    fits = message.stage is Stage.MESSAGE and bool(message.sizes)
    for whole, part in zip(message.sizes, note_of(inner).sizes, strict=True):
        fits = fits and len(part) <= len(whole) and all(size in (1, of) for size, of in zip(part, whole, strict=False))
    return marks[0] if fits else None

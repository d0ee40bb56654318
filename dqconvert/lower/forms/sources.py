"""Sources of values: arguments, attributes, metadata of tensors, and functions of parameters alone."""

from __future__ import annotations

from operator import attrgetter

from torch import Tensor, nn
from torch.fx import Node

from dqconvert.fuse.context import reads_form
from dqconvert.lower.forms.tables import evaluate
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.movers import moves
from dqconvert.lower.values import Constant, Literal, Plain, Value, rows_of, tabular
from dqconvert.trace.constants import literal
from dqconvert.trace.note import note_of


def lower_argument(lowering: Lowering, node: Node) -> Value | None:
    """Takes an argument of forward as it is."""
    return Plain(lowering.program.copy(node, (), {})) if node.op == "placeholder" else None


def lower_attribute(lowering: Lowering, node: Node) -> Value | None:
    """Reads a tensor or a number now, and a module by its path; ``training`` is False."""
    if node.op != "get_attr":
        return None
    path = str(node.target)
    value = attrgetter(path)(lowering.context.root)
    if path.rsplit(".", 1)[-1] == "training":
        return Literal(False)
    if isinstance(value, nn.Module):
        lowering.program.module(path, value)
        return Plain(lowering.program.copy(node, (), {}))
    return Constant(value.detach()) if isinstance(value, Tensor) else Literal(literal(value))


def lower_metadata(lowering: Lowering, node: Node) -> Value | None:
    """Reads shape and device off the codes of a value, and takes the dtype that it had when the model was traced."""
    source = node.args[0] if node.args else None
    if not reads_form(node) or not isinstance(source, Node):
        return None
    value = lowering.values[source]
    if node.target is getattr and node.args[1] == "dtype" and note_of(source).dtype is not None:
        return Literal(note_of(source).dtype) if tabular(value) else None
    rows = rows_of(value)
    return None if rows is None else Plain(lowering.program.copy(node, (rows, *node.args[1:]), node.kwargs))


def lower_constant(lowering: Lowering, node: Node) -> Value | None:
    """Computes a function of known values now; what only moves entries of a rounded weight keeps its quantizer."""
    inputs = [lowering.values[source] for source in node.all_input_nodes]
    if node.op not in ("call_function", "call_method") or not inputs:
        return None
    if not all(isinstance(value, Constant | Literal) for value in inputs):
        return None
    value = evaluate(node, lowering.values)
    if not isinstance(value, Tensor):
        return Literal(literal(value))
    quantizer = inputs[0].quantizer if moves(node) and isinstance(inputs[0], Constant) else None
    return Constant(value, quantizer if quantizer is not None and quantizer.channel_dim is None else None)

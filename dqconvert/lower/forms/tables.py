"""Functions of one entry at a time: on codes they are tables, made by running them on every code there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch.fx import Node

from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.finish import CODES
from dqconvert.lower.values import Codes, Fixed, Grid, Known, Looked, Value, as_looked
from dqconvert.trace.copies import set_mode
from dqconvert.trace.doors import copy_apart
from dqconvert.trace.note import note_of
from dqconvert.trace.ops import op_name

FUNCTIONS = frozenset(
    (
        *("abs", "add", "celu", "clamp", "clip", "div", "elu", "erf", "exp", "expm1", "float", "gelu", "hardshrink"),
        *("hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "log1p", "logsigmoid", "maximum", "minimum"),
        *("mish", "mul", "neg", "pos", "pow", "prelu", "reciprocal", "relu", "relu6", "rsqrt", "rsub", "selu"),
        *("sigmoid", "silu", "softplus", "softshrink", "softsign", "sqrt", "square", "sub", "tanh", "tanhshrink"),
        "threshold",
    )
)
"""By :func:`dqconvert.trace.ops.op_name`."""

MODULES: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
"""Exactly these types: a subclass may do something else."""

_NORMS = (nn.BatchNorm1d, torch_geometric.nn.BatchNorm)


def pointwise(node: Node, module: nn.Module | None) -> bool:
    """Whether each entry of what a node returns depends on the same entry of what it is given, and on parameters.

    Args:
        node: Of the prepared graph.
        module: What it calls, if it calls a module.
    """
    if node.op == "call_module":
        return type(module) in MODULES or _fixed_norm(module)
    return op_name(node) in FUNCTIONS and note_of(node).is_float


def _fixed_norm(module: nn.Module | None) -> bool:
    """Whether a batch norm takes mean and variance from training, rather than from the batch."""
    if type(module) not in _NORMS:
        return False
    norm = module.module if isinstance(module, torch_geometric.nn.BatchNorm) else module
    return norm.running_mean is not None  # type: ignore[union-attr]


def tabulate(node: Node, values: Mapping[Node, Value], module: nn.Module | None) -> Looked | None:
    """The table of a pointwise node; ``None`` where it would take one of three values, or one by pair and column.

    Args:
        node: Of the prepared graph, see :func:`pointwise`.
        values: What it is given.
        module: What it calls, if it calls a module.
    """
    note = note_of(node)
    inputs = {source: values[source] for source in node.all_input_nodes}
    dtype = note.dtype or torch.float32
    looked: dict[Node, Looked] = {}
    for source, value in inputs.items():
        if isinstance(value, Codes | Looked):
            if note_of(source).sizes != note.sizes or not note.is_float:
                return None
            looked[source] = as_looked(value, note.ndim, note_of(source).dtype or dtype)
        elif isinstance(value, Known):
            if value.value.dim() > note.ndim or (value.value.dim() == note.ndim and value.value.size(0) != 1):
                return None
        elif not isinstance(value, Fixed):
            return None
    bases = tuple(dict.fromkeys(base for value in looked.values() for base in value.bases))
    if not 1 <= len(bases) <= 2:
        return None
    given: dict[Node, Any] = {source: _rows(value, bases) for source, value in looked.items()}
    given |= {source: value.value for source, value in inputs.items() if isinstance(value, Known | Fixed)}
    if module is not None:
        given = {source: _spread(rows, note.sizes) for source, rows in given.items()}
    found = _run(node, given, module)
    if not isinstance(found, Tensor) or found.dim() != note.ndim or (len(bases) == 2 and found[0].numel() > 1):
        return None
    return Looked(bases, found.reshape(*[CODES] * len(bases), *found.shape[1:]))


def _rows(value: Looked, bases: tuple[Node, ...]) -> Tensor:
    """A table as the rows of a tensor: one for each code, or for each pair of codes."""
    rest = value.table.shape[len(value.bases) :]
    if value.bases == bases:
        table = value.table
    elif len(value.bases) == 2:  # the same, in the other order
        table = value.table.transpose(0, 1)
    else:
        table = value.table.unsqueeze(1 - bases.index(value.bases[0]))
    return table.expand(*[CODES] * len(bases), *rest).reshape(-1, *rest)


def _spread(rows: Any, sizes: tuple[tuple[int, ...], ...]) -> Any:
    """A table with all columns, where their number does not depend on the graph."""
    if not isinstance(rows, Tensor) or len({size[1:] for size in sizes}) > 1:
        return rows
    return rows.expand(rows.size(0), *sizes[0][1:])


def _run(node: Node, given: Mapping[Node, Any], module: nn.Module | None) -> Any:
    """What a node returns for these arguments, none of which it changes."""
    args, kwargs = torch.fx.node.map_arg(
        (node.args, node.kwargs),
        lambda source: given[source].clone() if isinstance(given[source], Tensor) else given[source],
    )
    if module is not None:
        return set_mode(copy_apart(module), False)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def fold(node: Node, values: Mapping[Node, Value]) -> Any:
    """What a function or method returns whose arguments are all known."""
    return _run(node, {source: values[source].value for source in node.all_input_nodes}, None)  # type: ignore[union-attr]


def rounded(value: Looked, grid: Grid) -> Looked:
    """The table of codes of a value's table."""
    table = quantize(value.table.contiguous(), grid.numbers(value.table.device))
    return Looked(value.bases, table)


def unchanged(table: Tensor, top: int) -> bool:
    """Whether a table of codes leaves every code as it is."""
    flat = table.reshape(CODES, -1)[: top + 1]
    same = torch.arange(top + 1, dtype=torch.uint8, device=flat.device)[:, None]
    return torch.equal(flat, same.expand_as(flat))

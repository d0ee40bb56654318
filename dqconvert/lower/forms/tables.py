"""Functions of one entry at a time: on codes they are look-up tables, made by running them on every code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from dqconvert.kernels.integer.finish import CODES
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.values import (
    Codes,
    Constant,
    Literal,
    Tabulated,
    Value,
    as_tabulated,
    groups_node,
    number_of_groups,
    of_group,
    tabular,
    together,
)
from dqconvert.ops import op_of, op_of_layer
from dqconvert.trace.copies import set_mode
from dqconvert.trace.note import note_of
from dqconvert.trace.parts import copy_apart


def lower_pointwise(lowering: Lowering, node: Node) -> Value | None:
    """Makes a table of a pointwise function of codes, by running it on every code there is.

    Returns:
        None if a node is no such function, or if a table would take codes of three values, or pairs of codes by column.
    """
    module = lowering.module(node)
    groups = {groups for source in node.all_input_nodes if (groups := groups_node(lowering.values[source])) is not None}
    if groups:
        return _by_group(lowering, node, groups.pop()) if len(groups) == 1 else None
    if not _pointwise(node, module) or not any(tabular(lowering.values[n]) for n in node.all_input_nodes):
        return None
    note, values = note_of(node), lowering.values
    known: dict[Node, Any] = {}
    tables: dict[Node, Tabulated] = {}
    for source in node.all_input_nodes:
        value = values[source]
        if isinstance(value, Codes | Tabulated):
            if note_of(source).sizes != note.sizes or not note.is_float:
                return None
            tables[source] = as_tabulated(value, note.ndim, note_of(source).dtype or note.dtype or torch.float32)
        elif isinstance(value, Literal) or (isinstance(value, Constant) and _of_rows(value.value, note.ndim)):
            known[source] = value.value
        else:
            return None
    bases = tuple(dict.fromkeys(base for table in tables.values() for base in table.bases))
    if not 1 <= len(bases) <= 2:
        return None
    given = known | {source: _rows(table, bases) for source, table in tables.items()}
    if module is not None:
        given = {source: _spread(rows, note.sizes) for source, rows in given.items()}
    found = _run(node, given, module)
    if not isinstance(found, Tensor) or found.dim() != note.ndim or (len(bases) == 2 and found[0].numel() > 1):
        return None
    return Tabulated(bases, found.reshape(*[CODES] * len(bases), *found.shape[1:]))


def _by_group(lowering: Lowering, node: Node, groups: Node) -> Value | None:
    """Makes a table for each group of rows, given what is known of its rows."""
    values = {source: lowering.values[source] for source in node.all_input_nodes}
    tables: list[Tabulated | None] = []
    try:
        for group in range(max(map(number_of_groups, values.values()))):
            lowering.values.update({source: of_group(value, group) for source, value in values.items()})
            found = lower_pointwise(lowering, node)
            tables.append(found if isinstance(found, Tabulated) else None)
            if tables[-1] is None:
                return None
    finally:
        lowering.values.update(values)
    return together(tables, groups)


def evaluate(node: Node, values: Mapping[Node, Value]) -> Any:
    """Returns what a function or method returns whose arguments are all known."""
    return _run(node, {source: values[source].value for source in node.all_input_nodes}, None)  # type: ignore[union-attr]


def _pointwise(node: Node, module: nn.Module | None) -> bool:
    """True if each entry of a node's result depends on the same entry of its arguments, and on parameters, alone."""
    if node.op == "call_module":
        return op_of_layer(module).pointwise or _fixed_norm(module)
    return op_of(node).pointwise and note_of(node).is_float


def _fixed_norm(module: nn.Module | None) -> bool:
    """True if a batch norm takes mean and variance from training, rather than from the batch."""
    if op_of_layer(module).name != "batch_norm":
        return False
    norm = module.module if isinstance(module, torch_geometric.nn.BatchNorm) else module
    return norm.running_mean is not None  # type: ignore[union-attr]


def _of_rows(constant: Tensor, ndim: int) -> bool:
    """True if a constant is the same for all rows of a value of ``ndim`` dimensions."""
    return constant.dim() < ndim or (constant.dim() == ndim and constant.size(0) == 1)


def _rows(value: Tabulated, bases: tuple[Node, ...]) -> Tensor:
    """Returns a table as the rows of a tensor: one for each code, or for each pair of codes of ``bases``."""
    rest = value.table.shape[len(value.bases) :]
    if value.bases == bases:
        table = value.table
    elif len(value.bases) == 2:  # the same, in the other order
        table = value.table.transpose(0, 1)
    else:
        table = value.table.unsqueeze(1 - bases.index(value.bases[0]))
    return table.expand(*[CODES] * len(bases), *rest).reshape(-1, *rest)


def _spread(rows: Any, sizes: tuple[tuple[int, ...], ...]) -> Any:
    """Returns a table with all columns, where their number does not depend on the graph."""
    if not isinstance(rows, Tensor) or len({size[1:] for size in sizes}) > 1:
        return rows
    return rows.expand(rows.size(0), *sizes[0][1:])


def _run(node: Node, given: Mapping[Node, Any], module: nn.Module | None) -> Any:
    """Returns what a node returns for these arguments, none of which it changes."""
    args, kwargs = map_arg(
        (node.args, node.kwargs),
        lambda source: given[source].clone() if isinstance(given[source], Tensor) else given[source],
    )
    if module is not None:
        return set_mode(copy_apart(module), False)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)

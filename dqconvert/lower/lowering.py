"""The state of a lowering that the forms share: what is known of each value, and the program being written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from dqconvert.fuse.context import Context, only_user
from dqconvert.fuse.messages import Propagation, matched
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.groups import quantize_groups
from dqconvert.lower.evaluation import differentiated
from dqconvert.lower.program import Program
from dqconvert.lower.report import Float
from dqconvert.lower.values import (
    Codes,
    GroupCodes,
    GroupGrid,
    Joined,
    Literal,
    Plain,
    QuantizerGrid,
    Tabulated,
    Value,
    as_tabulated,
    groups_node,
    is_identity,
    number_of_groups,
    rounded,
    rows_of,
    tables_by_group,
    tabular,
    together,
)
from dqconvert.quant import FakeQuantize
from dqconvert.quant.own_grid import OwnGrid, says_grid
from dqconvert.rewrite.norms import scale_rows
from dqconvert.trace.note import Note, note_of


class Lowering:
    """The state of the lowering of one graph, which the forms read and write.

    Args:
        graph: From :func:`dqconvert.lower.evaluation.evaluation_graph`.

    Attributes:
        context: The graph and its modules.
        program: What is being written.
        values: What is known of each node so far.
        floats: What stays in float and why, by node of the integer graph.
        differentiated: Nodes through which the forward itself takes a gradient.
        scaled: Nodes whose codes are those of the scaled rows that alone read them.
        propagations: Message passing that the integer operator can do, by the node that aggregates.
    """

    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self.context = Context.of(graph, root)
        for node in graph.nodes:  # a user's quantizer that says its grid is one
            if node.op == "call_module" and says_grid(own := self.context.plain_module(node)) and _of_quantizers(node):
                assert own is not None
                self.context.modules[str(node.target)] = OwnGrid(own, str(node.target))
        self.program = Program()
        self.values: dict[Node, Value] = {}
        self.floats: dict[Node, Float] = {}
        self.differentiated = differentiated(graph)
        self.scaled: set[Node] = set()
        quantizers = [node for node in graph.nodes if self.context.is_quantizer(node)]
        found = [matched(self.context, node, shared=True) for node in quantizers]
        self.propagations: dict[Node, Propagation] = {match.aggregate: match for match in found if match is not None}

    # -- of the prepared graph ---------------------------------------------------------------------------------------

    def module(self, node: Node) -> nn.Module | None:
        """Returns the module that a node calls, if calling it does nothing else (runs no hooks)."""
        return self.context.plain_module(node)

    def quantizer(self, node: Node) -> FakeQuantize | None:
        """Returns the quantizer that a node calls, if it is enabled."""
        module = self.module(node)
        return module if isinstance(module, FakeQuantize) and module.fake_quant_enabled else None

    def grid(self, node: Node) -> QuantizerGrid | None:
        """Returns the grid to which a node rounds the whole tensor; None if it is no such quantizer."""
        quantizer = self.quantizer(node)
        return None if quantizer is None or quantizer.min_val.dim() > 0 else QuantizerGrid.of(quantizer)

    def any_grid(self, node: Node) -> QuantizerGrid | GroupGrid | None:
        """Returns the same, or the grids to which it rounds the rows of each group of in-degrees."""
        quantizer = self.quantizer(node)
        if quantizer is None or not quantizer.grouped or quantizer.row_dim != 0:
            return self.grid(node)
        low, scales, zeros = quantizer.quant_min, quantizer.scale.tolist(), quantizer.zero_point.tolist()
        top = quantizer.quant_max - low
        grids = [QuantizerGrid(scale, zero - low, top, low) for scale, zero in zip(scales, zeros, strict=True)]
        return GroupGrid(tuple(grids), self.plain(node.args[2]))

    def any_grid_behind(self, node: Node) -> QuantizerGrid | GroupGrid | None:
        """Returns the grids to which a node's value is rounded right behind; None if anything else uses the value."""
        user = only_user(node)
        return None if user is None or user.args[:1] != (node,) else self.any_grid(user)

    def grid_behind(self, node: Node) -> QuantizerGrid | None:
        """Returns the grid to which a node's value is rounded right behind; None if anything else uses the value."""
        user = only_user(node)
        return None if user is None or user.args[:1] != (node,) else self.grid(user)

    def behind(self, node: Node) -> tuple[QuantizerGrid | GroupGrid, Node | None] | None:
        """Returns the grid to which a node's rows are rounded, and what they are multiplied by before, ``[rows]``.

        None: they are not rounded right behind. Whoever is told of a multiplier writes it into the epilogue.
        """
        scale = only_user(node)
        if scale is None or scale.target is not scale_rows or scale.args[0] is not node:
            grid = self.any_grid_behind(node)
            return None if grid is None else (grid, None)
        factor, dim = scale.args[1], scale.args[2] if len(scale.args) > 2 else 0
        grid, shares = self.any_grid_behind(scale), self.values.get(factor)  # type: ignore[arg-type]
        fits = dim == 0 and note_of(node).dtype == torch.float32 and isinstance(shares, Plain)
        if grid is None or not fits:
            return None
        self.scaled.add(node)
        return grid, shares.node  # type: ignore[union-attr]

    # -- of the integer graph ----------------------------------------------------------------------------------------

    def value(self, argument: Any) -> Value:
        """Returns what is known of an argument of a node."""
        return self.values[argument] if isinstance(argument, Node) else Literal(argument)

    def plain(self, argument: Any) -> Any:
        """Returns an argument as the float graph has it: a node that holds it, or the Python value."""
        if not isinstance(argument, Node):
            return argument
        return self.program.plain(self.values[argument], note_of(argument))

    def plain_arguments(self, node: Node) -> tuple[Any, Any]:
        """Returns a node's positional and keyword arguments, likewise."""
        return map_arg((node.args, node.kwargs), self.plain)

    def num_rows(self, node: Node) -> Node:
        """Returns a node that counts the rows of a value; values that follow from codes are not computed for it."""
        return self.program.method("size", (rows_of(self.values[node]) or self.plain(node), 0))

    def rounded(self, value: Value, grid: QuantizerGrid | GroupGrid, note: Note, name: str) -> Value:
        """Returns a value requantized to a grid.

        Args:
            name: Prefix of the constants' names.
        """
        program = self.program
        if isinstance(value, Codes | GroupCodes) and value.grid == grid:
            return value
        if isinstance(grid, GroupGrid) or groups_node(value) is not None:
            return self._rounded_by_group(value, grid, note, name)
        if isinstance(value, Joined):
            parts = [self.rounded(part, grid, note, name) for part in value.parts]
            nodes = [part.node if isinstance(part, Codes | Plain) else program.plain(part, note) for part in parts]
            return Codes(program.call(torch.cat, (nodes, value.dim), note), grid)
        if isinstance(value, Codes):
            value = as_tabulated(value, max(note.ndim, 1), torch.float32)
        if isinstance(value, Tabulated):
            codes = rounded(value, grid)
            if len(codes.bases) == 1 and is_identity(codes.table):
                return Codes(codes.bases[0], grid)
            return Codes(program.look_up(codes, name, note), grid)
        numbers = program.grid(grid, f"{name}.grid")
        return Codes(program.call(quantize, (program.plain(value, note), numbers), note), grid)

    def _rounded_by_group(self, value: Value, grid: QuantizerGrid | GroupGrid, note: Note, name: str) -> Value:
        program, groups = self.program, groups_node(value)
        own = grid.groups if isinstance(grid, GroupGrid) else groups
        assert own is not None
        count = len(grid.grids) if isinstance(grid, GroupGrid) else number_of_groups(value)
        if tabular(value) and groups in (None, own):
            grids = grid.grids if isinstance(grid, GroupGrid) else [grid] * count
            known = tables_by_group(value, count, max(note.ndim, 1), torch.float32)
            tables = [rounded(table, one) for table, one in zip(known, grids, strict=True)]
            if len(tables[0].bases) == 1 and all(is_identity(table.table) for table in tables):
                node = tables[0].bases[0]
            else:
                codes = together(tables, own)
                assert codes is not None
                node = program.look_up(codes, name, note)
            return GroupCodes(node, grid) if isinstance(grid, GroupGrid) else Codes(node, grid)
        numbers = program.constant(grid.numbers(), f"{name}.grid")
        plain = program.plain(value, note)
        if isinstance(grid, GroupGrid):
            return GroupCodes(program.call(quantize_groups, (plain, numbers, grid.groups), note), grid)
        return Codes(program.call(quantize, (plain, numbers), note), grid)

    def coded(self, value: Value, note: Note, name: str) -> Codes | None:
        """Returns a value as codes of the grid that it was made from, if that changes no value, as behind a ReLU.

        Args:
            name: Prefix of the constants' names.

        Returns:
            None if the value takes values that are not on that grid, or follows from no codes.
        """
        if isinstance(value, Codes) or not isinstance(value, Tabulated) or len(value.bases) > 1:
            return value if isinstance(value, Codes) else None
        # One node may stand for codes on several grids: where a grid rounds another one's values to the same codes.
        grids = [v.grid for v in self.values.values() if isinstance(v, Codes) and v.node is value.bases[0]]
        for grid in dict.fromkeys(grids):
            table, reached = value.table, slice(grid.top + 1)
            values = grid.values(table.dtype, table.device)[rounded(value, grid).table.long()]
            if torch.equal(values[reached], table[reached]):
                found = self.rounded(value, grid, note, name)
                return found if isinstance(found, Codes) else None
        return None


def _of_quantizers(node: Node) -> bool:
    """True if the module that a node calls is among the quantizers of another one, where only ``prepare`` puts them."""
    *_, container, _ = ["", *str(node.target).split(".")]
    return container.rstrip("_") == "quant"

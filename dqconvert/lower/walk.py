"""The walk over the prepared graph that writes the integer graph: node by node, each by the first form that fits."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from dqconvert.fuse.context import Context, only_user, reads_form
from dqconvert.kernels import fake_quantize
from dqconvert.kernels.integer.codes import quantize
from dqconvert.lower.builder import Builder
from dqconvert.lower.evaluation import differentiated
from dqconvert.lower.forms.attention import lower_softmax
from dqconvert.lower.forms.embedding import lower_embedding
from dqconvert.lower.forms.groups import lower_groups
from dqconvert.lower.forms.heads import lower_edge_products, lower_mean, lower_products
from dqconvert.lower.forms.linear import lower_linear
from dqconvert.lower.forms.messages import Propagations, lower_messages
from dqconvert.lower.forms.tables import fold, pointwise, rounded, tabulate, unchanged
from dqconvert.lower.movers import moves, moves_rows
from dqconvert.lower.places import Place, hold, rounded_value
from dqconvert.lower.report import Float
from dqconvert.lower.values import Codes, Fixed, Grid, Joined, Known, Looked, Plain, Value, tabular
from dqconvert.quant import FakeQuantize
from dqconvert.trace.constants import literal
from dqconvert.trace.names import module_of
from dqconvert.trace.note import Note, note_of
from dqconvert.trace.ops import argument, op_name
from dqconvert.trace.runtime import keep_gradient, private

_IDENTITIES = frozenset(("clone", "detach", "identity"))
_IDENTITY_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUTS = frozenset(("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"))


class Lowering:
    """Lowers one graph.

    Args:
        graph: From :func:`dqconvert.lower.evaluation.evaluation_graph`.
        root: The prepared module.

    Attributes:
        out: What is being written.
        values: What is known of each node so far.
        floats: What stays in float and why, by node of the integer graph.
    """

    def __init__(self, graph: Graph, root: nn.Module) -> None:
        self.context = Context.of(graph, root)
        self.out = Builder()
        self.values: dict[Node, Value] = {}
        self.floats: dict[Node, Float] = {}
        self.propagations = Propagations(self.context)
        self._differentiated = differentiated(graph)

    def run(self) -> None:
        """Writes the integer graph."""
        nodes = list(self.context.graph.nodes)
        first = next((node for node in nodes if node in self._differentiated), None)
        last = next((node for node in reversed(nodes) if node.target is torch.autograd.grad), None)
        for node in nodes:
            if node is first:
                self.out.call(torch._C._set_grad_enabled, (True,))
            value = self.values[node] = self._lower(node)
            if node is last:
                self.out.call(torch._C._set_grad_enabled, (False,))
            if isinstance(value, Codes) and self.quantizer(node) is not None:
                rounds = rounded_value(node, self.context.modules).name
                scale, zero = value.grid.scale, value.grid.zero
                path, holder = str(node.target), value.node
                hold(holder, Place(path=path, value=rounds, node=holder.name, scale=scale, zero=zero))

    def _lower(self, node: Node) -> Value:
        if node in self._differentiated:
            return self._keep(node, "its gradient is taken in the forward")
        for form in _FORMS:
            value = form(self, node)
            if value is not None:
                return value
        return self._keep(node)

    # -- what the forms ask ------------------------------------------------------------------------------------------

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if calling it does nothing else."""
        return self.context.plain_module(node)

    def quantizer(self, node: Node) -> FakeQuantize | None:
        """The quantizer that a node calls, if it rounds."""
        module = self.module(node)
        return module if isinstance(module, FakeQuantize) and module.fake_quant_enabled else None

    def grid_behind(self, node: Node) -> Grid | None:
        """The grid to which alone a node's value is rounded; ``None`` if something else uses the value, too."""
        user = only_user(node)
        if user is None or user.args[:1] != (node,):
            return None
        return grid_of(self.quantizer(user))

    def plain(self, node: Node) -> Any:
        """What holds a node's value as the float graph does."""
        return self.out.plain(self.values[node], note_of(node))

    def rows(self, node: Node) -> Node:
        """How many rows a value has."""
        value = self.values[node]
        holder = value.node if isinstance(value, Codes) else value.bases[0] if isinstance(value, Looked) else None
        return self.out.graph.call_method("size", (holder or self.plain(node), 0))

    def arguments(self, node: Node) -> tuple[Any, Any]:
        """A node's arguments, likewise."""
        return torch.fx.node.map_arg((node.args, node.kwargs), self.plain)

    # -- the forms, the first that fits is taken ---------------------------------------------------------------------

    def _argument(self, node: Node) -> Value | None:
        return Plain(self.out.copy(node, (), {})) if node.op == "placeholder" else None

    def _attribute(self, node: Node) -> Value | None:
        if node.op != "get_attr":
            return None
        value = attrgetter(str(node.target))(self.context.root)
        if str(node.target).rsplit(".", 1)[-1] == "training":
            return Fixed(False)
        if isinstance(value, nn.Module):
            self.out.module(str(node.target), value)
            return Plain(self.out.copy(node, (), {}))
        return Known(value.detach()) if isinstance(value, Tensor) else Fixed(literal(value))

    def _form(self, node: Node) -> Value | None:
        """What is read off a tensor without looking into it."""
        source = node.args[0] if node.args else None
        if not reads_form(node) or not isinstance(source, Node):
            return None
        value = self.values[source]
        if node.target is getattr and node.args[1] == "dtype" and note_of(source).dtype is not None:
            return Fixed(note_of(source).dtype) if tabular(value) else None
        if isinstance(value, Codes | Looked):
            base = value.node if isinstance(value, Codes) else value.bases[0]
            return Plain(self.out.copy(node, (base, *node.args[1:]), node.kwargs))
        return None

    def _constant(self, node: Node) -> Value | None:
        """A function of what is known."""
        inputs = [self.values[source] for source in node.all_input_nodes]
        if node.op not in ("call_function", "call_method") or not inputs:
            return None
        if not all(isinstance(value, Known | Fixed) for value in inputs):
            return None
        value = fold(node, self.values)
        if not isinstance(value, Tensor):
            return Fixed(literal(value))
        source = inputs[0] if moves(node) else None
        one_grid = isinstance(source, Known) and source.quantizer is not None and source.quantizer.channel_dim is None
        return Known(value, source.quantizer if one_grid and isinstance(source, Known) else None)

    def _rounding(self, node: Node) -> Value | None:
        module = self.module(node)
        if not isinstance(module, FakeQuantize):
            return None
        source = node.args[0]
        assert isinstance(source, Node)
        value = self.values[source]
        if not module.fake_quant_enabled:
            return value
        if isinstance(value, Known):
            return Known(_fake_quantized(value.value, module), module)
        grid = grid_of(module)
        if grid is None:
            return self._rounded_by_channel(node, module)
        return self.rounded(value, grid, note_of(source), str(node.target))

    def rounded(self, value: Value, grid: Grid, note: Note, name: str) -> Value:
        """A value on a grid."""
        if isinstance(value, Codes) and value.grid == grid:
            return value
        if isinstance(value, Joined):
            parts = [self.rounded(part, grid, note, name) for part in value.parts]
            nodes = [part.node if isinstance(part, Codes | Plain) else self.out.plain(part, note) for part in parts]
            return Codes(self.out.call(torch.cat, (nodes, value.dim), note), grid)
        if isinstance(value, Codes):
            value = Looked((value.node,), value.grid.values(torch.float32).view(-1, *[1] * (max(note.ndim, 1) - 1)))
        if isinstance(value, Looked):
            codes = rounded(value, grid)
            if len(codes.bases) == 1 and unchanged(codes.table, 255):
                return Codes(codes.bases[0], grid)
            return Codes(self.out.look_up(codes, name, note), grid)
        numbers = self.out.constant(grid.numbers(), f"{name}.grid")
        return Codes(self.out.call(quantize, (self.out.plain(value, note), numbers), note), grid)

    def coded(self, value: Value, note: Note, name: str) -> Codes | None:
        """A value as codes on the grid that it was made from, if all that it can be lies on it, as behind a relu."""
        if isinstance(value, Codes) or not isinstance(value, Looked) or len(value.bases) > 1:
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

    def _rounded_by_channel(self, node: Node, module: FakeQuantize) -> Value:
        scale = self.out.constant(module.scale, f"{node.target}.scale")
        zero_point = self.out.constant(module.zero_point, f"{node.target}.zero_point")
        ends = module.quant_min, module.quant_max
        source = node.args[0]
        assert isinstance(source, Node)
        args = (self.plain(source), scale, zero_point, *ends, None, module.row_dim, module.channel_dim)
        new = self.out.call(fake_quantize, args, note_of(node))
        self.floats[new] = Float.of(node, "its grids differ by channel")
        return Plain(new)

    def _identity(self, node: Node) -> Value | None:
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or source not in self.values:
            return None
        name = op_name(node)
        if name in _DROPOUTS:
            training = argument(node, "training", True)
            off = self.values[training] if isinstance(training, Node) else Fixed(training)
            return self.values[source] if isinstance(off, Fixed) and not off.value else None
        if node.target is keep_gradient:
            (_, source) = node.all_input_nodes if len(node.all_input_nodes) == 2 else (None, source)
            return self.values[source]
        same = isinstance(self.module(node), _IDENTITY_MODULES) or name in _IDENTITIES or self._for_layers(node)
        return self.values[source] if same else None

    def _for_layers(self, node: Node) -> bool:
        """Whether a copy is for layers of torch's alone, which change nothing in place here."""
        modules = [self.module(user) for user in node.users]
        return node.target is private and all(module_of(type(module)).startswith("torch.nn.") for module in modules)

    def _moved(self, node: Node) -> Value | None:
        if not moves(node):
            return None
        source = node.args[0]
        assert isinstance(source, Node)
        value = self.values[source]
        if not isinstance(value, Codes | Looked):
            return None
        note = note_of(node)
        rest = torch.fx.node.map_arg((node.args[1:], node.kwargs), self.plain)

        def move(base: Node) -> Node:
            return self.out.copy(node, (base, *rest[0]), rest[1])

        if isinstance(value, Codes):
            return Codes(move(value.node), value.grid)
        ahead = len(value.bases)
        if moves_rows(node):
            return Looked(tuple(map(move, value.bases)), value.table)
        if note.is_tensor and note.ndim > 0 and value.table[(0,) * ahead].numel() == 1:
            table = value.table.reshape(*value.table.shape[:ahead], *[1] * (note.ndim - 1))
            return Looked(tuple(map(move, value.bases)), table)
        return None

    def _joined(self, node: Node) -> Value | None:
        if op_name(node) != "cat" or not isinstance(node.args[0], list | tuple):
            return None
        dim = argument(node, "dim", 0)
        parts = tuple(self.values[part] for part in node.args[0] if isinstance(part, Node))
        if not isinstance(dim, int) or not any(map(tabular, parts)):
            return None
        grids = {part.grid for part in parts if isinstance(part, Codes)}
        if len(grids) == 1 and all(isinstance(part, Codes) for part in parts):
            codes = [part.node for part in parts if isinstance(part, Codes)]
            return Codes(self.out.call(torch.cat, (codes, dim), note_of(node)), grids.pop())
        return Joined(parts, dim)

    def _linear(self, node: Node) -> Value | None:
        return lower_linear(self, node)

    def _messages(self, node: Node) -> Value | None:
        return lower_messages(self, node)

    def _groups(self, node: Node) -> Value | None:
        return lower_groups(self, node)

    def _embedding(self, node: Node) -> Value | None:
        return lower_embedding(self, node)

    def _table(self, node: Node) -> Value | None:
        module = self.module(node)
        if not pointwise(node, module) or not any(tabular(self.values[n]) for n in node.all_input_nodes):
            return None
        return tabulate(node, self.values, module)

    # -- all else ----------------------------------------------------------------------------------------------------

    def _keep(self, node: Node, reason: str = "it has no integer form here") -> Value:
        """The node as it is, on values."""
        args, kwargs = self.arguments(node)
        if node.op == "call_module":
            module = self.context.modules[str(node.target)]
            self.out.module(str(node.target), module)
            if not module_of(type(module)).startswith("torch.nn."):
                args, kwargs = torch.fx.node.map_arg((args, kwargs), self._own)
        new = self.out.copy(node, args, kwargs)
        if note_of(node).is_float and node.op != "output":
            self.floats[new] = Float.of(node, reason)
        return Plain(new)

    def _own(self, value: Node) -> Node:
        """A copy of a value that was made here, for a module that may do anything with it: change it, let go of it."""
        note = note_of(value)
        return self.out.call(torch.clone, (value,), note) if note.is_float and value.op != "placeholder" else value


_FORMS: tuple[Callable[[Lowering, Node], Value | None], ...] = (
    Lowering._argument,
    Lowering._attribute,
    Lowering._form,
    Lowering._constant,
    lower_softmax,
    lower_mean,
    Lowering._rounding,
    Lowering._identity,
    Lowering._moved,
    Lowering._joined,
    Lowering._linear,
    lower_products,
    lower_edge_products,
    Lowering._messages,
    Lowering._groups,
    Lowering._embedding,
    Lowering._table,
)


def grid_of(quantizer: FakeQuantize | None) -> Grid | None:
    """The grid of a quantizer that has one for the whole tensor."""
    return None if quantizer is None or quantizer.channel_dim is not None else Grid.of(quantizer)


def _fake_quantized(value: Tensor, quantizer: FakeQuantize) -> Tensor:
    scale, zero_point, ends = quantizer.scale, quantizer.zero_point, (quantizer.quant_min, quantizer.quant_max)
    return fake_quantize(value, scale, zero_point, *ends, None, quantizer.row_dim, quantizer.channel_dim)

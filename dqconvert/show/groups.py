"""Which nodes of a graph stand on one line of the tree: the operations of one stage, and what was inserted there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dqconvert.show.view import NodeView, QuantizerView, View

_STAGES = ("message", "aggregate", "update", "edge_update", "protection")
_STAGE_OF_ROLE = {"message": "message", "aggregate": "aggregate", "edge_weight": "message"}
_LEVELS = {"parameter": "param"}


@dataclass
class Group:
    """Operations that stand on one line, and the inserted nodes beside them.

    Attributes:
        where: A stage, or the path of a module within its layer; empty for the layer's own operations.
        operations: What is computed.
        inserted: What was inserted, in words.
    """

    where: str
    operations: list[str] = field(default_factory=list)
    inserted: list[str] = field(default_factory=list)


@dataclass
class LayerBlock:
    """The groups of one call of a message-passing layer; without a header, those of the model itself.

    Attributes:
        header: ``convs.0 (GCNConv)``.
        layer: The layer's path.
        call: Which call of it, from 0.
        groups: Its lines.
    """

    header: str
    layer: str = ""
    call: int = 0
    groups: list[Group] = field(default_factory=list)


def blocks_of(view: View) -> list[LayerBlock]:
    """The training graph of a view in blocks and groups, in the order of execution."""
    return _Grouper(view).run()


def quantizer_words(quantizer: QuantizerView) -> str:
    """``+ message       edge  s8 [-2.3, 1.9]``."""
    entry = quantizer.entry
    name = entry.path.rpartition(".")[2]
    level = _LEVELS.get(entry.level, entry.level)
    return f"+ {name:<13} {level:<5} {quantizer.bits:<2} {quantizer.range_text}".rstrip()


class _Grouper:
    def __init__(self, view: View) -> None:
        self.view = view
        self.nodes = view.nodes["train"]
        self.layers: dict[int, str] = {}
        self.stages: dict[int, str] = {}
        for node in self.nodes:
            if node.propagation >= 0 and node.kind != "quantizer":  # the outermost module that ran in a propagation
                known = self.layers.get(node.propagation, node.module)
                self.layers[node.propagation] = min(known, node.module, key=len)
            if node.propagation >= 0 and node.stage != "none":
                self.stages.setdefault(node.propagation, node.stage)
        entries = [quantizer.entry for quantizer in view.quantizers.values()]
        self.weighted = {entry.module for entry in entries if entry.role in ("weight", "input")}
        self.blocks: list[LayerBlock] = []

    def run(self) -> list[LayerBlock]:
        waiting: list[NodeView] = []  # weights and inputs stand beside the operation that takes them
        for node in self._adopted([node for node in self.nodes if node.is_arithmetic]):
            if self._role(node) in ("weight", "input"):
                waiting.append(node)
                continue
            group = self._group(node)
            group.inserted += [self._words(other) for other in waiting if other.module == node.module]
            waiting = [other for other in waiting if other.module != node.module]
            if node.kind in ("quantizer", "protection"):
                group.inserted.append(self._words(node))
            else:
                group.operations.append(self._operation(node))
        for node in waiting:
            self._group(node).inserted.append(self._words(node))
        return self.blocks

    def _adopted(self, nodes: list[NodeView]) -> list[NodeView]:
        """A module of the root that is called in the middle of a layer (a shared activation) counts to that layer."""
        adopted, current, call = [], "", 0
        for index, node in enumerate(nodes):
            layer = self._layer(node.module)
            if node.kind == "module" and not layer and current:
                later = (self._layer(other.module) for other in nodes[index + 1 :] if other.module != node.module)
                if next(later, "") == current:
                    node, layer = replace(node, module=current, call=call), current
            if layer and node.module == layer and node.kind != "quantizer":
                call = node.call
            current = layer
            adopted.append(node)
        return adopted

    def _group(self, node: NodeView) -> Group:
        """The line that a node belongs to: the last one, or a new one behind it."""
        block = self._block(node)
        where = self._where(node, block.layer)
        named = where in _STAGES or node.module in self.weighted
        if block.groups:
            last = block.groups[-1]
            if last.where == where or (self._role(node) in ("feature", "update") and last.operations):
                return last
            if not named and not last.where and not last.inserted and node.kind in ("op", "module"):
                return last
        block.groups.append(Group(where if named else ""))
        return block.groups[-1]

    def _block(self, node: NodeView) -> LayerBlock:
        layer = self._layer(node.module)
        counts = bool(layer) and node.module == layer and node.kind != "quantizer"
        last = self.blocks[-1] if self.blocks else None
        if last is not None and last.layer == layer and not (counts and last.call != node.call):
            return last
        call = node.call if counts else 0
        again = f", call {call + 1}" if call else ""
        header = f"{layer} ({self.view.modules.get(layer, 'module')}{again})" if layer else ""
        self.blocks.append(LayerBlock(header, layer, call))
        return self.blocks[-1]

    def _layer(self, path: str) -> str:
        """The message-passing layer that a module is, or is in; empty if none, or if it is the root."""
        inside = [layer for layer in self.layers.values() if layer and f"{path}.".startswith(f"{layer}.")]
        return max(inside, key=len, default="")

    def _where(self, node: NodeView, layer: str) -> str:
        if node.kind == "protection":
            return "protection"
        stage = node.stage
        if node.kind == "quantizer":
            stage = _STAGE_OF_ROLE.get(self._role(node), "none")
        elif stage == "none" and node.propagation >= 0 and node.module == layer:
            stage = self.stages.get(node.propagation, "message")  # what is gathered for it
        if stage in _STAGES and (node.module == layer or node.kind == "module" or stage != "message"):
            return stage
        return _within(node.module, layer)

    def _role(self, node: NodeView) -> str:
        return self.view.quantizers[node.target].entry.role if node.kind == "quantizer" else ""

    def _operation(self, node: NodeView) -> str:
        return _within(node.target, self._layer(node.target)) if node.kind == "module" else node.label

    def _words(self, node: NodeView) -> str:
        if node.kind == "quantizer":
            return quantizer_words(self.view.quantizers[node.target])
        low, high = self.view.protections[node.target]
        return f"+ {node.target}  p {low:g} to {high:g}"


def _within(path: str, layer: str) -> str:
    """A path without that of its layer."""
    return path[len(layer) :].lstrip(".") if layer else path

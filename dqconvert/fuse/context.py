"""The graph that is being fused, and what every pass asks of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from dqconvert.ops import writes
from dqconvert.quant import FakeQuantize
from dqconvert.quant.own_grid import OwnGrid
from dqconvert.report import Fusion
from dqconvert.trace.leaves import has_hooks


@dataclass(frozen=True, kw_only=True)
class Context:
    """A graph that is being fused: the passes read and change it, one after the other.

    Attributes:
        graph: A copy of the prepared graph, changed in place.
        root: The module that the graph is of; gets the modules that remember.
        modules: The modules of ``root`` by path.
        fusions: What was fused so far, by the node that it became.
        memos: Paths of the modules that remember, by what they are asked for.
        tag: Sets the names of those apart from those of other graphs, which they would make forget.
    """

    graph: Graph
    root: nn.Module
    modules: dict[str, nn.Module]
    fusions: dict[Node, Fusion] = field(default_factory=dict)
    memos: dict[Any, str] = field(default_factory=dict)
    tag: str = ""

    @classmethod
    def of(cls, graph: Graph, root: nn.Module, tag: str = "") -> Context:
        """Returns the state before the first pass."""
        return cls(graph=graph, root=root, modules=dict(root.named_modules(remove_duplicate=False)), tag=tag)

    def plain_module(self, node: Node) -> nn.Module | None:
        """Returns the module that a node calls, unless calling it also runs hooks: those see it called as it is."""
        module = self._called(node)
        return None if module is None or has_hooks(module) else module

    def is_quantizer(self, node: Node) -> bool:
        """True if a node calls a plain quantizer of rows, the kind that the operators know.

        One that draws stays where it is: in another order, or a graph fused otherwise, it would draw other numbers.
        """
        module = self.plain_module(node)
        if module is None or type(module) not in (FakeQuantize, OwnGrid) or module.random:
            return False
        return module.channel_dim is None and module.row_dim == 0

    def undisturbed(self, nodes: Sequence[Node]) -> bool:
        """True if no node between the first and the last of a group, but those of the group, writes in place.

        The group becomes one operator where its last node stands: what it reads must still be what it was.
        """
        group, node = set(nodes), nodes[0]
        while node is not nodes[-1]:
            if node not in group and (writes(node) or getattr(self._called(node), "inplace", False)):
                return False
            node = node.next
        return True

    def _called(self, node: Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def replace(self, nodes: Sequence[Node], new: Node, op: str) -> None:
        """Puts ``new`` in the place of the last of ``nodes``, erases those that nothing else needs, and notes it.

        Args:
            nodes: The group, in the order of the graph.
            new: What computes the same as the group.
            op: What the report calls it.
        """
        quantizers: list[str] = []
        names: list[str] = []
        for node in nodes:
            before = self.fusions.pop(node, None)  # a group may go on where another one ended
            if before is not None:
                quantizers += before.quantizers
                names += before.nodes
            else:
                quantizers += [str(node.target)] if self.is_quantizer(node) else []
                names.append(node.name)
        self.fusions[new] = Fusion(op=op, quantizers=tuple(quantizers), nodes=tuple(names))
        nodes[-1].replace_all_uses_with(new)
        for node in reversed(nodes):
            if not node.users:
                self.graph.erase_node(node)


def protection_of(quantize: Node) -> Any:
    """Returns the mask of protected rows that the call of a quantizer is given; ``None`` if there is none."""
    return quantize.args[1] if len(quantize.args) > 1 else None


def groups_of(quantize: Node) -> Any:
    """Returns the group of in-degrees of each row that the call of a quantizer is given; ``None`` if there is none."""
    return quantize.args[2] if len(quantize.args) > 2 else None


def only_user(node: Node) -> Node | None:
    """Returns the only user of a value, unless that is the graph's output: fused with it, the value need not exist.

    What reads the value's shape, type or device alone is no use of it.
    """
    users = [user for user in node.users if not reads_form(user)]
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def reads_form(node: Node) -> bool:
    """True if a node reads a tensor's shape, dtype or device alone."""
    if node.target is getattr:
        return node.args[1] in ("dtype", "device", "shape", "ndim")
    return node.op == "call_method" and node.target in ("size", "dim")

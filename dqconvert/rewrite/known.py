"""Finds the quantizers that two methods of a module share: those on the same value of the same layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import nn
from torch.fx import Graph, Node
from torch_geometric.nn.conv import MessagePassing

from dqconvert.ops import op_of
from dqconvert.report import Entry
from dqconvert.rewrite.connectivity import is_input
from dqconvert.rewrite.sites import Site
from dqconvert.trace.leaves import WEIGHTED_MODULES


class Known:
    """The quantizers that graphs of a module have, and the values that they are on.

    A weight is known by its name, a value by the line of code that makes it; in a layer, which may be called from
    another line, else by the operation, in order.

    Args:
        root: The module.
        entries: Its quantizers.
        graphs: Its graphs.

    Attributes:
        paths: The paths of the quantizers.
    """

    def __init__(self, root: nn.Module, entries: Iterable[Entry], graphs: Iterable[Graph]) -> None:
        self._root = root
        self._entries = list(entries)
        self.paths = {entry.path for entry in self._entries}
        self._weights: dict[str, str] = {}
        for graph in graphs:
            for node in graph.nodes:
                if node.op == "call_module" and str(node.target) in self.paths:
                    name = _parameter(node.args[0])
                    if name is not None:
                        self._weights.setdefault(name, str(node.target))

    def match(self, sites: list[Site]) -> dict[int, str]:
        """Returns the paths of the quantizers that sites of a new graph share, by ``id`` of the site."""
        found: dict[int, str] = {}
        free = defaultdict(list)
        for entry in self._entries:
            if entry.path not in self._weights.values():
                free[entry.module, entry.role].append(entry)
        for site in sites:
            name = _parameter(site.value)
            if site.role == "weight" and name in self._weights:
                found[id(site)] = self._weights[name]
        rest = [site for site in sites if id(site) not in found and _parameter(site.value) is None]
        for same_line in (True, False):
            for site in rest:
                if id(site) in found or not (same_line or self._is_layer(site.module)):
                    continue
                for entry in free[site.module, site.role]:
                    if entry.op == site.op and (not same_line or entry.source == site.source):
                        found[id(site)] = entry.path
                        free[site.module, site.role].remove(entry)
                        break
        return found

    def arrives_rounded(self, site: Site) -> bool:
        """True if a value is an argument that reaches its layer rounded by another one, where the model calls it.

        Rounding it once more would take a range that no training sets.
        """
        if site.role != "input" or site.user is None or not _is_argument(site.value):
            return False
        known = any(_parameter(value) in self._weights for value in _behind_quantizers(_reader(site.user)))
        return known and not any(entry.module == site.module and entry.role == "input" for entry in self._entries)

    def _is_layer(self, path: str) -> bool:
        return isinstance(self._root.get_submodule(path), (*WEIGHTED_MODULES, MessagePassing))


def _is_argument(node: Node) -> bool:
    while not is_input(node) and op_of(node).keeps_grid and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return is_input(node)


def _reader(node: Node) -> Node:
    """Returns what reads a value behind a dropout that its quantizer stands before."""
    while op_of(node).drops and node.users:
        node = next(iter(node.users))
    return node


def _behind_quantizers(node: Node) -> Iterator[Node]:
    """Yields the inputs of a node, and the values behind those that are quantizers."""
    for source in node.all_input_nodes:
        yield source
        if source.op == "call_module":
            yield from source.all_input_nodes


def _parameter(value: object) -> str | None:
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else None

"""Writes into a graph which group of in-degrees each row belongs to: counted once per row space and forward."""

from __future__ import annotations

from torch.fx import Graph, Node

from dqconvert.ops import op_of
from dqconvert.quant import groups_of_edges, groups_of_nodes
from dqconvert.rewrite.connectivity import gather
from dqconvert.rewrite.derive import Size
from dqconvert.rewrite.follow import RowFollower
from dqconvert.rewrite.sites import Site
from dqconvert.rewrite.spaces import Level, RowSpaces, Sender
from dqconvert.trace.runtime import stage_output


class Degrees(RowFollower):
    """Writes the nodes that group rows by in-degree, as quantizers ask for them.

    Rows of nodes are found, and followed through pooling and joins, as those of protection are; the row of an edge has
    the group of the node that receives it.

    Args:
        graph: The graph to write into.
        rows: Its row spaces.
        groups: How many groups.
    """

    def __init__(self, graph: Graph, rows: RowSpaces, groups: int) -> None:
        super().__init__(graph, rows)
        self.groups = groups

    def of_site(self, site: Site) -> Node | str:
        """Returns the node that holds the group of each row of a site's value, or why there is none."""
        if site.level is Level.PARAMETER:
            return "a weight has no nodes"
        if site.level is Level.GRAPH:
            return "its rows are neither nodes nor edges"
        if site.role == "message" and _is_gathered(site.value):
            return "a plain sum of what nodes send, whose receivers differ"
        return self.of(site.value) or "no edges are known that reach its nodes"

    def _of_edges(self, sender: Sender, value: Node) -> Node | None:
        key = (sender.edge_index, sender.row)
        if key not in self._edges:
            space = self._receiving(sender)
            source = sender.source if space == sender.space and sender.source is not None else value
            groups = None if space is None else self._of_nodes(space, source)
            if groups is None:
                return None
            with self._after([groups, sender.edge_index]) as place:
                receiver = self._receiver(place, sender.edge_index, 1 - sender.row)
                self._edges[key] = place.call("call_function", groups_of_edges, (groups, receiver))
        return self._edges[key]

    def _receiving(self, sender: Sender) -> Size | None:
        """Returns the row space of the nodes that receive what is sent."""
        for space, senders in self.rows.targets.items():
            if any((one.edge_index, one.row) == (sender.edge_index, sender.row) for one in senders):
                return space
        return None

    def _made(self, space: Size, holder: Node, dim: int) -> Node | None:
        connectivity = self._received(space, holder)
        if not connectivity:
            return None
        with self._after([holder, *(edge_index for edge_index, _ in connectivity)]) as place:
            targets = [self._receiver(place, *received) for received in connectivity]
            rows = place.call("call_method", "size", (holder, dim))
            return place.call("call_function", groups_of_nodes, (rows, self.groups, *targets))


def _is_gathered(value: Node) -> bool:
    """True if a message is the row of the node that sends it, as it is."""
    while value.target is stage_output or op_of(value).identity or op_of(value).drops:
        source = value.args[0]
        assert isinstance(source, Node)
        value = source
    return gather(value) is not None

"""Inputs, connectivities, and what is taken along edges: what one node of a graph says of itself.

:mod:`.spaces` puts these answers together for a whole graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from dqconvert.ops import Moves, argument, op_name, op_of
from dqconvert.rewrite.derive import Size, dimensions
from dqconvert.trace.globals import read_global
from dqconvert.trace.note import note_of


@dataclass(frozen=True)
class Gather:
    """A node that takes rows of ``source`` along ``dim``, at one end of every edge of ``edge_index``.

    Attributes:
        row: The end: 0 for the first row of a dense ``edge_index`` (the columns of a sparse, transposed adjacency).
        index: The vector that says which rows.
    """

    source: Node
    dim: int
    edge_index: Node
    row: int
    index: Node

    @property
    def space(self) -> Size:
        """Size of the row space that rows are taken from."""
        return dimensions(note_of(self.source))[self.dim]

    @property
    def edges(self) -> Size:
        """Size of the row space of the edges."""
        return dimensions(note_of(self.index))[0]


def is_input(node: Node) -> bool:
    """True if a node is a forward argument, or a part taken out of one, or reads a global."""
    if node.op == "placeholder" or node.target is read_global:
        return True
    return node.op == "call_function" and note_of(node).source.startswith("argument ")


def input_name(node: Node) -> str:
    """Returns the name of an input or part of one: ``"x"``, ``"batch"`` also for ``data.batch``; ``""`` for none."""
    if node.op == "placeholder":
        return str(node.target).lstrip("*")
    if node.target is read_global:
        _, name, path = node.args[:3]
        return str(path[-1][1]) if path else str(name)  # type: ignore[index]
    return str(node.args[1]) if len(node.args) > 1 else ""


def is_index(node: Node) -> bool:
    """True if an input says which rows belong together, rather than describing them."""
    return is_connectivity(node) or input_name(node) in ("batch", "ptr") or input_name(node).endswith("_batch")


def is_connectivity(node: Node) -> bool:
    """True if a node holds a ``[2, E]`` integer tensor or a sparse adjacency."""
    note = note_of(node)
    pairs = note.is_tensor and not note.is_float and all(size[:1] == (2,) for size in note.sizes)
    return note.ndim == 2 and (pairs or note.sparse)


def reads_size(node: Node) -> bool:
    """Returns True if a node reads a number of the graph off a tensor, whatever the tensor holds."""
    return op_of(node).reads_size or (node.target is getattr and not note_of(node).is_tensor)


def gather(node: Node) -> Gather | None:
    """Returns how a node gathers rows along the edges of a connectivity; ``None`` if it does not."""
    moves = op_of(node).moves
    if moves is Moves.PICK:
        source, dim, index = (argument(node, name) for name in ("input", "dim", "index"))
    elif moves is Moves.ITEM and len(node.args) == 2 and isinstance(node.args[1], Node):
        source, dim, index = node.args[0], 0, node.args[1]
    else:
        return None
    if not isinstance(source, Node) or not isinstance(index, Node) or not isinstance(dim, int):
        return None
    end = end_of_edges(index)
    ndim = note_of(source).ndim
    if end is None or not dimensions(note_of(source)) or not -ndim <= dim < ndim:
        return None
    return Gather(source, dim % ndim, *end, index)


def end_of_edges(index: Node) -> tuple[Node, int] | None:
    """Returns ``(edge_index, row)`` if a vector holds one end of every edge; ``None`` if it does not.

    Dense: ``edge_index[0]``, or unpacked from it. Sparse (transposed: rows receive): ``adj.col_indices()``,
    ``ptr2index(adj.crow_indices())``, ``adj.indices()[0]``.
    """
    name, source = op_name(index), index.args[0] if index.args else None
    if not isinstance(source, Node):
        return None
    if name == "getitem" and isinstance(index.args[1], int):
        owner = source.args[0] if op_name(source) in ("unbind", "indices") else source
        if isinstance(owner, Node) and is_connectivity(owner):
            row = index.args[1] % 2
            return owner, 1 - row if note_of(owner).sparse else row
        return None
    if name == "ptr2index" and op_name(source) == "crow_indices":
        return (owner, 1) if isinstance(owner := source.args[0], Node) else None
    return (source, 0) if name == "col_indices" else None


def edges_of(edge_index: Node) -> Size:
    """Returns the size of the row space of the edges of a dense connectivity."""
    return dimensions(note_of(edge_index))[1]


def gathers_over(edge_index: Node) -> Iterator[Gather]:
    """Yields the gathers along the edges of a connectivity."""
    reach = [edge_index]
    for node in reach:
        for user in node.users:
            found = gather(user)
            if found is not None and found.edge_index is edge_index:
                yield found
            elif user not in reach and op_name(user) in _TOWARDS_INDEX:
                reach.append(user)


_TOWARDS_INDEX = {"getitem", "unbind", "indices", "crow_indices", "col_indices", "ptr2index"}


def ancestors(node: Node) -> Iterator[Node]:
    """Yields a node and everything it was computed from, nearest first; sizes read off a tensor do not count."""
    seen, queue = {node}, deque([node])
    while queue:
        current = queue.popleft()
        yield current
        for parent in () if reads_size(current) else current.all_input_nodes:
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)


def descendants(node: Node) -> set[Node]:
    """Returns all nodes that a node's value reaches."""
    found: set[Node] = set()
    left = [node]
    while left:
        new = [user for user in left.pop().users if user not in found]
        found.update(new)
        left += new
    return found


def input_connectivities(node: Node) -> list[Node]:
    """Returns the connectivities among the inputs that another one was derived from."""
    return [n for n in ancestors(node) if is_input(n) and is_connectivity(n)]

"""Refuses graphs in files that write into the indices of a sparse matrix: its products read where these say."""

from __future__ import annotations

from torch.fx import Graph, Node
from torch_geometric.utils.sparse import to_edge_index

from dqconvert.checkpoint.checked import CHECKED
from dqconvert.errors import CheckpointError
from dqconvert.ops import OURS, PYG, Storage, package_of, storage_of, writes
from dqconvert.trace.adjacency import plain_connectivity, targets_of

_INDICES = frozenset(("indices", "crow_indices", "col_indices", "ccol_indices", "row_indices"))
_CONSTRUCTORS = tuple(checked for name, (_, checked) in CHECKED.items() if "sparse" in name)
_READERS = (to_edge_index, plain_connectivity, targets_of)


def check_writes(graph: Graph) -> None:
    """Makes sure that nothing writes into what was made of the indices of a sparse matrix: it may be their memory.

    No graph that is traced writes anything; those of older files do. A graph that does may not make sparse matrices
    of torch's own, either, which keep the memory that they are made of.

    Raises:
        CheckpointError: It names the node that writes.
    """
    if any(node.target in _CONSTRUCTORS for node in graph.nodes) and any(map(writes, graph.nodes)):
        raise CheckpointError("the graph in the file makes a sparse matrix, and writes: that is not allowed.")
    indices: set[Node] = set()
    for node in graph.nodes:
        reads = node.target in _READERS or (node.op == "call_method" and node.target in _INDICES)
        target = node.args[0] if node.args else None
        changes = writes(node)
        if changes and isinstance(target, Node) and target in indices:
            raise CheckpointError(
                f"{node.name} in the file writes into the indices of a sparse matrix, which is not allowed."
            )
        if reads or (not indices.isdisjoint(node.all_input_nodes) and _may_alias(node, indices, changes)):
            indices.add(node)


def _may_alias(node: Node, indices: set[Node], changes: bool) -> bool:
    """True if what a node returns may lie in the memory of some of these, of which it is given one."""
    if node.op == "call_module":  # what returns its input returns the first one
        return bool(node.args) and node.args[0] in indices
    storage = storage_of(node)
    watched = node.op == "call_function" and package_of(node.target) in (PYG, OURS)  # type: ignore[arg-type]
    return changes or storage is Storage.SHARED or (watched and storage is not Storage.OWN)

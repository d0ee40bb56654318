"""Whether a graph in a file writes into the indices of a sparse matrix, whose products read where these say."""

from __future__ import annotations

from torch.fx import Graph, Node
from torch_geometric.index import ptr2index
from torch_geometric.utils import degree, scatter, softmax
from torch_geometric.utils.sparse import to_edge_index

from dqconvert.checkpoint.checked import CHECKED
from dqconvert.errors import CheckpointError
from dqconvert.ops import op_name, writes
from dqconvert.trace.adjacency import plain_connectivity, targets_of

_INDICES = frozenset(("indices", "crow_indices", "col_indices", "ccol_indices", "row_indices"))
_CONSTRUCTORS = tuple(checked for name, (_, checked) in CHECKED.items() if "sparse" in name)
_READERS = (to_edge_index, plain_connectivity, targets_of)
_MAY_ALIAS = frozenset(
    (
        *("view", "reshape", "flatten", "ravel", "squeeze", "unsqueeze", "transpose", "t", "permute", "expand"),
        *("expand_as", "narrow", "select", "getitem", "split", "chunk", "unbind", "tensor_split", "split_with_sizes"),
        *("hsplit", "vsplit", "dsplit", "unflatten", "movedim", "moveaxis", "swapaxes", "swapdims", "diagonal"),
        *("unfold", "detach", "contiguous", "to", "long", "int", "float", "double", "type", "type_as", "view_as"),
        *("reshape_as", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_to", "broadcast_tensors", "positive"),
        *("conj", "real", "imag", "alias", "adjoint", "stage_output", "setitem", "dropout", "identity", "cpu"),
        *("values", "indices", "resolve_conj", "resolve_neg", "cuda", "by_mode"),
    )
)
"""By :func:`dqconvert.ops.op_name`: what may return what it is given, or views of it."""
_COPIES = (ptr2index, scatter, softmax, degree)


def check_writes(graph: Graph) -> None:
    """Makes sure that nothing writes into what was made of the indices of a sparse matrix: it may be their memory.

    No graph that is traced writes anything; those of older files do. A graph that does may not make sparse matrices
    of torch's own, either, which keep the memory that they are made of.

    Args:
        graph: From a file.

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
    """Whether what a node returns may lie in the memory of some of these, of which it is given one."""
    if node.op == "call_module":  # what returns its input returns the first one
        return bool(node.args) and node.args[0] in indices
    of_pyg = getattr(node.target, "__module__", "").startswith("torch_geometric.")
    return changes or op_name(node) in _MAY_ALIAS or (of_pyg and node.target not in _COPIES)

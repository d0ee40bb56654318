"""``norm="nodes"``: GCN's norm on the nodes instead of the edges, so that messages are rows and sums are plain.

``sum_j (d_i^-1/2 d_j^-1/2) h_j`` is ``d_i^-1/2 sum_j (d_j^-1/2 h_j)``: rows are scaled before they are sent, and their
sums once more. No edge has a weight, and codes of rows are added up as they are.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.utils import scatter

from dqconvert.ops import op_name, op_of, op_of_layer
from dqconvert.rewrite.connectivity import Gather, gather
from dqconvert.trace.leaves import has_hooks
from dqconvert.trace.note import Stage, annotate, note_of
from dqconvert.trace.runtime import stage_output


def node_norm(edge_index: Tensor, num_nodes: int, flow: str, dtype: torch.dtype) -> Tensor:
    """Returns ``d^-1/2`` of every node, ``[num_nodes]``: the factors of ``gcn_norm``, 0 where nothing is received.

    Args:
        edge_index: int64 ``[2, num_edges]``, self-loops added.
        num_nodes: The number of nodes.
        flow: ``"source_to_target"``, or ``"target_to_source"``: then ``edge_index[0]`` receives.
        dtype: Of the result.

    Source:
        Kipf and Welling, *Semi-Supervised Classification with Graph Convolutional Networks*, ICLR 2017, equation 2.

    Example:
        >>> node_norm(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2, "source_to_target", torch.float32)
        tensor([0.5774, 0.0000])
    """
    receiver = edge_index[1 if flow == "source_to_target" else 0]
    degree = scatter(torch.ones_like(receiver, dtype=dtype), receiver, dim=0, dim_size=num_nodes, reduce="sum")
    norm = degree.pow(-0.5)
    return norm.masked_fill(norm == torch.inf, 0)


def scale_rows(x: Tensor, factor: Tensor, dim: int = 0) -> Tensor:
    """Returns ``x`` with each of its rows along a dimension times a number.

    Args:
        x: Floating, of any shape.
        factor: ``[x.size(dim)]``.
        dim: The dimension of the rows, from 0 on.

    Example:
        >>> scale_rows(torch.ones(2, 2), torch.tensor([1.0, 3.0]))
        tensor([[1., 1.],
                [3., 3.]])
    """
    return x * factor.to(x.dtype).view(-1, *[1] * (x.dim() - 1 - dim))


def fold_norms(graphs: Sequence[Graph], root: nn.Module) -> list[str]:
    """Folds, in place, every GCN norm whose edges have no weight and that does nothing but multiply messages of sums.

    Without quantizers the result equals the original but for rounding: some units in the last place of the largest
    term of each sum (a relative 1e-6 in float32).

    Args:
        graphs: Traced graphs of one method, in training and in evaluation, weights visible. A norm is folded in both or
            in neither: messages have one range.
        root: The module that they are of.

    Returns:
        Remarks on the norms that stay on the edges, and why.
    """
    found: dict[tuple[str, int], list[Node]] = {}
    for graph in graphs:
        number = Counter[str]()
        for node in graph.nodes:
            if node.op == "call_function" and op_name(node) == "gcn_norm":
                module = note_of(node).module
                found.setdefault((module, number[module]), []).append(node)
                number[module] += 1
    remarks = []
    for (module, _), norms in found.items():
        sums = [_sums(norm, root) for norm in norms]
        why = next((one for one in sums if isinstance(one, str)), None)
        if why is not None:
            remarks.append(f"norm='nodes': the norm of {module or 'the root module'} stays on its edges: {why}")
            continue
        for norm, one in zip(norms, sums, strict=True):
            assert not isinstance(one, str)
            _write(norm.graph, norm, one)
    return remarks


@dataclass(frozen=True)
class _Sum:
    """The nodes of one sum of messages that a norm weights: gather, product, mark of the message, aggregation."""

    gather: Gather
    taken: Node
    product: Node
    aggregate: Node


def _sums(norm: Node, root: nn.Module) -> list[_Sum] | str:
    """Returns the sums that a norm weights; or why it cannot be folded."""
    given = norm.kwargs
    edges = norm.args[0] if norm.args else given.get("edge_index")
    if len(norm.args) > 1 or given.get("edge_weight") is not None:
        return "the edges have weights"
    if given.get("improved", False) is not False:
        return "its self-loops count twice (improved)"
    if not isinstance(edges, Node) or note_of(edges).sparse or not isinstance(given.get("num_nodes"), Node | int):
        return "the edges are a sparse adjacency, or the number of nodes is not given"
    parts = {user.args[1]: user for user in norm.users if user.target is operator.getitem}
    if len(parts) != len(norm.users) or 0 not in parts:
        return "its result is taken as a whole"
    found: list[_Sum] = []
    reached = [parts[1]] if 1 in parts else []
    for node in reached:
        for user in node.users:
            if op_of(user).reads_size or user.target is getattr:
                continue
            if op_of(user).reshapes and user.args[0] is node:
                reached.append(user)
                continue
            one = _sum(user, node, parts[0], root)
            if isinstance(one, str):
                return f"{one} ({note_of(user).source or user.name})"
            found.append(one)
    return found or "nothing reads it"


def _sum(product: Node, weight: Node, edges: Node, root: nn.Module) -> _Sum | str:
    """Returns the sum of a product's messages; or why there is none."""
    others = [other for other in product.args if other is not weight]
    taken = others[0] if len(others) == 1 and isinstance(others[0], Node) else None
    if op_name(product) != "mul" or product.kwargs or taken is None or note_of(product).stage is not Stage.MESSAGE:
        return "it does more than multiply messages"
    found = gather(taken)
    if found is None or found.edge_index is not edges or note_of(taken).sizes != note_of(product).sizes:
        return "the messages are no rows of nodes"
    marks = [user for user in product.users if not op_of(user).reads_size and user.target is not getattr]
    if len(marks) != 1 or marks[0].target is not stage_output or note_of(marks[0]).stage is not Stage.MESSAGE:
        return "the messages are changed further"
    readers = [user for user in marks[0].users if not op_of(user).reads_size and user.target is not getattr]
    aggregate = readers[0] if len(readers) == 1 else None
    layer = (
        root.get_submodule(str(aggregate.target)) if aggregate is not None and aggregate.op == "call_module" else None
    )
    if aggregate is None or has_hooks(layer or root) or op_of_layer(layer).reduces != "sum":
        return "the messages are not summed up"
    return _Sum(found, taken, product, aggregate)


def _write(graph: Graph, norm: Node, sums: list[_Sum]) -> None:
    edges = next(user for user in norm.users if user.args[1] == 0)
    note = note_of(norm)
    source = sums[0].gather.source
    size = [(sizes[sums[0].gather.dim],) for sizes in note_of(source).sizes]
    with graph.inserting_after(edges):
        options = norm.kwargs["num_nodes"], norm.kwargs.get("flow", "source_to_target")
        dtype: Any = norm.kwargs.get("dtype") or note_of(source).dtype
        factor = graph.call_function(node_norm, (edges, *options, dtype))
        annotate(factor, replace(note, sizes=tuple(size), dtype=note_of(source).dtype))
    for one in sums:
        dim = one.gather.dim
        with graph.inserting_before(one.taken):
            rows = graph.call_function(scale_rows, (one.gather.source, factor, dim))
            annotate(rows, replace(note_of(one.gather.source), source=note_of(one.product).source, stage=Stage.NONE))
        with graph.inserting_before(one.product):
            taken = annotate(graph.node_copy(one.taken), note_of(one.taken))
        taken.replace_input_with(one.gather.source, rows)
        one.product.replace_all_uses_with(taken)
        graph.erase_node(one.product)
        if not one.taken.users:
            graph.erase_node(one.taken)
        with graph.inserting_after(one.aggregate):
            total = graph.call_function(scale_rows, (one.aggregate, factor, dim))
            annotate(total, note_of(one.aggregate))
        for user in [user for user in one.aggregate.users if user is not total]:
            user.replace_input_with(one.aggregate, total)
    for node in reversed([n for n in graph.nodes if n.target is operator.getitem and n.args == (norm, 1)]):
        _erase_unused(graph, node)


def _erase_unused(graph: Graph, node: Node) -> None:
    """Erases a value and its reshapes, which nothing reads any more."""
    for user in list(node.users):
        _erase_unused(graph, user)
    if not node.users:
        graph.erase_node(node)

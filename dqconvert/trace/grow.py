"""Other sizes of the same inputs: the graph and a part of it side by side, a part alone, all without the edges."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from dqconvert.trace.adjacency import edge_index_of, entries_of, is_sparse, with_edges
from dqconvert.trace.inputs import Inputs
from dqconvert.trace.rows import InputGraph, Slot, Type, map_slots, node_dim_of

LARGE = 1 << 14
"""Nodes of one type, or edges of one connectivity, above which inputs are cut."""

_NODES, _EDGES = 2_000, 64
"""Numbers of nodes of each type that a cut keeps, where more than so many edges lie among them."""


_COUNTS = ("batch_size", "num_graphs", "_num_graphs")
"""Names of numbers of graphs."""


class Growth(enum.Enum):
    """What becomes of inputs: their first part alone, or with all of them, behind or before."""

    CUT = 0
    BEHIND = 1
    BEFORE = 2

    def join(self, whole: Tensor, part: Tensor, dim: int = 0) -> Tensor:
        """Returns the part, or both."""
        if self is Growth.CUT:
            return part
        return torch.cat([part, whole] if self is Growth.BEFORE else [whole, part], dim)


def enlarge(inputs: Inputs) -> Iterator[Inputs]:
    """Yields the disjoint union of the inputs with a part of themselves: other sizes, every value in its domain.

    What is neither node nor edge stays as it is, so the model may reject the result. Yields candidates: with the nodes
    along the first dimension of their features, along the last but one (``[time, nodes, features]``), and with the
    same nodes and some edges twice (a model with a fixed number of nodes). Where lists tell the numbers of nodes and
    edges per hop, the copy comes first and counts as of the first hop: models take rows off at the end.
    """
    plain = InputGraph.among(inputs, 0)
    if plain is not None and plain.batch is None and plain.hops:
        yield map_slots(inputs, partial(_resized, Growth.BEFORE, plain))
    for graph in (plain, InputGraph.among(inputs, -2), InputGraph.among(inputs, 0, fixed=True)):
        if graph is not None:
            yield map_slots(inputs, partial(_resized, Growth.BEHIND, graph))


def drop_edges(inputs: Inputs) -> Inputs | None:
    """Returns the inputs without edges; ``None`` if there are none, or it is unclear which rows are edges."""
    graph = InputGraph.among(inputs, 0)
    return None if graph is None or not any(graph.edges.values()) else map_slots(inputs, partial(_drop, graph))


def shrink(inputs: Inputs) -> Inputs | None:
    """Returns the first nodes of a large graph and their edges; ``None`` if it is small or its rows are unclear.

    What a model does to a graph, a part of it tells as well, and sooner. Graphs of a batch stay whole.
    """
    graph = InputGraph.among(inputs, 0)
    if graph is None or graph.hops or max(*graph.nodes.values(), *graph.edges.values(), 0) <= LARGE:
        return None
    batch = graph.batch
    if batch is not None and (set(graph.nodes) != {None} or bool((batch[1:] < batch[:-1]).any())):
        return None
    if any(end not in graph.nodes for ends in graph.ends.values() for end in ends):
        return None
    limit = _NODES
    while limit < max(graph.nodes.values()):
        parts = {kind: min(number, limit) for kind, number in graph.nodes.items()}
        if batch is not None:
            parts[None] = int((batch <= batch[limit]).sum())
        if parts == graph.nodes:
            break
        kept = _kept(inputs, graph, parts)
        if all(len(kept[slot]) > min(_EDGES, number // 8) for slot, number in graph.edges.items() if number):
            return map_slots(inputs, partial(_resized, Growth.CUT, replace(graph, parts=parts, kept=kept)))
        limit *= 2
    return None


def _kept(inputs: Inputs, graph: InputGraph, parts: dict[Type, int]) -> dict[Slot, Tensor]:
    """Returns for each connectivity which edges lie among the first nodes."""
    kept: dict[Slot, Tensor] = {}

    def look(slot: Slot, value: Any) -> Any:
        if slot in graph.edges:
            source, target = (
                row < parts[end] for row, end in zip(edge_index_of(value).cpu(), graph.ends[slot], strict=True)
            )
            kept[slot] = (source & target).nonzero().view(-1)
        return value

    map_slots(inputs, look)
    return kept


def _resized(how: Growth, graph: InputGraph, slot: Slot, value: Any) -> Any:
    """Returns the first part of one of the inputs; or all of it, with that part behind or before it."""
    kind, name = slot
    part = graph.parts.get(kind, 0)
    part_batch = None if graph.batch is None else graph.batch[:part]
    part_graphs = int(part_batch.max()) + 1 if part_batch is not None and part_batch.numel() else 1
    if how is Growth.BEFORE and slot in graph.hops:
        return type(value)([value[0] + graph.hops[slot], *value[1:]])
    if isinstance(value, int) and not isinstance(value, bool):
        cut = how is Growth.CUT
        sizes = {"num_nodes": part if cut else graph.nodes.get(kind, 0) + part}
        sizes |= dict.fromkeys(_COUNTS, part_graphs if cut else graph.graphs + part_graphs)
        return value if cut and kind not in graph.parts else sizes.get(name, value)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if slot in graph.edges:
        return _resized_edges(how, graph, slot, value)
    if name == "batch":
        return value[:part] if how is Growth.CUT else torch.cat([value, value[:part] + graph.graphs])
    if name == "ptr" and how is Growth.CUT:
        return value[: part_graphs + 1]
    if name == "ptr" and how is Growth.BEHIND:
        added = torch.tensor([part]) if part_batch is None else torch.bincount(part_batch).cumsum(0)
        return torch.cat([value, value[-1] + added])
    rows, over = graph.rows(slot, value)
    if rows == "node":
        dim = node_dim_of(name, value, graph.node_dim)
        return how.join(value, value.narrow(dim, 0, part), dim)
    if rows == "edge" and over is not None:
        return how.join(value, value[graph.kept[over].to(value.device)])
    return how.join(value, value[:part_graphs]) if rows == "graph" else value


def _resized_edges(how: Growth, graph: InputGraph, slot: Slot, value: Tensor) -> Tensor:
    if how is Growth.BEFORE and is_sparse(value):
        how = Growth.BEHIND
    whole, parts = ([sizes.get(end, 0) for end in graph.ends[slot]] for sizes in (graph.nodes, graph.parts))
    kept, index = graph.kept[slot].to(value.device), edge_index_of(value)
    some = index[:, kept]
    if how is Growth.BEHIND:
        some = some + torch.tensor(whole, device=value.device)[:, None]
    if how is Growth.BEFORE:
        index = index + torch.tensor(parts, device=value.device)[:, None]
    index = how.join(index, some, 1)
    sizes = parts if how is Growth.CUT else [a + b for a, b in zip(whole, parts, strict=True)]
    if not is_sparse(value):
        return _like(value, index, sizes)
    return with_edges(value, index, how.join(entries_of(value), entries_of(value)[kept]), (sizes[0], sizes[1]))


def _like(value: Tensor, index: Tensor, sizes: list[int]) -> Tensor:
    """Returns an edge_index in the form of another: an ``EdgeIndex`` that knows as much of itself."""
    if not isinstance(value, EdgeIndex):
        return index
    known = [None if before is None else now for before, now in zip(value.sparse_size(), sizes, strict=True)]
    by = {"col": index[1], "row": index[0]}.get(value.sort_order or "")
    in_order = by is not None and bool((by[1:] >= by[:-1]).all())
    return EdgeIndex(index.contiguous(), sparse_size=tuple(known), sort_order=value.sort_order if in_order else None)


def _drop(graph: InputGraph, slot: Slot, value: Any) -> Any:
    """Returns one of the inputs without its edges."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if slot in graph.edges:
        index = edge_index_of(value)[:, :0]
        rows, columns = value.shape[:2]
        return with_edges(value, index, entries_of(value)[:0], (columns, rows)) if is_sparse(value) else index
    return value[:0] if graph.rows(slot, value)[0] == "edge" else value

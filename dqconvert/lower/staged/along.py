"""The rules for operations along edges: what reads the rows of senders, and what adds rows up for receivers."""

from __future__ import annotations

import inspect
from typing import Any

from torch.fx import Node
from torch_geometric.utils import add_remaining_self_loops, add_self_loops, remove_self_loops, scatter, softmax

from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.propagate import MessageWeight
from dqconvert.lower.staged.kinds import (
    Count,
    End,
    Ends,
    Kind,
    Listed,
    Listing,
    Nodes,
    Order,
    Part,
    Sorted,
    Whole,
)
from dqconvert.lower.staged.rows import Rows, codes_between, from_front
from dqconvert.ops import Moves, argument, op_of, op_of_layer
from dqconvert.quant import groups_of_edges
from dqconvert.trace.note import note_of

_AGGREGATION = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in (("x", None), ("index", None), ("ptr", None), ("dim_size", None), ("dim", -2))
    ]
)


def sorting(known: Rows, node: Node) -> Kind | None:
    """Sorts edges by their receivers."""
    (send, receive), counts = (map(known.kind, node.args[k : k + 2]) for k in (0, 2))
    if not isinstance(send, End) or not isinstance(receive, End) or send.listing != receive.listing:
        return None
    order = Order(send.listing, send.end, receive.end)
    for end, count in zip((send.end, receive.end), counts, strict=True):
        known.stands_at(node, send.listing, end, count)
    known.received(node, order)
    return Part(order, 0), Part(order, 1), Part(order, 2)


def sorting_groups(known: Rows, node: Node) -> Kind | None:
    """Sorts edges by their receivers, as rows in groups."""
    by, rows, size = map(known.kind, node.args[:3])
    if not isinstance(by, End) or rows != Count(by.listing) or not isinstance(size, Count):
        return None
    order = Order(by.listing, 1 - by.end, by.end)
    known.stands_at(node, by.listing, by.end, size)
    known.received(node, order)
    return Part(order, 0), Part(order, 2)


def gcn_sorting(known: Rows, node: Node) -> Kind | None:
    """Sorts the edges of a GCN, and counts them."""
    ends, count = map(known.kind, node.args)
    if not isinstance(ends, Ends) or not isinstance(count, Count) or not isinstance(count.of, tuple):
        return None
    listing = Listing(ends.listing.base, True, count.of) if node.kwargs["loops"] else ends.listing
    order = Order(listing, 0, 1)
    for end in (0, 1):
        known.stands_at(node, listing, end, count)
    known.received(node, order)
    return Part(order, 0), Part(order, 1), Nodes(count.of)


def looping(known: Rows, node: Node) -> Kind | None:
    """Takes edges from a node to itself out of a list, or appends one for each node."""
    given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    ends, count = known.kind(given["edge_index"]), known.kind(given.get("num_nodes"))
    if not isinstance(ends, Ends) or given.get("edge_attr") is not None:
        return None
    listing = ends.listing
    if node.target is remove_self_loops:
        return Ends(Listing(listing.base, True)), Whole()
    space = count.of if isinstance(count, Count) else None
    if not isinstance(space, tuple) or (listing.loops is not None and node.target is add_self_loops):
        return None
    return Ends(Listing(listing.base, listing.drop or node.target is add_remaining_self_loops, space)), Whole()


def gcn_weighing(known: Rows, node: Node) -> Kind | None:
    """Weighs edges by a number at either end."""
    ptr, senders, roots, grid = node.args
    order = known.of_order(node, ptr, senders)
    node.args = (ptr, senders, roots, known.mark(node, roots, order, senders), grid)
    node.target = codes_between
    return Sorted(order)


def propagating(known: Rows, node: Node) -> Kind | None:
    """Adds up what is sent, for each node."""
    x, x_grid, ptr, senders, columns, finish = node.args
    assert isinstance(finish, Finish)
    order = known.of_order(node, ptr, senders)
    found = Nodes(known.at[order.listing, order.receive])
    known.check_own(node, (finish.other, finish.shares, finish.groups), found)
    weight = node.kwargs.get("weight")
    if isinstance(weight, MessageWeight):
        known.check_own(node, (weight.codes,), Sorted(order))
        if weight.groups is not None:
            groups: Any = known.mark(node, weight.groups, order, senders)
            node.kwargs = {**node.kwargs, "weight": weight._replace(groups=groups)}
    if known.kind(senders) == Part(order, 2):  # the rows of edges are added up
        known.check_own(node, (x,), Listed(order.listing))
    else:
        node.args = (known.mark(node, x, order, senders), x_grid, ptr, senders, columns, finish)
    return found


def attending(known: Rows, node: Node) -> Kind | None:
    """Weighs edges by codes or values at either end, for each node, which may be in a group."""
    source, target, _, _, ptr, senders, _, *groups = node.args
    order = known.of_order(node, ptr, senders)
    known.check_own(node, (target, *groups), Nodes(known.at[order.listing, order.receive]))
    node.args = (known.mark(node, source, order, senders), *node.args[1:])
    return Sorted(order)


def softening(known: Rows, node: Node) -> Kind | None:
    """Weighs edges by a code of each, for each node, which may be in a group."""
    order = known.of_order(node, node.args[2], node.args[3])
    known.check_own(node, (node.args[0],), Listed(order.listing))
    known.check_own(node, node.args[5:], Nodes(known.at[order.listing, order.receive]))
    return Sorted(order)


def listing_again(known: Rows, node: Node) -> Kind | None:
    """Puts edges into the order of their list."""
    codes, places = map(known.kind, node.args)
    fits = isinstance(codes, Sorted) and isinstance(places, Part) and codes.order == places.order
    return Listed(codes.order.listing) if fits else None  # type: ignore[union-attr]


def picking(known: Rows, node: Node) -> Kind | None:
    """Picks rows by an end of edges, or edges by their order."""
    op = op_of(node)
    if op.moves is Moves.PICK:
        source, dim, index = (argument(node, name) for name in ("input", "dim", "index"))
    elif node.target is groups_of_edges or (op.moves is Moves.ITEM and len(node.args) == 2):
        source, dim, index = node.args[0], 0, node.args[1]
    else:
        return None
    rows, by = known.kind(source), known.kind(index)
    dim = from_front(source, dim)
    if isinstance(index, Node) and isinstance(by, Part) and by.number == 2:
        return Sorted(by.order) if dim == 0 and rows == Listed(by.order.listing) else None
    if not isinstance(index, Node) or not isinstance(by, End) or not isinstance(rows, Nodes) or dim != 0:
        return None
    known.picks.append((node, 0, by, index))
    return Listed(by.listing)


def multiplying(known: Rows, node: Node) -> Kind | None:
    """Multiplies the rows at both ends of each edge."""
    ends = known.kind(node.args[1]), known.kind(node.args[4])
    if not isinstance(ends[0], End) or not isinstance(ends[1], End) or ends[0].listing != ends[1].listing:
        return None
    known.picks += [(node, 0, ends[0], node.args[1]), (node, 3, ends[1], node.args[4])]  # type: ignore[list-item]
    return Listed(ends[0].listing)


def grouping(known: Rows, node: Node) -> Kind | None:
    """Counts the edges to each node, in groups."""
    count, ends = known.kind(node.args[0]), [known.kind(target) for target in node.args[2:]]
    return _counted(known, node, count, [(end.listing, end.end) for end in ends if isinstance(end, End)])


def norming(known: Rows, node: Node) -> Kind | None:
    """Counts the edges to each node, for the norm of a GCN."""
    ends, count = map(known.kind, node.args[:2])
    receive = 1 if node.args[2] == "source_to_target" else 0
    return _counted(known, node, count, [(ends.listing, receive)] if isinstance(ends, Ends) else [])


def _counted(known: Rows, node: Node, count: Kind, ends: list[tuple[Listing, int]]) -> Kind | None:
    if not isinstance(count, Count) or not isinstance(count.of, tuple) or not ends:
        return None
    for listing, end in ends:
        known.stands_at(node, listing, end, count)
    known.degrees[node] = [Order(listing, 1 - end, end) for listing, end in ends]
    return Nodes(count.of)


def reducing(known: Rows, node: Node) -> Kind | None:
    """Adds rows of edges up for each node, in float; or divides by such a sum."""
    layer = known.layer(node)
    if node.target in (softmax, scatter):
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    elif layer is not None and op_of_layer(layer).reduces:
        given = _AGGREGATION.bind(*node.args, **node.kwargs)
    else:
        return None
    given.apply_defaults()
    src, index, *_ = given.args
    rows, by, dim = known.kind(src), known.kind(index), given.arguments["dim"]
    size = given.arguments["num_nodes" if node.target is softmax else "dim_size"]
    ndim = note_of(src).ndim if isinstance(src, Node) else 0
    if not isinstance(rows, Listed) or not isinstance(by, End) or by.listing != rows.listing or dim % max(ndim, 1):
        return None
    if given.arguments.get("ptr") is not None or not isinstance(known.kind(size), Count):
        return None
    known.stands_at(node, by.listing, by.end, known.kind(size))
    known.received(node, Order(by.listing, 1 - by.end, by.end))
    return rows if node.target is softmax else Nodes(known.at[by.listing, by.end])

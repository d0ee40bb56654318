"""Edges in the order of their receivers, and a GCN's norm edge by edge: compiled loops, the definition, PyG."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from dqconvert.kernels import order
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.receivers import (
    gcn_codes,
    gcn_codes_operator,
    gcn_order,
    plain_gcn_codes,
    plain_receiver_order,
    receiver_order,
    receiver_order_operator,
)

GRID = torch.tensor([1 / 255, 0.0, 255.0, 0.0])


def ends(sources, targets, edges, dtype=torch.int64):
    return torch.randint(max(sources, 1), (edges,), dtype=dtype), torch.randint(max(targets, 1), (edges,), dtype=dtype)


def same(found, expected):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@settings(max_examples=60)
@given(
    sources=st.integers(1, 9),
    targets=st.integers(1, 9),
    edges=st.integers(0, 40),
    dtype=st.sampled_from([torch.int64, torch.int32]),
    positions=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_shape(sources, targets, edges, dtype, positions, seed):
    torch.manual_seed(seed)
    sender, receiver = ends(sources, targets, edges, dtype)
    found = receiver_order(sender, receiver, sources, targets, positions=positions)
    assert same(found, plain_receiver_order(sender, receiver, sources, targets, False, positions))
    nodes = min(sources, targets)
    for loops in (False, True):
        args = sender % nodes, receiver % nodes, nodes, nodes, loops, positions
        assert same(receiver_order_operator(*args), plain_receiver_order(*args))


def test_many_edges_on_one_thread_and_many(threads):
    sender, receiver = ends(900, 700, 300_000)
    assert same(
        receiver_order(sender, receiver, 900, 700), plain_receiver_order(sender, receiver, 900, 700, False, True)
    )
    args = sender % 700, receiver, 700, 700, True, False
    assert same(receiver_order_operator(*args), plain_receiver_order(*args))


def test_no_nodes_and_rows_that_lie_apart():
    none = torch.empty(0, dtype=torch.int64)
    assert [part.tolist() for part in receiver_order(none, none, 0, 0)] == [[0], [], []]
    edges = torch.randint(6, (30, 2))
    sender, receiver = edges.t()
    expected = receiver_order(sender.contiguous(), receiver.contiguous(), 6, 6)
    assert same(receiver_order(sender, receiver, 6, 6), expected)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize(("nodes", "edges"), [(40, 300), (5, 60), (50, 10), (4, 0), (3000, 80_000)])
def test_norms_are_those_of_pyg(loops, improved, nodes, edges):
    """Bit for bit, edges to oneself, several edges between two nodes and nodes without any included."""
    edge_index = torch.randint(nodes, (2, edges))
    ends, weight = gcn_norm(edge_index, None, nodes, improved, loops, "source_to_target", torch.float32)
    ptr, senders, positions = plain_receiver_order(ends[0], ends[1], nodes, nodes, False, True)
    found = gcn_order(edge_index, nodes, loops=loops)
    assert same(found[:2], (ptr, senders))
    receivers = torch.repeat_interleave(ptr.diff())
    assert torch.equal(found[2][senders.long()] * found[2][receivers], weight[positions])
    assert torch.equal(gcn_codes(*found, GRID), quantize(weight, GRID)[positions][:, None])


@pytest.mark.parametrize("scale", [1 / 255, 0.013, 3.0])
def test_codes_are_the_definition_s(scale, threads):
    args = (*gcn_order(torch.randint(500, (2, 90_000)), 500, loops=True), torch.tensor([scale, 3.0, 200.0, -7.0]))
    assert torch.equal(gcn_codes(*args), plain_gcn_codes(*args))


@pytest.mark.parametrize(("at", "wrong", "size"), [(0, 7, 5), (0, -1, 5), (1, 4, 4), (1, -3, 4)])
@pytest.mark.parametrize("edges", [6, 200_000])
def test_nodes_that_are_not_there_are_named(at, wrong, size, edges):
    edge_index = torch.zeros(2, edges, dtype=torch.int64)
    edge_index[at, edges // 2] = wrong
    for order_of in (receiver_order_operator, plain_receiver_order):
        with pytest.raises(IndexError, match=f"names node {wrong}, and there are {size} nodes"):
            order_of(edge_index[0], edge_index[1], 5, 4, False, True)
    with pytest.raises(IndexError, match=f"names node {wrong}"):
        gcn_order(edge_index, 4, loops=True)


def test_who_takes_the_order_need_not_look_again(monkeypatch):
    ptr, senders, _ = receiver_order(*ends(9, 9, 30), 9, 9)
    monkeypatch.setattr(torch.Tensor, "aminmax", None)
    order.check_order(ptr, senders, 9)
    monkeypatch.undo()
    senders[3] = 100
    with pytest.raises(IndexError, match="begins at node 100"):
        order.check_order(ptr, senders, 9)
    with pytest.raises(IndexError):
        order.check_order(*receiver_order(torch.tensor([8]), torch.tensor([0]), 9, 9)[:2], 5)


def test_registered_operators_agree():
    args = (*ends(20, 20, 60), 20, 20)
    for loops, positions in ((False, True), (True, False)):
        found = receiver_order_operator.registered(*args, loops, positions)
        assert same(found, receiver_order_operator(*args, loops, positions))
    codes = (*gcn_order(torch.stack(args[:2]), 20, loops=True), GRID)
    assert torch.equal(gcn_codes_operator.registered(*codes), gcn_codes_operator(*codes))
    torch.library.opcheck(receiver_order_operator.registered, (*args, False, True))
    torch.library.opcheck(gcn_codes_operator.registered, codes)

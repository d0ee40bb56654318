"""`attention_codes` and `softmax_codes`: by compiled loops, against the definition: no code is off by more than one."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import softmax

from dqconvert.kernels import edge_order
from dqconvert.kernels.integer.attention import (
    attention_codes,
    attention_codes_operator,
    exp,
    plain_attention_codes,
    plain_softmax_codes,
    softmax_codes,
    softmax_codes_operator,
)
from dqconvert.kernels.integer.codes import quantize

GRIDS = {
    "int8": torch.tensor([1 / 255, 0.0, 255.0, 0.0]),
    "int4": torch.tensor([1 / 15, 0.0, 15.0, 0.0]),
    "clipped": torch.tensor([1 / 300, 20.0, 255.0, 0.0]),
    "signed": torch.tensor([1 / 127, 128.0, 255.0, -128.0]),
}
INT8 = GRIDS["int8"]


def a_graph(senders, nodes, edges):
    """Its list of edges and its order; some nodes have many edges, some none."""
    sender, receiver = torch.randint(senders, (edges,)), (torch.rand(edges) ** 3 * nodes).long()
    return sender, receiver, edge_order(receiver, sender, nodes)


def assert_close(got, want):
    """But for a few codes that differ by one."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    off = (got.int() - want.int()).abs()
    assert off.numel() == 0 or off.max() <= 1
    assert (off > 0).sum() <= max(1e-3 * off.numel(), 4)


def codes(rows, heads):
    return torch.randint(256, (rows, heads), dtype=torch.uint8)


def check_attention(source, target, table, order, grid=INT8):
    args = source, target, table, order.ptr, order.others, grid
    found, want = attention_codes(*args), plain_attention_codes(*args)
    assert_close(found, want)
    return found


def check_softmax(logits, order, grid=INT8):
    args = logits, order.ptr, order.edges, grid
    found, want = softmax_codes(*args), plain_softmax_codes(*args)
    assert_close(found, want)
    return found


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_the_definition_is_the_softmax_of_graph_layers(heads, grid):
    sender, receiver, order = a_graph(20, 15, 300)
    source, target, table = codes(20, heads), codes(15, heads), torch.randn(256, 256) * 2
    logits = table[source[sender].long(), target[receiver].long()]
    want = quantize(softmax(logits, receiver, num_nodes=15), GRIDS[grid])[order.edges]
    by_code = plain_attention_codes(source, target, table, order.ptr, order.others, GRIDS[grid])
    by_value = plain_softmax_codes(logits, order.ptr, order.edges, GRIDS[grid])
    assert torch.equal(by_code, by_value)
    assert_close(by_code, want)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 8])
def test_graphs_on_one_thread_and_many(threads, heads):
    """Fewer edges than a table has entries, and more."""
    for edges, grid in ((70_000, "int8"), *((3000, grid) for grid in GRIDS)):
        _, _, order = a_graph(900, 700, edges)
        source, target, table = codes(900, heads), codes(700, heads), torch.randn(256, 256) * 3
        check_attention(source, target, table, order, GRIDS[grid])
        check_softmax(torch.randn(edges, heads) * 3, order, GRIDS[grid])


@settings(deadline=None, max_examples=150)
@given(
    nodes=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    edges=st.integers(0, 60),
    heads=st.integers(0, 5),
    grid=st.sampled_from(list(GRIDS.values())),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 10_000),
)
def test_any_graph(nodes, edges, heads, grid, spread, seed):
    torch.manual_seed(seed)
    edges = edges if nodes[1] else 0
    _, _, order = a_graph(*nodes, edges)
    check_attention(codes(nodes[0], heads), codes(nodes[1], heads), torch.randn(256, 256) * spread, order, grid)
    check_softmax(torch.randn(edges, heads) * spread, order, grid)


def test_equal_edges_share_exactly():
    """1 / n, rounded as float32 has it, for nodes of every number of edges."""
    receiver = torch.arange(80).repeat_interleave(torch.arange(80))
    order = edge_order(receiver, torch.zeros_like(receiver), 80)
    for grid in GRIDS.values():
        for logit in (0.0, 7.3, -100.0):
            logits = torch.full((receiver.numel(), 1), logit)
            assert torch.equal(
                softmax_codes(logits, order.ptr, order.edges, grid), quantize(1 / receiver, grid)[:, None]
            )


def test_an_edge_that_is_alone_has_it_all():
    order = edge_order(torch.arange(5), torch.arange(5), 5)
    logits = torch.tensor([0.0, 1e-30, -1e30, 3e38, -3e38]).unsqueeze(1)
    assert softmax_codes(logits, order.ptr, order.edges, INT8).eq(255).all()


def test_logits_far_apart():
    order = edge_order(torch.zeros(4, dtype=torch.int64), torch.arange(4), 1)
    for low in (-87.0, -88.0, -104.0, -1e4, -3e38):
        logits, grid = torch.tensor([[low], [0.0], [low], [0.0]]), torch.tensor([0.01, 3.0, 255.0, 0.0])
        assert softmax_codes(logits, order.ptr, order.edges, grid).flatten().tolist() == [3, 53, 3, 53]


def test_a_million_edges_to_one_node():
    edges = 10**6
    logits = torch.randn(edges, 2)
    order = edge_order(torch.zeros(edges, dtype=torch.int64), torch.zeros(edges, dtype=torch.int64), 2)
    found = check_softmax(logits, order, torch.tensor([1e-7, 0.0, 255.0, 0.0]))
    assert found.float().std() > 1


def test_the_exponential_is_exact_to_about_a_bit():
    @numba.njit
    def all_of(x, found):
        for k in range(x.size):
            found[k] = exp(x[k])

    x = np.linspace(-100, 0, 1_000_001).astype(np.float32)
    found, want = np.empty_like(x), np.exp(x.astype(np.float64))
    all_of(x, found)
    normal = want > np.finfo(np.float32).tiny
    assert (np.abs(found - want)[normal] <= 1e-7 * want[normal]).all()
    assert ((found >= 0) & (found < 2e-38))[~normal].all()
    assert found[-1] == 1


def test_strides_and_types_do_not_matter():
    _, _, order = a_graph(30, 20, 200)
    source, target, table = codes(30, 4), codes(20, 4), torch.randn(256, 256)
    want = check_attention(source, target, table, order)
    apart = torch.stack([source, source], 2)[:, :, 0], target.t().contiguous().t(), table.t().contiguous().t()
    assert torch.equal(check_attention(*apart, order), want)
    assert torch.equal(check_attention(*apart, order._replace(others=order.others.int())), want)
    logits = torch.randn(4, 200)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check_softmax(logits.t().to(dtype), order)


def test_gradients_are_not_asked_for():
    _, _, order = a_graph(30, 20, 200)
    table, logits = torch.randn(256, 256, requires_grad=True), torch.randn(200, 2, requires_grad=True)
    assert not attention_codes(codes(30, 2), codes(20, 2), table, order.ptr, order.others, INT8).requires_grad
    assert not softmax_codes(logits, order.ptr, order.edges, INT8).requires_grad


def test_what_does_not_fit_is_an_error():
    _, _, order = a_graph(30, 20, 200)
    given = {"source": codes(30, 2), "target": codes(20, 2), "table": torch.randn(256, 256)}
    graph = {"ptr": order.ptr, "senders": order.others, "grid": INT8}

    for error, message, wrong in (
        (ValueError, "expected source", {"target": codes(30, 2)}),
        (ValueError, "expected source", {"target": codes(20, 1)}),
        (ValueError, "expected source", {"source": codes(30, 2)[0]}),
        (ValueError, "expected source", {"table": torch.randn(256)}),
        (TypeError, "uint8 codes and a float32 table", {"source": codes(30, 2).int()}),
        (TypeError, "uint8 codes and a float32 table", {"table": torch.randn(256, 256).double()}),
        (TypeError, "int32 or int64 senders", {"senders": order.others.short()}),
        (TypeError, "ptr must be int64", {"ptr": order.ptr.int()}),
        (ValueError, "the grid must have shape", {"grid": torch.ones(2)}),
    ):
        with pytest.raises(error, match=message):
            attention_codes(**{**given, **graph, **wrong})

    with pytest.raises(ValueError, match="200 edges take logits"):
        softmax_codes(torch.randn(199, 2), order.ptr, order.edges, INT8)
    with pytest.raises(TypeError, match="floating logits and int64 edges"):
        softmax_codes(torch.ones(200, 2).int(), order.ptr, order.edges, INT8)


@pytest.mark.parametrize("heads", [1, 3])
def test_operators_keep_their_contract(heads):
    """Of logits that all agree, so that the implementations do, too."""
    _, _, order = a_graph(7, 5, 12)
    args = codes(7, heads), codes(5, heads), torch.zeros(256, 256), order.ptr, order.others, INT8
    torch.library.opcheck(torch.ops.dqconvert.attention_codes.default, args)
    assert torch.equal(attention_codes_operator(*args), plain_attention_codes(*args))
    args = torch.zeros(12, heads), order.ptr, order.edges, INT8
    torch.library.opcheck(torch.ops.dqconvert.softmax_codes.default, args)
    assert torch.equal(softmax_codes_operator(*args), plain_softmax_codes(*args))

"""`attention_codes` and `softmax_codes`: by compiled loops, against the definition, code by code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import softmax

from dqconvert.errors import InputShapeError
from dqconvert.kernels import edge_order
from dqconvert.kernels.integer.attention import (
    attention_codes,
    attention_codes_operator,
    attention_sums,
    attention_sums_operator,
    plain_attention_codes,
    plain_attention_sums,
    plain_softmax_codes,
    softmax_codes,
    softmax_codes_operator,
)
from dqconvert.kernels.integer.codes import quantize
from dqconvert.kernels.integer.groups import quantize_groups

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


def codes(rows, heads):
    return torch.randint(256, (rows, heads), dtype=torch.uint8)


def rising(spread=3.0):
    """Logits, some of them equal."""
    return (torch.randn(256) * spread).sort().values.clamp(min=-2 * spread)


def of_groups(nodes):
    """Logits and grids of each group, the grids of sums, and the group of each node."""
    steps = torch.tensor([[0.1, 128.0, 255.0, -128.0], [0.4, 7.0, 15.0, -8.0], [0.02, 0.0, 255.0, 0.0], INT8.tolist()])
    logits = torch.stack([rising(spread) for spread in (3.0, 0.5, 1e3, 3.0)])
    return logits, torch.stack(list(GRIDS.values())), steps, torch.randint(4, (nodes,), dtype=torch.uint8)


def check_groups(senders, nodes, edges, heads):
    """Both operators, where grids differ by group; returns the arguments of the softmax."""
    _, _, order = a_graph(senders, nodes, edges)
    logits, grids, steps, groups = of_groups(nodes)
    ends = torch.randn(senders, heads) * 9, torch.randn(nodes, heads) * 9
    args = *ends, steps, logits, order.ptr, order.others, grids, groups
    assert torch.equal(attention_sums(*args), plain_attention_sums(*args))
    args = codes(edges, heads), logits, order.ptr, order.edges, grids, groups
    assert torch.equal(softmax_codes(*args), plain_softmax_codes(*args))
    return args


def check_attention(source, target, table, logits, order, grid=INT8):
    args = source, target, table, logits, order.ptr, order.others, grid
    found, want = attention_codes(*args), plain_attention_codes(*args)
    assert torch.equal(found, want)
    return found


def check_softmax(given, logits, order, grid=INT8):
    args = given, logits, order.ptr, order.edges, grid
    found, want = softmax_codes(*args), plain_softmax_codes(*args)
    assert torch.equal(found, want)
    return found


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_the_definition_is_the_softmax_of_graph_layers(heads, grid):
    sender, receiver, order = a_graph(20, 15, 300)
    source, target, table, logits = codes(20, heads), codes(15, heads), codes(256, 256), rising()
    of_edges = table[target[receiver].long(), source[sender].long()]
    want = quantize(softmax(logits[of_edges.long()], receiver, num_nodes=15), GRIDS[grid])[order.edges]
    by_pair = plain_attention_codes(source, target, table, logits, order.ptr, order.others, GRIDS[grid])
    by_edge = plain_softmax_codes(of_edges, logits, order.ptr, order.edges, GRIDS[grid])
    assert torch.equal(by_pair, by_edge)
    assert torch.equal(by_pair, want)


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_graphs_on_one_thread_and_many(threads, heads):
    for edges, grid in ((70_000, "int8"), *((3000, grid) for grid in GRIDS)):
        _, _, order = a_graph(900, 700, edges)
        check_attention(codes(900, heads), codes(700, heads), codes(256, 256), rising(), order, GRIDS[grid])
        check_softmax(codes(edges, heads), rising(), order, GRIDS[grid])


@settings(max_examples=100)
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
    check_attention(codes(nodes[0], heads), codes(nodes[1], heads), codes(256, 256), rising(spread), order, grid)
    check_softmax(codes(edges, heads), rising(spread), order, grid)


@pytest.mark.parametrize("heads", [1, 3])
def test_grids_of_groups(threads, heads):
    for edges in (40_000, 3000):
        given, logits, ptr, edges, grids, groups = check_groups(900, 700, edges, heads)
        found = softmax_codes(given, logits, ptr, edges, grids, groups)
        own = groups.repeat_interleave(ptr.diff())
        for group in range(4):  # it has what it would have alone
            alone = softmax_codes(given, logits[group], ptr, edges, grids[group])
            assert torch.equal(found[own == group], alone[own == group])


@settings(max_examples=40)
@given(nodes=st.integers(0, 12), edges=st.integers(0, 60), heads=st.integers(0, 5), seed=st.integers(0, 10_000))
def test_grids_of_groups_of_any_graph(nodes, edges, heads, seed):
    torch.manual_seed(seed)
    check_groups(7, nodes, edges if nodes else 0, heads)


def test_sums_of_both_ends_are_rounded_as_values_are():
    sender, receiver, order = a_graph(20, 15, 300)
    logits, grids, steps, groups = of_groups(15)
    source, target = torch.randn(20, 2) * 9, torch.randn(15, 2) * 9
    source[3] = torch.nan  # has the code of zero
    of_edges = quantize_groups(source[sender] + target[receiver], steps, groups[receiver])
    found = attention_sums(source, target, steps, logits, order.ptr, order.others, grids, groups)
    assert torch.equal(found, softmax_codes(of_edges, logits, order.ptr, order.edges, grids, groups))


def test_groups_that_do_not_fit_are_an_error():
    _, _, order = a_graph(30, 20, 200)
    logits, grids, steps, groups = of_groups(20)
    given = codes(200, 2), logits, order.ptr, order.edges, grids
    for wrong in ((*given[:1], logits[0], *given[2:], groups), (*given[:4], grids[0], groups), given):
        with pytest.raises(ValueError, match="expected logits"):
            softmax_codes(*wrong)
    with pytest.raises(InputShapeError, match="groups has shape"):
        softmax_codes(*given, groups[:-1])
    args = torch.randn(30, 2), torch.randn(20, 2), steps, logits, order.ptr, order.others, grids, groups
    for place, wrong in ((1, args[0]), (2, steps[:3]), (3, logits[:3]), (6, grids[0]), (7, groups[:-1])):
        with pytest.raises(InputShapeError, match="attention_sums"):
            attention_sums(*args[:place], wrong, *args[place + 1 :])


def test_equal_edges_share_exactly():
    """1 / n, rounded as float32 has it, for nodes of every number of edges."""
    receiver = torch.arange(80).repeat_interleave(torch.arange(80))
    order, given = edge_order(receiver, torch.zeros_like(receiver), 80), codes(1, 1).expand(receiver.numel(), 1)
    for grid in GRIDS.values():
        for logits in (torch.zeros(256), rising(1e30)):
            assert torch.equal(
                softmax_codes(given, logits, order.ptr, order.edges, grid), quantize(1 / receiver, grid)[:, None]
            )


def test_an_edge_that_is_alone_has_it_all():
    order = edge_order(torch.arange(256), torch.arange(256), 256)
    given = torch.arange(256, dtype=torch.uint8)[:, None]
    for logits in (rising(1e-30), rising(1e30), torch.linspace(-1, 1, 256) * 3e38):
        assert softmax_codes(given, logits, order.ptr, order.edges, INT8).eq(255).all()


def test_logits_far_apart():
    order = edge_order(torch.zeros(4, dtype=torch.int64), torch.arange(4), 1)
    given, grid = torch.tensor([[0], [255], [0], [255]], dtype=torch.uint8), torch.tensor([0.01, 3.0, 255.0, 0.0])
    for low in (-87.0, -88.0, -104.0, -1e4, -3e38):
        logits = torch.linspace(1, 0, 256) * low
        assert softmax_codes(given, logits, order.ptr, order.edges, grid).flatten().tolist() == [3, 53, 3, 53]


def test_a_million_edges_to_one_node():
    edges = 10**6
    order = edge_order(torch.zeros(edges, dtype=torch.int64), torch.zeros(edges, dtype=torch.int64), 2)
    found = check_softmax(codes(edges, 2), rising(1.0), order, torch.tensor([1e-7, 0.0, 255.0, 0.0]))
    assert found.float().std() > 1


def test_strides_and_types_do_not_matter():
    _, _, order = a_graph(30, 20, 200)
    source, target, table, logits = codes(30, 4), codes(20, 4), codes(256, 256), rising()
    want = check_attention(source, target, table, logits, order)
    apart = (
        torch.stack([source, source], 2)[:, :, 0],
        target.t().contiguous().t(),
        table.t().contiguous().t(),
        torch.stack([logits, logits], 1)[:, 0],
    )
    assert torch.equal(check_attention(*apart, order), want)
    assert torch.equal(check_attention(*apart, order._replace(others=order.others.int())), want)
    check_softmax(codes(4, 200).t(), apart[-1], order)


def test_gradients_are_not_asked_for():
    _, _, order = a_graph(30, 20, 200)
    logits = rising().requires_grad_()
    args = codes(30, 2), codes(20, 2), codes(256, 256), logits, order.ptr, order.others, INT8
    assert not attention_codes(*args).requires_grad
    assert not softmax_codes(codes(200, 2), logits, order.ptr, order.edges, INT8).requires_grad


def test_what_does_not_fit_is_an_error():
    _, _, order = a_graph(30, 20, 200)
    given = {"source": codes(30, 2), "target": codes(20, 2), "table": codes(256, 256), "logits": rising()}
    graph = {"ptr": order.ptr, "senders": order.others, "grid": INT8}

    for error, message, wrong in (
        (ValueError, "expected source", {"target": codes(30, 2)}),
        (ValueError, "expected source", {"target": codes(20, 1)}),
        (ValueError, "expected source", {"source": codes(30, 2)[0]}),
        (ValueError, "expected source", {"table": codes(1, 256)[0]}),
        (TypeError, "uint8 codes and a uint8 table", {"source": codes(30, 2).int()}),
        (TypeError, "uint8 codes and a uint8 table", {"table": torch.randn(256, 256)}),
        (TypeError, "int32 or int64 senders", {"senders": order.others.short()}),
        (TypeError, "int64 ptr and float32 logits", {"ptr": order.ptr.int()}),
        (TypeError, "int64 ptr and float32 logits", {"logits": rising().double()}),
        (ValueError, "expected logits", {"logits": torch.zeros(255)}),
        (ValueError, "and a grid", {"grid": torch.ones(3)}),
    ):
        with pytest.raises(error, match=message):
            attention_codes(**{**given, **graph, **wrong})

    with pytest.raises(ValueError, match="200 edges take codes"):
        softmax_codes(codes(199, 2), rising(), order.ptr, order.edges, INT8)
    with pytest.raises(TypeError, match="uint8 codes and int64 edges"):
        softmax_codes(torch.randn(200, 2), rising(), order.ptr, order.edges, INT8)


@pytest.mark.parametrize("heads", [1, 3])
def test_operators_keep_their_contract(heads):
    _, _, order = a_graph(7, 5, 12)
    args = codes(7, heads), codes(5, heads), codes(256, 256), rising(), order.ptr, order.others, INT8
    torch.library.opcheck(torch.ops.dqconvert.attention_codes.default, args)
    assert torch.equal(attention_codes_operator(*args), plain_attention_codes(*args))
    logits, grids, steps, groups = of_groups(5)
    for own, grid, which in ((rising(), INT8, None), (logits, grids, groups)):
        args = codes(12, heads), own, order.ptr, order.edges, grid, which
        torch.library.opcheck(torch.ops.dqconvert.softmax_codes.default, args)
        assert torch.equal(softmax_codes_operator(*args), plain_softmax_codes(*args))
    args = torch.randn(7, heads), torch.randn(5, heads), steps, logits, order.ptr, order.others, grids, groups
    torch.library.opcheck(torch.ops.dqconvert.attention_sums.default, args)
    assert torch.equal(attention_sums_operator(*args), plain_attention_sums(*args))

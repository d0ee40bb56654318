"""`fold_nodes`: what is computed of the rows that are left, placed again, is what is computed of all."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.folding import fold as module
from dqconvert.kernels.integer.folding.fold import DEEPEST, fold_nodes, place_rows, take_rows, whole
from dqconvert.kernels.integer.propagate import MessageWeight, integer_propagate
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order

GRID = torch.tensor([1.0, 0.0, 255.0, 0.0])
WEIGHT_GRID = torch.tensor([1 / 255, 0.0, 255.0, 0.0])
FINISH = Finish(factor=torch.tensor([0.7]), grid=GRID)


def a_tree(nodes, seed=0, hubs=5):
    """A tree in which most nodes hang on a few others, as edges in both directions."""
    torch.manual_seed(seed)
    parents = (torch.rand(nodes) ** 3 * torch.arange(nodes).clamp(max=hubs * 4)).long()
    child = torch.arange(1, nodes)
    return torch.stack([torch.cat([child, parents[1:]]), torch.cat([parents[1:], child])])


def in_order(edge_index, nodes):
    return receiver_order(edge_index[0], edge_index[1], nodes, nodes)[:2]


def layers(x, levels, reduce, roots=None, order=None):
    """A few layers over folded rows, each placed again for all nodes; the codes of weights are those of all edges."""
    rows, found = take_rows(x, levels[0].own), []
    weights = None if roots is None else gcn_codes(*order, roots, WEIGHT_GRID)
    for level in levels[1:]:
        weight = None
        if weights is not None:
            weight = MessageWeight(take_rows(weights, level.edges), torch.arange(256) / 255, GRID)
        before = take_rows(rows, level.own)
        finish = FINISH if weight is not None else FINISH._replace(other=before, table=PAIRS)
        rows = integer_propagate(rows, GRID, level.ptr, level.senders, x.size(1), finish, reduce=reduce, weight=weight)
        found.append(take_rows(rows, level.place))
    return found


PAIRS = (torch.arange(256)[:, None] * 3 + torch.arange(256) * 7).fmod(256).to(torch.uint8)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("kinds", [1, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_layers_compute_the_same(reduce, kinds, dtype):
    nodes = 400
    ptr, senders = in_order(a_tree(nodes), nodes)
    senders = senders.to(dtype)
    x = torch.randint(255, (kinds, 16), dtype=torch.uint8)[torch.arange(nodes) % kinds]
    levels = fold_nodes(x, ptr, senders, 4)
    assert len(levels) == 5
    left = [nodes if level.place is None else int(level.place.max()) + 1 for level in levels]
    assert left[0] == kinds
    assert sorted(left) == left
    assert left[2] < nodes / 2
    expected = layers(x, whole(x, ptr, senders, 4), reduce)
    for found, wanted in zip(layers(x, levels, reduce), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("loops", [True, False])
def test_layers_whose_weights_depend_on_degrees_compute_the_same(loops):
    nodes = 300
    edge_index = a_tree(nodes)
    ptr, senders, roots = gcn_order(edge_index, nodes, loops=loops)
    x = torch.full((nodes, 16), 200, dtype=torch.uint8)
    expected = layers(x, whole(x, ptr, senders, 3), "sum", roots, (ptr, senders))
    levels = fold_nodes(x, ptr, senders, 3, True)
    for found, wanted in zip(layers(x, levels, "sum", roots, (ptr, senders)), expected, strict=True):
        assert torch.equal(found, wanted)
    rows, without = levels[1].ptr, fold_nodes(x, ptr, senders, 3)[1].ptr
    assert without.numel() < rows.numel(), "the weights make no difference, and the test shows nothing"


@settings(max_examples=60)
@given(
    nodes=st.integers(2, 14),
    edges=st.integers(0, 30),
    kinds=st.integers(1, 2),
    depth=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_any_graph(nodes, edges, kinds, depth, seed):
    """Loops, several edges between two nodes and nodes without any included."""
    torch.manual_seed(seed)
    ptr, senders = in_order(torch.randint(nodes, (2, edges)), nodes)
    x = torch.randint(255, (kinds, 8), dtype=torch.uint8)[torch.randint(kinds, (nodes,))]
    levels = fold_nodes(x, ptr, senders, depth)
    expected = layers(x, whole(x, ptr, senders, depth), "sum")
    for found, wanted in zip(layers(x, levels, "sum"), expected, strict=True):
        assert torch.equal(found, wanted)


def test_levels_where_too_few_nodes_would_go_are_whole():
    """A path: the features are the same, three layers later hardly two nodes are."""
    nodes = 12
    path = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
    ptr, senders = in_order(path, nodes)
    x = torch.ones(nodes, 1)
    left = [None if level.place is None else int(level.place.max()) + 1 for level in fold_nodes(x, ptr, senders, 12)]
    assert left == [1, 2, 3, 4, 5, 6, 7, 8, 9, None, None, None, None]


def test_what_stays_the_same_is_held_once():
    ptr, senders = in_order(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    levels = fold_nodes(torch.ones(3, 1), ptr, senders, DEEPEST)
    assert levels[1] is levels[DEEPEST]
    assert levels[1].own is None
    assert levels[1].place.tolist() == [0, 0, 0]


def test_other_features_fold_another_way(monkeypatch):
    """A graph is folded again when features that were the same are not, and only then."""
    ptr, senders = in_order(a_tree(60), 60)
    calls = []
    monkeypatch.setattr(module, "row_colors", lambda x: (calls.append(x), real(x))[1])
    x = torch.ones(60, 2)
    first = fold_nodes(x, ptr, senders, 2)
    assert fold_nodes(x * 3, ptr, senders, 2) is first
    assert len(calls) == 1
    x[7] = 2
    second = fold_nodes(x, ptr, senders, 2)
    assert len(calls) == 2
    assert int(second[0].place.max()) == 1
    assert fold_nodes(x, ptr, senders, 3) is not second
    assert len(fold_nodes(x, ptr, senders, 3)) == 4
    assert fold_nodes(torch.randn(60, 2), ptr, senders, 2)[0].place is None


real = module.row_colors


def test_a_graph_that_was_changed_is_folded_again():
    ptr, senders = in_order(torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]]), 4)
    x = torch.ones(4, 1)
    assert fold_nodes(x, ptr, senders, 1)[1].place.tolist() == [0, 1, 1, 2]
    ptr.copy_(torch.tensor([0, 1, 2, 3, 4]))
    assert fold_nodes(x, ptr, senders, 1)[1].place.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("nodes", [12, 60])
def test_what_is_kept_goes_with_the_graph(nodes):
    """At once, not when Python looks for circles: batches follow one another. The short path is whole in the end."""
    edge_index = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)]) if nodes == 12 else a_tree(nodes)
    ptr, senders = in_order(edge_index, nodes)
    levels = fold_nodes(torch.ones(nodes, 1), ptr, senders, 12)
    for level in levels:
        integer_propagate(torch.ones(nodes, 8, dtype=torch.uint8), GRID, level.ptr, level.senders, 8, FINISH)
    left = [weakref.ref(tensor) for level in levels for tensor in level if tensor is not None]
    left += [weakref.ref(ptr), weakref.ref(senders)]
    gc.disable()
    try:
        del ptr, senders, levels, level
        assert [known() for known in left] == [None] * len(left)
    finally:
        gc.enable()


def test_a_graph_made_in_inference_mode():
    with torch.inference_mode():
        ptr, senders = in_order(a_tree(60), 60)
        x = torch.ones(60, 2)
        found = fold_nodes(x, ptr, senders, 2)
        assert int(found[0].place.max()) == 0
        ptr.copy_(torch.zeros(61, dtype=torch.int64).index_fill(0, torch.tensor([60]), senders.numel()))
        assert fold_nodes(x, ptr, senders, 1)[1].place.tolist() == [0] * 59 + [1]


def test_errors():
    ptr, senders = torch.tensor([0, 1, 2]), torch.tensor([0, 5])
    with pytest.raises(ValueError, match="2 nodes take x with as many rows"):
        fold_nodes(torch.ones(3, 1), ptr, senders, 1)
    with pytest.raises(IndexError, match="begins at node 5: there are 2 nodes"):
        fold_nodes(torch.ones(2, 1), ptr, senders, 1)
    for depth in (-1, DEEPEST + 1):
        with pytest.raises(ValueError, match=f"got {depth}"):
            fold_nodes(torch.ones(2, 1), ptr, senders, depth)


def test_features_that_are_no_matrix_in_memory():
    ptr, senders = in_order(a_tree(60), 60)
    sparse = torch.eye(60).to_sparse()
    assert fold_nodes(sparse, ptr, senders, 1)[1].place is None
    assert fold_nodes(torch.ones(2, 60).t(), ptr, senders, 1)[0].place is not None


def test_rows_and_back():
    values = torch.tensor([[3], [4]])
    assert take_rows(values, None) is values
    assert place_rows(values, None) is values

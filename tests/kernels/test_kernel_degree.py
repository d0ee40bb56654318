"""In-degrees and protection probabilities against the definition, counted node by node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from dqconvert.kernels import in_degree, protection_probability

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "protection.json").read_text())


@pytest.mark.parametrize("case", GOLDEN)
def test_official_implementation(case):
    batch = torch.tensor(case["batch"]) if "batch" in case else None
    got = protection_probability(
        [torch.tensor(case["edge_index"])[1]], case["num_nodes"], case["p_min"], case["p_max"], batch
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(case["probability"]), rtol=1e-5, atol=0)


def probability_by_hand(targets: list[list[int]], graphs: list[int], p_min: float, p_max: float) -> list[float]:
    edges = [target for edge_type in targets for target in edge_type]
    if not edges:
        return [p_min] * len(graphs)
    degree = [edges.count(node) for node in range(len(graphs))]
    result = []
    for node, graph in enumerate(graphs):
        peers = [degree[other] for other in range(len(graphs)) if graphs[other] == graph]
        share = sum(d <= degree[node] for d in peers) / len(peers)
        result.append(p_min + (p_max - p_min) * share)
    return result


@st.composite
def graphs(draw):
    num_nodes = draw(st.integers(0, 12))
    node = st.integers(0, max(num_nodes - 1, 0))
    targets = draw(st.lists(st.lists(node, max_size=20 if num_nodes else 0), max_size=3))
    graph = draw(st.lists(st.integers(0, 3), min_size=num_nodes, max_size=num_nodes))  # in any order
    p_min, p_max = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return targets, graph, p_min, p_max


@settings(max_examples=300)
@given(graphs(), st.booleans())
def test_probabilities_are_the_definition(case, batched):
    targets, graph, p_min, p_max = case
    index = [torch.tensor(edge_type, dtype=torch.int64) for edge_type in targets]
    batch = torch.tensor(graph, dtype=torch.int64) if batched else None
    got = protection_probability(index, len(graph), p_min, p_max, batch)
    want = torch.tensor(probability_by_hand(targets, graph if batched else [0] * len(graph), p_min, p_max))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-30)


def test_in_degree_counts_parallel_edges_and_self_loops_over_edge_types():
    index = [torch.tensor([0, 0, 2]), torch.tensor([2]), torch.tensor([], dtype=torch.int64)]
    assert in_degree(index, 4).tolist() == [2, 0, 2, 0]
    assert in_degree([], 3).tolist() == [0, 0, 0]
    assert in_degree([], 0).tolist() == []


def test_the_highest_degree_has_exactly_p_max():
    for p_min in (0.0, 0.1, 0.3, 0.7):
        assert protection_probability([torch.tensor([1])], 3, p_min, 1.0)[1] == 1.0


def test_nodes_that_no_edge_reaches_have_p_min():
    for index in ([], [torch.tensor([], dtype=torch.int64)]):
        assert protection_probability(index, 3, 0.25, 0.5).tolist() == [0.25] * 3
        assert protection_probability(index, 3, 0.25, 0.5, batch=torch.tensor([1, 0, 1])).tolist() == [0.25] * 3


def test_no_nodes():
    assert protection_probability([torch.tensor([], dtype=torch.int64)], 0, 0.0, 0.1).shape == (0,)


def test_a_batch_that_does_not_fit():
    with pytest.raises(ValueError, match=r"batch must have one entry per node: got shape \(2,\) for 3 nodes"):
        protection_probability([torch.tensor([0])], 3, 0.0, 0.1, batch=torch.tensor([0, 1]))


def test_nothing_is_read_back_from_the_device():
    """Fake tensors hold no values: whatever looked at one would raise here."""
    with FakeTensorMode():
        index, batch = [torch.randint(50, (200,))], torch.randint(4, (50,))
        assert protection_probability(index, 50, 0.0, 0.1, batch).shape == (50,)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_integers_of_any_width_count(dtype):
    """Those within a list of graphs come as the user gave them."""
    targets = torch.tensor([0, 2, 2], dtype=dtype)
    assert in_degree([targets], 4).tolist() == [1, 0, 2, 0]
    assert protection_probability([targets], 4, 0.0, 0.4).tolist() == pytest.approx([0.3, 0.2, 0.4, 0.2])

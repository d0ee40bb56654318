"""Scales per group of in-degrees in integer modules: the same codes as the prepared module's."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert
from dqconvert import QConfig, QSpec


def graph(nodes=300, edges=1800):
    torch.manual_seed(0)
    targets = (torch.rand(edges) ** 3 * nodes).long()
    return torch.randn(nodes, 6), torch.stack([torch.randint(0, nodes, (edges,)), targets])


def converted(model, bits, *args, **fields):
    spec = QSpec(bits=bits, granularity="degree", range="mse", signed=True)
    config = QConfig(weight=QSpec(bits=bits), activation=spec, message=spec, aggregate=spec, **fields)
    module, _ = dqconvert.prepare(model, config, args)
    dqconvert.calibrate(module, args)
    return module.eval(), dqconvert.convert(module)


def calls(integer):
    return [getattr(node.target, "__name__", node.target) for node in integer.graph.nodes]


@pytest.mark.sample(3)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model", [GCN, GIN, GraphSAGE, GAT])
def test_integer_modules_agree_with_prepared_ones(model, bits, tmp_path):
    torch.manual_seed(1)
    args = graph()
    module, integer = converted(model(6, 16, 2, 5), bits, *args)
    with torch.no_grad():
        want, got = module(*args), integer(*args)
    assert ((want - got).abs() > 1e-5).float().mean() <= 1e-3
    assert (want.argmax(1) == got.argmax(1)).float().mean() >= 0.999
    dqconvert.save(integer, tmp_path / "model.dq")
    assert torch.equal(dqconvert.load(tmp_path / "model.dq")(*args), got)
    other = torch.randn(50, 6), torch.randint(0, 50, (2, 200))  # another graph, by its own degrees
    torch.testing.assert_close(integer(*other), module(*other), rtol=0, atol=0.2)


@pytest.mark.parametrize("bits", [8, 4])
def test_means_and_linear_layers_are_integer_all_the_way(bits):
    _, integer = converted(GraphSAGE(6, 16, 2, 5), bits, *graph())
    assert not integer.report.floats
    assert calls(integer).count("integer_linear") == 4
    assert calls(integer).count("integer_propagate") == 2


def test_sums_of_norms_on_nodes_are_integer_all_the_way():
    """A GCN whose norm lies on the nodes sends plain rows, which have one scale; sums have that of their group."""
    module, integer = converted(GCN(6, 16, 2, 5), 8, *graph(), norm="nodes")
    assert not integer.report.floats
    assert calls(integer).count("integer_propagate") == 2
    with torch.no_grad():
        want, got = module(*graph()), integer(*graph())
    assert (want.argmax(1) == got.argmax(1)).float().mean() >= 0.999


@pytest.mark.sample(2)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model", [GCN, GAT])
def test_weighted_messages_are_integer(model, bits):
    """A row is on the grid of its own group, the message made of it on that of who receives it."""
    _, integer = converted(model(6, 16, 2, 5), bits, *graph())
    assert calls(integer).count("integer_propagate") == 2
    assert not [one for one in integer.report.floats if "aggr" in one.op or one.op in ("mul", "sum")]
    assert not integer.report.floats


@pytest.mark.sample(2)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("output", [True, False])
def test_attention_is_integer_all_the_way(bits, output):
    """Logits, coefficients and the mean over heads are on the grids of who receives; without a grid it is float32."""
    module, integer = converted(GAT(6, 16, 2, 5, heads=4), bits, *graph(), output=output)
    assert not integer.report.floats
    assert [calls(integer).count(name) for name in ("attention_sums", "integer_propagate", "add_heads")] == [2, 2, 1]
    assert not {"softmax", "index_select", "mean", "quantize_groups"} & {*calls(integer)}
    with torch.no_grad():
        want, got = module(*graph()), integer(*graph())
    assert ((want - got).abs() > 1e-5).float().mean() <= 1e-3


def test_coefficients_of_logits_on_edges_are_integer():
    """Where no sum of both ends makes a logit, its codes are on the edges."""
    model = GAT(6, 16, 2, 5, heads=2, v2=True)
    module, integer = converted(model, 8, *graph())
    assert calls(integer).count("softmax_codes") == 2
    assert "softmax" not in calls(integer)
    with torch.no_grad():
        want, got = module(*graph()), integer(*graph())
    assert ((want - got).abs() > 1e-5).float().mean() <= 1e-3


def test_values_between_groups_and_one_grid_are_looked_up():
    _, integer = converted(GIN(6, 16, 2, 5), 8, *graph())
    assert not integer.report.floats
    assert calls(integer).count("integer_propagate") == 2
    assert calls(integer).count("groups_of_nodes") <= 1  # remembered with the graph

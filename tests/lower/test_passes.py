"""The passes behind the walk: each may be left out, and the outputs stay the same, bit for bit."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import dqconvert
from dqconvert.lower import PASSES, lower
from dqconvert.lower.evaluation import removable

WIDTH = 6
MODELS = {
    "GCN": lambda: GCN(WIDTH, 8, 2, 4, norm="batch_norm"),
    "GIN": lambda: GIN(WIDTH, 8, 2, 4, jk="cat"),
    "GraphSAGE": lambda: GraphSAGE(WIDTH, 8, 2, 4),
    "GAT": lambda: GAT(WIDTH, 8, 2, 4, heads=2),
}
NAMES = [*dict.fromkeys(run.__name__ for run in PASSES)]


def a_graph(nodes=30, edges=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, WIDTH, generator=generator), torch.randint(0, nodes, (2, edges), generator=generator)


@functools.cache
def trained(name):
    torch.manual_seed(0)
    module = dqconvert.prepare(MODELS[name](), "int4-dq", a_graph()).module
    module.train()(*a_graph())
    return module.eval()


@functools.cache
def wanted(name):
    integer = dqconvert.convert(trained(name))
    return [integer(*a_graph(*size)) for size in ((30, 120, 1), (5, 0, 2))]


def same_outputs(name, passes):
    integer = lower(trained(name), passes=passes)
    return all(
        torch.equal(integer(*a_graph(*size)), want)
        for size, want in zip(((30, 120, 1), (5, 0, 2)), wanted(name), strict=True)
    )


@pytest.mark.sample(9)
@pytest.mark.parametrize("left_out", NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_any_pass_may_be_left_out(name, left_out):
    assert same_outputs(name, [run for run in PASSES if run.__name__ != left_out])


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MODELS)
def test_lowering_may_stop_before_any_pass(name):
    for count in range(0, len(PASSES), 3):
        assert same_outputs(name, PASSES[:count])


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_that_nobody_reads(name):
    """Nodes and constants."""
    for passes in (PASSES, PASSES[:3]):
        integer = lower(trained(name), passes=passes)
        assert not [node for node in integer.graph.nodes if not node.users and removable(node)]
        read = {str(node.target) for node in integer.graph.nodes if node.op == "get_attr"}
        assert {path for path, _ in integer.named_buffers() if "." not in path} == read


def test_a_pass_of_ones_own():
    """As it sees the program: what is written, in order."""
    seen = []

    def look(program):
        seen.append([getattr(node.target, "__name__", node.target) for node in program.graph.nodes])
        return program

    lower(trained("GIN"), passes=[*itertools.chain.from_iterable((run, look) for run in PASSES)])
    assert len(seen) == len(PASSES)
    assert "fold_nodes" not in seen[0]
    assert "fold_nodes" in seen[-1]

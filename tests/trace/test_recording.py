"""What a recording must not lose: numbers, in-place writes, modes, and where each node comes from."""

import math
import random
from random import uniform

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN, GCNConv, SAGEConv
from torch_geometric.utils import negative_sampling, scatter, to_dense_batch

from dqconvert.errors import GuardError, TraceError
from dqconvert.trace import Stage, note_of, trace
from dqconvert.trace.guards import guard


def graph(nodes, edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, 8, generator=generator)
    return x, torch.randint(nodes, (2, edges), generator=generator)


RATIO = 0.5


def share(size, ratio=0.25):
    return ratio * size


class Model(nn.Module):
    """A linear layer around a function of its output, so that there is something to train."""

    share = 0.75

    def __init__(self, function):
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.function = function
        self.ratio = 0.5

    def forward(self, x, edge_index):
        return self.function(self, self.lin(x), edge_index)


def pairs(self, h, edge_index):
    h = h.clone()
    h[0] = 1.0
    h[:, 1] += 2
    return h


FUNCTIONS = {
    "new tensors of a size": lambda self, h, e: torch.zeros(h.size(0), h.shape[1]) + h,
    "arithmetic on sizes": lambda self, h, e: h[: h.size(0) // 2 + 1] * (h.size(0) - 1) / len(h),
    "a ratio times a size": lambda self, h, e: h[: int(self.ratio * h.size(0))],
    "a literal times a size": lambda self, h, e: h[: int(0.5 * h.size(0))],
    "a literal over a size": lambda self, h, e: h * (1.0 / h.size(0)),
    "a literal minus a size": lambda self, h, e: h * (1.5 - h.size(0)),
    "a literal to the power of a size": lambda self, h, e: h * 0.9 ** h.size(0),
    "the root of a literal times a size": lambda self, h, e: h * (math.sqrt(2.0) * h.size(0)),
    "a module's constant times a size": lambda self, h, e: h * (RATIO * h.size(0)),
    "a default times a size": lambda self, h, e: h * share(h.size(0)),
    "a class's constant times a size": lambda self, h, e: h * (self.share * h.size(0)),
    "a literal in a nested function": lambda self, h, e: h * (lambda n: 0.25 * n)(h.size(0)),
    "divmod": lambda self, h, e: h * divmod(h.size(0), 4)[0] + divmod(100, h.size(0))[1],
    "bits": lambda self, h, e: h * (h.size(0) >> 1) + (1 << (h.size(0) & 3)),
    "ceil and sqrt": lambda self, h, e: h[: math.ceil(h.size(0) * 0.3)] / math.sqrt(h.size(0)),
    "the largest index": lambda self, h, e: scatter(h[e[0]], e[1], dim=0, dim_size=int(e.max()) + 1),
    "item": lambda self, h, e: h * e.max().item(),
    "the smaller of two sizes": lambda self, h, e: h[: min(h.size(0), e.size(1))],
    "an in-place write": pairs,
    "unpacked rows": lambda self, h, e: (lambda row, col: h[row] - h[col])(*e),
    "a reflected operator": lambda self, h, e: 1 - h + 2 / (h.abs() + 1),
    "no gradient": lambda self, h, e: h + no_gradient(h),
    "einsum": lambda self, h, e: torch.einsum("nf,gf->ng", h, self.lin.weight),
    "a transposed parameter": lambda self, h, e: h @ self.lin.weight.T,
    "an attribute that is a plain tensor": lambda self, h, e: h * torch.tensor([2.0]),
}


def no_gradient(h):
    with torch.no_grad():
        return h.mean(dim=0)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_a_trace_computes_what_the_model_computes_on_other_sizes(name, training):
    model = Model(FUNCTIONS[name])
    traced = trace(model, graph(9, 20)).module.train(training)
    other = graph(14, 33, seed=1)
    expected, actual = model.train(training)(*other), traced(*other)
    assert torch.equal(expected, actual)
    expected.sum().backward()
    actual.sum().backward()
    assert torch.equal(model.lin.weight.grad, traced.lin.weight.grad)


def test_a_branch_on_a_size_is_checked_when_the_graph_runs():
    def function(self, h, e):
        return h * 2 if h.size(0) > 100 else h

    traced = trace(Model(function), graph(9, 20)).module
    assert any(node.target is guard for node in traced.graph.nodes)
    with pytest.raises(GuardError, match=r"`101 > 100` was False, and now it is True"):
        traced(*graph(101, 20))


class Shortcuts(nn.Module):
    """Two shortcuts: one changes nothing where it is taken; the other asks about what graphs without edges have."""

    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(8, 4)

    def forward(self, x, edge_index, extra):
        h = self.conv(x, edge_index.clone() if edge_index.numel() == 0 else edge_index)
        return h * 2 if extra.numel() == 0 else h + extra.sum()


def test_of_graphs_without_edges_only_guards_on_edges_are_dropped():
    (x, edges), extra, model = graph(9, 20), torch.rand(3), Shortcuts()
    traced = trace(model, (x, edges, extra)).module
    assert torch.allclose(traced(x, edges[:, :0], extra), model(x, edges[:, :0], extra))
    for some in (edges, edges[:, :0]):
        with pytest.raises(GuardError, match=r"test_recording\.py:\d+: .* `0 == 0` was False"):
            traced(x, some, extra[:0])


def test_a_number_that_swallows_a_size_is_refused_and_named():
    ratios = [0.5]
    with pytest.raises(TraceError, match=r"test_recording\.py:\d+: the root module .* turns a size or a value"):
        trace(Model(lambda self, h, e: h[: int(ratios[0] * h.size(0))]), graph(9, 20))


def test_a_list_of_a_size_is_checked_when_the_graph_runs():
    traced = trace(Model(lambda self, h, e: h * torch.tensor([1.0] * h.size(1)) + len([0] * h.size(0))), graph(9, 20))
    with pytest.raises(GuardError):
        traced.module(*graph(14, 33))


RANDOM = {
    "random": lambda self, h, e: h * random.random(),
    "imported by name": lambda self, h, e: h * uniform(0.5, 1.5),
    "numpy": lambda self, h, e: h * float(np.random.rand()),
    "a branch": lambda self, h, e: h if random.randint(0, 1) else -h,
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_that_are_not_torchs_are_refused_and_named(name):
    with pytest.raises(
        TraceError, match=r"test_recording\.py:\d+: the root module .* draws random numbers with \w+\(\)"
    ):
        trace(Model(RANDOM[name]), graph(9, 20))


class Jitter(nn.Module):
    def forward(self, h):
        return h * random.random()


@pytest.mark.parametrize("training", [True, False])
def test_a_module_that_draws_with_pythons_random_stays_whole(training):
    model = Model(lambda self, h, e: self.jitter(h))
    model.jitter = Jitter()
    state = random.getstate()
    found = trace(model, graph(9, 20))
    assert random.getstate() == state
    assert [(island.module, "random()" in island.reason) for island in found.islands] == [("jitter", True)]
    random.seed(4)
    expected = model.train(training)(*graph(14, 33))
    random.seed(4)
    assert torch.equal(found.module.train(training)(*graph(14, 33)), expected)


class Negatives(nn.Module):
    """PyG samples negative edges with Python's random; its function is one node, which draws anew when it runs."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x, edge_index):
        row, col = negative_sampling(edge_index, num_nodes=x.size(0), num_neg_samples=7)
        return (self.lin(x)[row] * x[col]).sum(dim=-1)


def test_a_function_of_pyg_that_draws_with_pythons_random_is_compared_under_one_seed():
    model = Negatives()
    traced = trace(model, graph(9, 20)).module
    for seed in (1, 2):
        random.seed(seed)
        expected = model.train()(*graph(14, 33))
        random.seed(seed)
        assert torch.equal(traced.train()(*graph(14, 33)), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_seen_through(reentrant):
    def function(self, h, e):
        again = torch.utils.checkpoint.checkpoint(self.inner, h, e, use_reentrant=reentrant)
        return h + checkpoint(torch.tanh, again, use_reentrant=reentrant)

    model = Model(function)
    model.inner = SAGEConv(8, 8)
    found = trace(model, graph(9, 20))
    assert found.islands == ()
    assert any("torch.utils.checkpoint" in remark for remark in found.remarks)
    other = graph(14, 33)
    for module in (model, found.module):
        module.train()(*other).sum().backward()
    for wanted, got in zip(model.parameters(), found.module.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-5, atol=1e-6)  # summed in another order
    assert torch.utils.checkpoint.checkpoint is checkpoint


def test_every_node_knows_its_stage_module_and_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(8, 4)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index).relu()

    nodes = trace(Net(), graph(9, 20)).module.graph.nodes
    stages = {note_of(node).stage for node in nodes}
    assert {Stage.MESSAGE, Stage.AGGREGATE, Stage.UPDATE, Stage.NONE} <= stages
    linear = next(node for node in nodes if node.op == "call_module" and node.target == "conv.lin")
    assert note_of(linear).module == "conv.lin"
    assert note_of(linear).source.startswith("torch_geometric/nn/")
    relu = next(node for node in nodes if node.target == "relu")
    assert note_of(relu).module == ""
    assert "test_recording.py" in note_of(relu).source


def test_pygs_functions_stay_single_named_nodes():
    code = trace(GCNConv(8, 4), graph(9, 20)).module.code
    assert "gcn_norm(" in code
    assert "scatter_add" not in code


def test_a_constant_chosen_by_the_mode_follows_the_mode_of_its_own_module():
    class Inner(nn.Module):
        def forward(self, x):
            return F.dropout(x, p=0.5, training=self.training) * (2.0 if self.training else 3.0)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inner = SAGEConv(8, 8), Inner()

        def forward(self, x, edge_index):
            return self.inner(self.conv(x, edge_index))

    model = Outer()
    traced = trace(model, graph(9, 20)).module
    inputs = graph(14, 33)
    for outer, inner in [(True, True), (True, False), (False, False), (False, True)]:
        for module in (model, traced):
            module.train(outer)
            module.inner.train(inner)
        torch.manual_seed(0)
        expected = model(*inputs)
        torch.manual_seed(0)
        assert torch.equal(traced(*inputs), expected)


def test_a_graph_of_another_structure_in_evaluation_is_kept_beside_the_first():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = SAGEConv(8, 8)

        def forward(self, x, edge_index):
            if self.training:
                return self.conv(x + torch.randn_like(x), edge_index)
            return self.conv(x, edge_index).softmax(dim=-1)

    model, inputs = Noisy(), graph(14, 33)
    traced = trace(model, graph(9, 20)).module
    assert traced.eval_graph is not None
    for training in (True, False):
        torch.manual_seed(0)
        expected = model.train(training)(*inputs)
        torch.manual_seed(0)
        assert torch.equal(traced.train(training)(*inputs), expected)


def test_the_code_that_was_recorded_is_as_it_was_before():
    import torch_geometric.nn.conv.gcn_conv as module

    before = dict(vars(module)), nn.Module.__call__
    trace(GCNConv(8, 4), graph(9, 20))
    with pytest.raises(TraceError):
        trace(Model(lambda self, h, e: h if h.sum() > 0 else -h), graph(9, 20))
    assert (dict(vars(module)), nn.Module.__call__) == before


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_alone_does_not_give_evaluation_a_graph_of_its_own(dropout):
    assert trace(GCN(8, 16, 2, 4, dropout=dropout, norm="batch_norm"), graph(9, 20)).module.eval_graph is None


class Halving(nn.Module):
    """Adds the first half to the second until one row is left: no graph holds a loop over a size."""

    def forward(self, h):
        while h.size(0) > 1:
            half = h.size(0) // 2
            rest = h[2 * half :] if h.size(0) % 2 == 1 else h[:0]
            h = torch.cat([h[:half] + h[half : 2 * half], rest])
        return h


def test_a_module_that_loops_over_a_size_stays_whole():
    model = Model(lambda self, h, e: self.halving(h) + h)
    model.halving = Halving()
    found = trace(model, graph(9, 20))
    assert [(island.module, "a size" in island.reason) for island in found.islands] == [("halving", True)]
    for nodes in (5, 8, 14, 33):
        assert torch.equal(found.module(*graph(nodes, 40)), model(*graph(nodes, 40)))


class HalvingRounds(nn.Module):
    """The same over the largest number of edges of a node, which the second input does not change."""

    def forward(self, h, index):
        rows, _ = to_dense_batch(h, index)
        rows = rows.transpose(0, 1)
        while rows.size(0) > 1:
            half = rows.size(0) // 2
            rest = rows[2 * half :] if rows.size(0) % 2 == 1 else rows[:0]
            rows = torch.cat([rows[:half] + rows[half : 2 * half], rest])
        return rows[0]


def test_a_loop_that_takes_as_many_rounds_on_the_second_input_stays_whole():
    model = Model(lambda self, h, e: self.halving(h[e[0]], e[1].sort().values))
    model.halving = HalvingRounds()
    found = trace(model, graph(9, 20))
    assert [island.module for island in found.islands] == ["halving"]
    for seed in range(6):
        other = graph(12, 40, seed)
        assert torch.equal(found.module(*other), model(*other))

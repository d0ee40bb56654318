"""`propagate`: sums of quantized messages by compiled loops, against every message written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels import Scheme, edge_order, propagate
from dqconvert.kernels._grid import Steps
from dqconvert.kernels.propagate import Passing, plain_messages, plain_propagate, propagate_grad, propagate_operator

NEVER = (math.inf, -math.inf)


def scheme(bits=8, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=True):
    low = -(2 ** (bits - 1))
    return Scheme(low, low + 2**bits - 1, symmetric, p, momentum, observe, clip)


SCHEMES = {
    "int8": scheme(p=0.001),
    "int4": scheme(bits=4, p=0.01),
    "min and max": scheme(bits=4),
    "symmetric": scheme(symmetric=True),
    "ema": scheme(p=0.01, momentum=0.1, clip=False),
}

GRAPHS = {
    "random": (torch.randint(29, (2, 120), generator=torch.Generator().manual_seed(0)), 30, 30),  # node 29 is isolated
    "one edge": (torch.tensor([[1], [0]]), 3, 2),
    "no edges": (torch.empty(2, 0, dtype=torch.int64), 4, 4),
    "no nodes": (torch.empty(2, 0, dtype=torch.int64), 0, 0),
    "none receives": (torch.empty(2, 0, dtype=torch.int64), 4, 0),
    "none sends": (torch.empty(2, 0, dtype=torch.int64), 0, 4),
    "self-loops": (torch.arange(8).repeat(2, 1), 8, 8),
    "duplicate edges": (torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]]), 2, 2),
    "hub": (torch.stack([torch.arange(50), torch.zeros(50, dtype=torch.int64)]), 50, 50),
    "many edges, few nodes": (torch.randint(3, (2, 700), generator=torch.Generator().manual_seed(1)), 3, 3),
    "bipartite": (torch.stack([torch.arange(60) % 7, torch.arange(60) % 23]), 7, 23),
}


def orders(edge_index, num_senders, num_receivers):
    sender, receiver = edge_index
    by_receiver = edge_order(receiver, sender, num_receivers)
    return sender, receiver, list(by_receiver), list(edge_order(sender, receiver, num_senders))


def settings_of(grid, mean=False):
    """How messages are passed, and a chain that does nothing, packed."""
    ints, floats = Passing(grid, mean).packed()
    more, most = Steps((None, None, None)).packed()
    return [*ints, *more], [*floats, *most]


def assert_as_defined(graph, x, weight, grid, protected=None, mean=False, ranges=NEVER):
    """Values, range and gradients; the new range."""
    num_receivers = graph[2]
    sender, receiver, *order = orders(*graph)
    ends, packed = torch.tensor(ranges), settings_of(grid, mean)
    ahead, behind = (sender, receiver, *order), (protected, None, None, None, None, ends, *packed)
    out, new, _, extremes = propagate_operator(x, weight, *ahead, num_receivers, *behind)
    want, want_new, _, _ = plain_propagate(x, weight, *ahead, num_receivers, *behind)
    # No code may differ: a step of the grid is far more than the sums may be off.
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5 * scale_of(want), equal_nan=True)
    assert torch.equal(new, want_new)

    grad = torch.randn_like(out)
    args = (protected, new, *packed, weight is not None)
    got = propagate_grad(grad, x, weight, *ahead, extremes, *args)
    want_grad = propagate_grad.definition(grad, x, weight, *ahead, extremes, *args)
    for one, two in zip(got, want_grad, strict=True):
        # Nothing comes back from a clipped message, not even the NaN that zero times an infinite value is.
        one = torch.where(two.isnan(), two, one) if one.shape == two.shape else one
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * scale_of(two), equal_nan=True)
    return new.tolist()


def scale_of(t):
    finite = t[t.isfinite()]
    return max(1.0, finite.abs().max().item()) if finite.numel() else 1.0


def masks(rows):
    return {
        "none": None,
        "random": torch.rand(rows) < 0.3,
        "all": torch.ones(rows) > 0,
        "no row": torch.zeros(rows) > 0,
    }


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("heads", [0, 1, 4], ids="{} heads".format)
@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs(graph, heads, mean):
    edge_index, num_senders, _ = GRAPHS[graph]
    weight = torch.randn(edge_index.size(1), heads) if heads else None
    for protected in masks(num_senders).values():
        ranges = NEVER
        for step in range(3):
            x = torch.randn(num_senders, 16) * (1 + step / 2)
            ranges = assert_as_defined(GRAPHS[graph], x, weight, scheme(bits=4, p=0.01), protected, mean, ranges)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "channels"), [(0, 1), (0, 16), (0, 300), (1, 0), (1, 1), (1, 33), (4, 16), (3, 100)])
def test_widths(heads, channels, dtype):
    x = torch.randn(30, max(heads, 1) * channels, dtype=dtype)
    weight = torch.rand(120, heads, dtype=dtype) if heads else None
    if x.size(1) == 0:
        weight = None
    for grid in SCHEMES.values():
        assert_as_defined(GRAPHS["random"], x, weight, grid, torch.rand(30) < 0.3)


@pytest.mark.parametrize("grid", SCHEMES)
@pytest.mark.parametrize("heads", [0, 1, 2], ids="{} heads".format)
def test_many_messages_on_one_thread_and_many(threads, heads, grid):
    """Enough for the sampled and the carried bounds of the percentiles, and for a cut between threads."""
    edge_index = (torch.rand(2, 6000) ** 3 * 900).long()  # a few nodes have most of the edges
    weight = torch.rand(6000, heads) if heads else None
    ranges = NEVER
    for step in (1.0, 2.0, 0.5):
        x = torch.randn(1000, 16) * step
        ranges = assert_as_defined(
            (edge_index, 1000, 1000), x, weight, SCHEMES[grid], torch.rand(1000) < 0.1, False, ranges
        )


@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
@pytest.mark.parametrize("kind", ["zeros", "constant", "nan", "infinite", "all nan"])
def test_special_values(kind, heads):
    edge_index = torch.randint(300, (2, 4000))
    graph = edge_index, 300, 300
    x = torch.randn(300, 12)
    if kind == "zeros":
        x = x.relu() * (torch.rand(300, 12) < 0.1)
    elif kind == "constant":
        x = torch.full((300, 12), 0.7)
    elif kind == "all nan":
        x = torch.full((300, 12), math.nan)
    else:
        x[torch.rand(300, 12) < 0.01] = math.nan if kind == "nan" else math.inf
        x[torch.rand(300, 12) < 0.01] = math.nan if kind == "nan" else -math.inf
    weight = torch.randn(4000, heads) if heads else None
    if heads:
        weight[::7] = 0
    for grid in SCHEMES.values():
        ranges = assert_as_defined(graph, torch.randn(300, 12), weight, grid)
        assert_as_defined(graph, x, weight, grid, torch.rand(300) < 0.2, ranges=ranges)
        assert_as_defined(graph, x, weight, grid)


def test_nan_stays_nan_infinities_become_the_ends_and_neither_is_observed():
    x = torch.tensor([[math.nan], [math.inf], [-math.inf], [-1.0], [2.0]])
    sender, receiver, *order = orders(torch.arange(5).repeat(2, 1), 5, 5)
    by = [type(edge_order(sender, receiver, 5))(*one) for one in order]
    never = tuple(torch.tensor(end) for end in NEVER)
    for weight in (None, torch.ones(5, 1)):
        out, ends = propagate(x, weight, sender, receiver, *by, scheme(), never)
        assert ends.tolist() == [-1.0, 2.0]
        assert out[0].isnan()
        assert out[1:3].flatten().tolist() == pytest.approx([2.0, -1.0], abs=0.01)


@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
def test_strides_do_not_matter(heads):
    graph = GRAPHS["random"]
    weight = torch.randn(heads, 120).t() if heads else None
    protected = (torch.rand(60) < 0.3)[::2]
    for x in (torch.randn(16, 30).t(), torch.randn(60, 16)[::2], torch.randn(1, 16).expand(30, -1)):
        assert_as_defined(graph, x, weight, scheme(bits=4, p=0.01), protected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_take_the_plain_way(dtype, weighted):
    x = torch.randn(30, 8).to(dtype)
    weight = torch.rand(120, 2).to(dtype) if weighted else None
    assert_as_defined(GRAPHS["random"], x, weight, SCHEMES["int8"], torch.rand(30) < 0.3)


@settings(deadline=None, max_examples=60)
@given(
    nodes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    edges=st.integers(0, 60),
    heads=st.sampled_from([0, 1, 2]),
    mean=st.booleans(),
    grid=st.sampled_from(list(SCHEMES.values())),
    share=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_any_graph(nodes, edges, heads, mean, grid, share, seed):
    torch.manual_seed(seed)
    edge_index = torch.stack([torch.randint(count, (edges,)) for count in nodes])
    weight = torch.randn(edges, heads) if heads else None
    protected = None if share is None else torch.rand(nodes[0]) < share
    ranges = assert_as_defined((edge_index, *nodes), torch.randn(nodes[0], 8), weight, grid, protected, mean)
    assert_as_defined((edge_index, *nodes), 2 * torch.randn(nodes[0], 8), weight, grid, protected, mean, ranges)


def test_messages_are_added_in_the_order_of_the_edges():
    """So that a seed says everything, on any number of threads."""
    edge_index, x, weight = torch.randint(50, (2, 5000)), torch.randn(50, 4), torch.rand(5000, 1)
    sender, receiver, *order = orders(edge_index, 50, 50)
    ends, grid = torch.tensor([-4.0, 4.0]), scheme(observe=False)
    message, _, _ = plain_messages(x, weight, sender, None, ends, grid)
    args = (x, weight, sender, receiver, *order, 50, None, None, None, None, None, ends, *settings_of(grid))
    want = torch.zeros(50, 4)
    for edge in range(5000):
        want[receiver[edge]] += message[edge]
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(propagate_operator(*args)[0], want)
    torch.set_num_threads(before)


# -- gradients ---------------------------------------------------------------------------------------------------


def through(x, weight, grid, ends, mean, protected=None, graph=GRAPHS["random"]):
    sender, receiver, *order = orders(*graph)
    by = [type(edge_order(sender, receiver, graph[2]))(*one) for one in order]
    return propagate(x, weight, sender, receiver, *by, grid, ends, protected, mean)


class Quantized(torch.autograd.Function):
    """Every message; nothing comes back to those that were clipped."""

    @staticmethod
    def forward(ctx, message, grid, ends, rows):
        sender = torch.arange(len(message))
        fixed = grid._replace(observe=False)
        rounded, _, clipped = plain_messages(message, None, sender, rows, ends, fixed)
        ctx.save_for_backward(clipped)
        return rounded

    @staticmethod
    def backward(ctx, grad):
        return grad.masked_fill(ctx.saved_tensors[0], 0), None, None, None


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "ste"])
@pytest.mark.parametrize(("heads", "mean"), itertools.product([0, 1, 4], [False, True]))
def test_gradients_are_those_of_gather_round_and_add(heads, mean, clip):
    edge_index, num_senders, num_receivers = GRAPHS["random"]
    sender, receiver = edge_index
    grid = scheme(bits=4, p=0.05, clip=clip)
    protected = torch.rand(num_senders) < 0.3
    leaves = [torch.randn(num_senders, 8), torch.randn(120, max(heads, 1))]
    mine, theirs = ([t.clone().requires_grad_() for t in leaves] for _ in range(2))
    never = tuple(torch.tensor(end) for end in NEVER)
    out, ends = through(mine[0], mine[1] if heads else None, grid, never, mean, protected)

    message = theirs[0][sender]
    if heads:
        message = (message.view(120, heads, -1) * theirs[1].unsqueeze(2)).view(120, 8)
    message = Quantized.apply(message, grid, ends, protected[sender])
    want = torch.zeros(num_receivers, 8).index_add(0, receiver, message)
    if mean:
        want = want / torch.bincount(receiver, minlength=num_receivers).clamp(min=1).unsqueeze(1)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    want.backward(upstream)
    torch.testing.assert_close(mine[0].grad, theirs[0].grad, rtol=1e-5, atol=1e-5)
    if heads:
        torch.testing.assert_close(mine[1].grad, theirs[1].grad, rtol=1e-5, atol=1e-5)


FINE = Scheme(-(2**40), 2**40, False, 0.0, -1.0, False, False)
WIDE = (torch.tensor(-1000.0), torch.tensor(1000.0))


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
def test_gradcheck(heads, mean):
    graph = GRAPHS["bipartite"]
    leaves = [torch.randn(7, 4, dtype=torch.float64, requires_grad=True)]
    if heads:
        leaves.append(torch.randn(60, heads, dtype=torch.float64, requires_grad=True))

    def sums(x, weight=None):
        return through(x, weight, FINE, WIDE, mean, graph=graph)[0]

    assert torch.autograd.gradcheck(sums, leaves, eps=1e-4, atol=1e-3)


@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
def test_second_derivatives(heads):
    graph = GRAPHS["duplicate edges"]
    leaves = [torch.randn(2, 4, dtype=torch.float64, requires_grad=True)]
    if heads:
        leaves.append(torch.randn(4, heads, dtype=torch.float64, requires_grad=True))

    def squared(x, weight=None):
        return through(x, weight, FINE, WIDE, False, graph=graph)[0] ** 2

    assert torch.autograd.gradgradcheck(squared, leaves, eps=1e-4, atol=1e-2)


def test_only_what_is_wanted_gets_a_gradient():
    x, weight = torch.randn(30, 8), torch.rand(120, 1, requires_grad=True)
    never = tuple(torch.tensor(end) for end in NEVER)
    through(x, weight, scheme(), never, False)[0].sum().backward()
    assert x.grad is None
    assert weight.grad.shape == weight.shape


def test_errors_name_what_does_not_fit():
    never = tuple(torch.tensor(end) for end in NEVER)
    with pytest.raises(TypeError, match="protected must be a bool tensor"):
        through(torch.randn(30, 8), None, scheme(), never, False, torch.ones(30))
    with pytest.raises(ValueError, match="protected must have one entry per row"):
        through(torch.randn(30, 8), None, scheme(), never, False, torch.ones(120) > 0)


@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_their_contract(dtype, heads):
    sender, receiver, *order = orders(*GRAPHS["bipartite"])
    x = torch.randn(7, 4).to(dtype).requires_grad_()
    weight = torch.randn(60, heads).to(dtype).requires_grad_() if heads else None
    protected, packed = torch.rand(7) < 0.5, settings_of(scheme(p=0.01), mean=True)
    ahead = (sender, receiver, *order)
    behind = (protected, None, None, None, None, torch.tensor(NEVER), *packed)
    args = (x, weight, *ahead, 23, *behind)
    torch.library.opcheck(torch.ops.dqconvert.propagate.default, args)

    out, new, _, extremes = propagate_operator(*args)
    values = [None if t is None else t.detach() for t in (torch.randn_like(out), x, weight)]
    for for_weight in {False, bool(heads)}:
        args = (*values, *ahead, extremes, protected, new, *packed, for_weight)
        torch.library.opcheck(torch.ops.dqconvert.propagate_grad.default, args)

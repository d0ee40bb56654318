"""`propagate`: sums of quantized messages by compiled loops, against every message written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from chain_cases import (
    FINE,
    INT4,
    INT8,
    KINDS,
    NEVER,
    SCHEMES,
    as_ranges,
    assert_equal,
    chain_of,
    masks,
    scheme,
    special,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels import Chain, Ranged, Sent, edge_order, propagate
from dqconvert.kernels.cpu.node_loops import put_codes
from dqconvert.kernels.messages import plain_messages
from dqconvert.kernels.propagate import plain_propagate, propagate_operator
from dqconvert.kernels.propagate_grad import propagate_grad

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


def sent_along(graph, x, weight, protected=None):
    """Rows, and the edges of a graph that they are sent along."""
    (sender, receiver), num_senders, num_receivers = graph
    order = edge_order(receiver, sender, num_receivers), edge_order(sender, receiver, num_senders)
    return Sent.of(x, weight, sender, receiver, *order, protected)


def arguments(
    graph, x, weight, grid, protected=None, reduce="sum", range_=NEVER, /, schemes=(), chain_ranges=None, **more
):
    """What the operator takes; `schemes`: of the chain, by place; `more`: its addends, its mask and its ReLU."""
    schemes = dict(schemes)
    chain = chain_of(schemes, NEVER * len(schemes) if chain_ranges is None else chain_ranges, **more)
    return sent_along(graph, x, weight, protected), Ranged(torch.as_tensor(range_), *grid.packed()), reduce, chain


def assert_as_defined(graph, x, weight, grid, *rest, **options):
    """Values, ranges, which gradients pass, all to the last bit; and the gradients. The new ranges, and the chain's."""
    args = sent, messages, reduce, chain = arguments(graph, x, weight, grid, *rest, **options)
    out, ends, passes, range_, again = propagate_operator(*args)
    want = plain_propagate(*args)
    assert_equal((out, ends, passes), want[:3])
    torch.testing.assert_close(range_, want[3], rtol=0, atol=0)

    grad = torch.randn_like(out)
    everything, apart = torch.empty(0, dtype=torch.uint8), chain.steps.schemes[0] is not None
    for plus, bits in ((None, passes), (torch.randn_like(x), everything)):
        own = (messages._replace(range_=range_).frozen, chain.groups if messages.grouped else None)
        back = (grad, bits, apart, sent, *own, reduce, again, out if reduce == "max" else None)
        args = (*back, weight is not None, plus if reduce != "max" else None)
        for one, two in zip(propagate_grad(*args), propagate_grad.definition(*args), strict=True):
            # Nothing comes back from a clipped message, not even the NaN that zero times an infinite value is.
            one = torch.where(two.isnan(), two, one) if one.shape == two.shape else one
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * scale_of(two), equal_nan=True)
    return range_.tolist(), ends.tolist()


def scale_of(t):
    finite = t[t.isfinite()]
    return max(1.0, finite.abs().max().item()) if finite.numel() else 1.0


@pytest.mark.sample(3)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("heads", [0, 1, 4], ids="{} heads".format)
@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs(graph, heads, reduce):
    edge_index, num_senders, _ = GRAPHS[graph]
    weight = torch.randn(edge_index.size(1), heads) if heads else None
    for protected in masks(num_senders).values():
        range_ = NEVER
        for step in range(3):
            x = torch.randn(num_senders, 16) * (1 + step / 2)
            range_, _ = assert_as_defined(GRAPHS[graph], x, weight, scheme(bits=4, p=0.01), protected, reduce, range_)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "channels"), [(0, 1), (0, 16), (0, 300), (1, 0), (1, 1), (1, 33), (4, 16), (3, 100)])
def test_widths(heads, channels, dtype):
    x = torch.randn(30, max(heads, 1) * channels, dtype=dtype)
    weight = torch.rand(120, heads, dtype=dtype) if heads else None
    if x.size(1) == 0:
        weight = None
    for grid in SCHEMES.values():
        assert_as_defined(GRAPHS["random"], x, weight, grid, torch.rand(30) < 0.3)


@pytest.mark.sample(3)
@pytest.mark.parametrize("grid", SCHEMES)
@pytest.mark.parametrize("heads", [0, 1, 2], ids="{} heads".format)
def test_many_messages_on_one_thread_and_many(threads, heads, grid):
    """Enough for the sampled and the carried bounds of the percentiles, and for a cut between threads."""
    edge_index = (torch.rand(2, 6000) ** 3 * 900).long()  # a few nodes have most of the edges
    weight = torch.rand(6000, heads) if heads else None
    range_ = NEVER
    for step in (1.0, 2.0, 0.5):
        x, protected = torch.randn(1000, 16) * step, torch.rand(1000) < 0.1
        range_, _ = assert_as_defined((edge_index, 1000, 1000), x, weight, SCHEMES[grid], protected, "sum", range_)


@pytest.mark.sample(3)
@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
@pytest.mark.parametrize("kind", KINDS)
def test_special_values(kind, heads):
    graph = torch.randint(300, (2, 4000)), 300, 300
    x = special(kind, (300, 12))
    weight = torch.randn(4000, heads) if heads else None
    if heads:
        weight[::7] = 0
    chain = {"schemes": {0: INT4, 1: INT8}, "bias": torch.randn(12)}
    for grid in SCHEMES.values():
        range_, ends = assert_as_defined(graph, torch.randn(300, 12), weight, grid, **chain)
        assert_as_defined(graph, x, weight, grid, torch.rand(300) < 0.2, "sum", range_, chain_ranges=ends, **chain)
        assert_as_defined(graph, x, weight, grid)


def test_nan_stays_nan_infinities_become_the_ends_and_neither_is_observed():
    x = torch.tensor([[math.nan], [math.inf], [-math.inf], [-1.0], [2.0]])
    loops = torch.arange(5).repeat(2, 1), 5, 5
    for weight in (None, torch.ones(5, 1)):
        out, _, range_ = through(x, weight, scheme(), as_ranges(NEVER), graph=loops)
        assert range_.tolist() == [-1.0, 2.0]
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


@settings(max_examples=60)
@given(
    nodes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    edges=st.integers(0, 60),
    heads=st.sampled_from([0, 1, 2]),
    reduce=st.sampled_from(["sum", "mean"]),
    grid=st.sampled_from(list(SCHEMES.values())),
    share=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_any_graph(nodes, edges, heads, reduce, grid, share, seed):
    torch.manual_seed(seed)
    edge_index = torch.stack([torch.randint(count, (edges,)) for count in nodes])
    weight = torch.randn(edges, heads) if heads else None
    protected = None if share is None else torch.rand(nodes[0]) < share
    range_, _ = assert_as_defined((edge_index, *nodes), torch.randn(nodes[0], 8), weight, grid, protected, reduce)
    assert_as_defined((edge_index, *nodes), 2 * torch.randn(nodes[0], 8), weight, grid, protected, reduce, range_)


@pytest.mark.parametrize("heads", [0, 1], ids="{} heads".format)
def test_messages_are_added_in_the_order_of_the_edges(threads, heads):
    """So that a seed says everything, on any number of threads."""
    edge_index, x = torch.randint(50, (2, 5000)), torch.randn(50, 4)
    weight = torch.rand(5000, heads) if heads else None
    sender, receiver = edge_index
    for grid in (scheme(observe=False), scheme(bits=10, observe=False)):
        message, _, _ = plain_messages(x, weight, sender, None, torch.tensor([-4.0, 4.0]), grid)
        want = torch.zeros(50, 4)
        for edge in range(5000):
            want[receiver[edge]] += message[edge]
        args = arguments((edge_index, 50, 50), x, weight, grid, None, "sum", (-4.0, 4.0))
        assert torch.equal(propagate_operator(*args)[0], want)


# -- gradients ---------------------------------------------------------------------------------------------------


def through(x, weight, grid, ends, reduce="sum", protected=None, graph=GRAPHS["random"], **chain):
    return propagate(sent_along(graph, x, weight, protected), Ranged.of(grid, ends), Chain.of(**chain), reduce)


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
@pytest.mark.parametrize(("heads", "reduce"), list(itertools.product([0, 1, 4], ["sum", "mean"])))
def test_gradients_are_those_of_gather_round_and_add(heads, reduce, clip):
    edge_index, num_senders, num_receivers = GRAPHS["random"]
    sender, receiver = edge_index
    grid = scheme(bits=4, p=0.05, clip=clip)
    protected = torch.rand(num_senders) < 0.3
    leaves = [torch.randn(num_senders, 8), torch.randn(120, max(heads, 1))]
    mine, theirs = ([t.clone().requires_grad_() for t in leaves] for _ in range(2))
    never = as_ranges(NEVER)
    out, _, range_ = through(mine[0], mine[1] if heads else None, grid, never, reduce, protected)

    message = theirs[0][sender]
    if heads:
        message = (message.view(120, heads, -1) * theirs[1].unsqueeze(2)).view(120, 8)
    message = Quantized.apply(message, grid, range_, protected[sender])
    want = torch.zeros(num_receivers, 8).index_add(0, receiver, message)
    if reduce == "mean":
        want = want / torch.bincount(receiver, minlength=num_receivers).clamp(min=1).unsqueeze(1)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    want.backward(upstream)
    torch.testing.assert_close(mine[0].grad, theirs[0].grad, rtol=1e-5, atol=1e-5)
    if heads:
        torch.testing.assert_close(mine[1].grad, theirs[1].grad, rtol=1e-5, atol=1e-5)


WIDE = (torch.tensor(-1000.0), torch.tensor(1000.0))


@pytest.mark.sample(2)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
def test_gradcheck(heads, reduce):
    graph = GRAPHS["bipartite"]
    leaves = [torch.randn(7, 4, dtype=torch.float64, requires_grad=True)]
    if heads:
        leaves.append(torch.randn(60, heads, dtype=torch.float64, requires_grad=True))

    def sums(x, weight=None):
        return through(x, weight, FINE, WIDE, reduce, graph=graph)[0]

    assert torch.autograd.gradcheck(sums, leaves, eps=1e-4, atol=1e-3)


@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
def test_second_derivatives(heads):
    graph = GRAPHS["duplicate edges"]
    leaves = [torch.randn(2, 4, dtype=torch.float64, requires_grad=True)]
    if heads:
        leaves.append(torch.randn(4, heads, dtype=torch.float64, requires_grad=True))

    def squared(x, weight=None):
        return through(x, weight, FINE, WIDE, graph=graph)[0] ** 2

    assert torch.autograd.gradgradcheck(squared, leaves, eps=1e-4, atol=1e-2)


def test_only_what_is_wanted_gets_a_gradient():
    x, weight = torch.randn(30, 8), torch.rand(120, 1, requires_grad=True)
    through(x, weight, scheme(), as_ranges(NEVER))[0].sum().backward()
    assert x.grad is None
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
@pytest.mark.parametrize("alpha", [None, 1.3])
def test_what_is_added_may_be_what_is_sent(alpha, heads):
    """As in GIN: the gradients of one tensor that is two arguments are added up on the way."""
    graph = (torch.randint(40, (2, 300)), 40, 40)
    x, weight = torch.randn(40, 8), torch.randn(300, heads) if heads else None
    alpha = None if alpha is None else torch.tensor([alpha], requires_grad=True)
    found = []
    for same in (True, False):
        leaf = x.clone().requires_grad_()
        other = leaf if same else leaf.view(40, 8)
        options = {"schemes": (INT8, INT8, None), "ranges": as_ranges(NEVER * 2), "other": other, "alpha": alpha}
        y, *_ = through(leaf, weight, INT8, as_ranges(NEVER), graph=graph, **options)
        y.backward(torch.linspace(-1, 1, 320).view(40, 8))
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_errors_name_what_does_not_fit():
    x, never = torch.randn(30, 8), as_ranges(NEVER)
    with pytest.raises(TypeError, match="senders_protected must be a bool tensor"):
        through(x, None, scheme(), never, protected=torch.ones(30))
    with pytest.raises(ValueError, match="senders_protected must have one entry per row"):
        through(x, None, scheme(), never, protected=torch.ones(120) > 0)
    with pytest.raises(ValueError, match="reduce='min'"):
        through(x, None, scheme(), never, "min")
    with pytest.raises(ValueError, match="no chain"):
        through(x, None, scheme(), never, "max", relu=True)


@pytest.mark.sample(3)
@pytest.mark.parametrize("heads", [0, 2], ids="{} heads".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_their_contract(dtype, heads):
    x = torch.randn(7, 4).to(dtype).requires_grad_()
    weight = torch.randn(60, heads).to(dtype).requires_grad_() if heads else None
    bias, protected = torch.randn(4).to(dtype).requires_grad_(), torch.rand(7) < 0.5
    chain = {"schemes": {0: INT4, 2: INT4}, "bias": bias, "protected": torch.rand(23) < 0.5}
    args = arguments(GRAPHS["bipartite"], x, weight, INT8, protected, "mean", relu=True, **chain)
    sent, messages, reduce, chain = args
    torch.library.opcheck(torch.ops.dqconvert.propagate.default, (*sent, *messages, reduce, *chain))

    out, _, passes, range_, again = propagate_operator(*args)
    sent = sent._replace(x=x.detach(), weight=None if weight is None else weight.detach())
    known = (*messages._replace(range_=range_).frozen, None, reduce, again, None)
    for for_weight, plus in ((False, None), (bool(heads), torch.randn_like(sent.x))):
        back = (torch.randn_like(out).detach(), passes, True, *sent, *known, for_weight, plus)
        torch.library.opcheck(torch.ops.dqconvert.propagate_grad.default, back)


def test_infinite_rows_are_sent_as_codes_and_missing_values_are_not():
    """What is infinite has a code, the last one; NaN has none."""
    codes, grid = np.array([[3.0, np.inf, -np.inf, 0.0], [1.0, 2.0, 3.0, 4.0]], np.float32), np.array([1, 0, -8, 7])
    sent, nobody = np.empty(8, np.uint8), np.empty(0, np.bool_)
    assert not put_codes(codes.reshape(-1), grid.astype(np.float32), sent, nobody, 4, 0, 2)
    assert sent.tolist() == [11, 15, 0, 8, 9, 10, 11, 12]
    codes[1, 2] = np.nan
    assert put_codes(codes.reshape(-1), grid.astype(np.float32), sent, nobody, 4, 0, 2)
    skipped = np.array([False, True])
    assert not put_codes(codes.reshape(-1), grid.astype(np.float32), sent, skipped, 4, 0, 2)


@pytest.mark.parametrize("heads", [0, 2])
def test_ranges_that_grow_are_found_before_the_sums_or_behind_them(heads):
    """Of so many edges some are looked at first; whatever they say, the ranges are those of all messages."""
    graph = torch.randint(900, (2, 9000), generator=torch.Generator().manual_seed(2)), 900, 900
    weight, range_, ends = torch.rand(9000, heads) if heads else None, NEVER, None
    chain = {"schemes": {1: scheme(p=0.001), 2: scheme(p=0.001)}, "relu": True}
    outlier = torch.zeros(900, 4)
    outlier[graph[0][0, 5]] = 50.0  # sent along few edges, none of them looked at
    steps = [torch.randn(900, 4), torch.randn(900, 4) * 3, torch.randn(900, 4), torch.randn(900, 4) + outlier]
    for x in (*steps, steps[-1] * 0.01, steps[0] * float("nan")):
        options = {**chain, "chain_ranges": ends}
        range_, ends = assert_as_defined(graph, x, weight, scheme(p=0.001), None, "sum", range_, **options)

"""The largest messages: the compiled loops against the plain definition, and that against PyG's aggregation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import MaxAggregation

from dqconvert.kernels import NO_CHAIN, Ranged, Scheme, Sent, edge_order, propagate
from dqconvert.kernels.messages import plain_messages
from dqconvert.kernels.propagate import plain_propagate, propagate_operator
from dqconvert.kernels.propagate_grad import propagate_grad

NEVER = (math.inf, -math.inf)
INT4 = Scheme(-8, 7, symmetric=False, p=0.01, momentum=-1.0, observe=True, clip=True)
SCHEMES = {
    "int8": INT4._replace(quant_min=-128, quant_max=127, p=0.001),
    "int4": INT4,
    "straight through": INT4._replace(clip=False, p=0.0),
    "average": INT4._replace(momentum=0.1),
    "frozen": INT4._replace(observe=False),
}


def random_graph(senders, receivers, edges, seed=0):
    random = torch.Generator().manual_seed(seed)
    one = torch.randint(senders, (edges,), generator=random)
    return one, torch.randint(receivers, (edges,), generator=random), senders, receivers


NONE = torch.empty(0, dtype=torch.int64)
GRAPHS = {
    "random": random_graph(30, 29, 120),
    "isolated nodes": (*random_graph(5, 5, 30)[:2], 9, 9),
    "no edges": (NONE, NONE, 4, 4),
    "no nodes": (NONE, NONE, 0, 0),
    "none sends": (NONE, NONE, 0, 3),
    "self-loops": (torch.arange(8), torch.arange(8), 8, 8),
    "duplicate edges": (torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 0]), 2, 2),
    "hub": (torch.arange(50), torch.zeros(50, dtype=torch.int64), 50, 50),
    "bipartite": (torch.arange(60) % 7, torch.arange(60) % 23, 7, 23),
}


def arguments(graph, x, weight, scheme, protected=None, ranges=NEVER):
    sender, receiver, senders, receivers = graph
    orders = edge_order(receiver, sender, receivers), edge_order(sender, receiver, senders)
    sent = Sent.of(x, weight, sender, receiver, *orders, protected)
    return sent, Ranged(torch.tensor(ranges), *scheme.packed()), "max", NO_CHAIN


def largest(*args, **options):
    sent, messages, reduce, chain = arguments(*args, **options)
    return propagate(sent, messages, chain, reduce)[0]


def backwards(grad, results, given):
    """The arguments of the gradient."""
    (y, _, _, range_, ties), (sent, messages, *_) = results, given
    everything = torch.empty(0, dtype=torch.uint8)
    known = (messages._replace(range_=range_).frozen, None, "max", ties, y)
    return grad, everything, False, sent, *known, sent.weight is not None, None


def assert_as_defined(*args, **options):
    given_ = arguments(*args, **options)
    got, want = propagate_operator(*given_), plain_propagate(*given_)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    back = backwards(torch.randn_like(got[0]), got, given_)
    for one, two in zip(propagate_grad(*back), propagate_grad.definition(*back), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)
    return got[3].tolist()


@pytest.mark.sample(4)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("heads", [0, 1, 4], ids="{} heads".format)
@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs(graph, heads, scheme):
    graph = GRAPHS[graph]
    weight = torch.randn(len(graph[0]), heads) if heads else None
    for protected in (None, torch.rand(graph[2]) < 0.3, torch.ones(graph[2]) > 0):
        ranges = (-1.0, 1.5) if scheme == "frozen" else NEVER
        for step in range(3):
            x = torch.randn(graph[2], 16) * (1 + step / 2)
            ranges = assert_as_defined(graph, x, weight, SCHEMES[scheme], protected, ranges=ranges)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [0, 1, 3])
def test_many_messages_on_one_thread_and_many(heads, dtype, threads):
    graph = random_graph(2000, 1500, 9000)
    weight = torch.randn(9000, heads, dtype=dtype) if heads else None
    x = torch.randn(2000, 33, dtype=dtype).relu()  # many messages are equally large
    assert_as_defined(graph, x, weight, SCHEMES["int8"], torch.rand(2000) < 0.1)


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 40), st.sampled_from([0, 1, 2]), st.integers(0, 2**32 - 1)
)
def test_any_graph(senders, receivers, edges, heads, seed):
    torch.manual_seed(seed)
    weight = torch.randn(edges, heads) if heads else None
    x = torch.randint(-3, 4, (senders, 6)).float()
    assert_as_defined(random_graph(senders, receivers, edges, seed), x, weight, INT4, torch.rand(senders) < 0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("heads", [0, 2])
def test_what_is_not_finite(value, heads):
    graph = GRAPHS["random"]
    x = torch.randn(30, 8)
    x[3, 2] = value
    y = largest(graph, x, torch.ones(120, heads) if heads else None, INT4)
    reached = graph[1][graph[0] == 3]
    assert len(reached) > 0
    assert y[reached, 2].isnan().all() == math.isnan(value)
    assert y[:, [0, 1, 3]].isfinite().all()


class Rounded(torch.autograd.Function):
    """A message, quantized, as the graph that is not fused does it."""

    @staticmethod
    def forward(ctx, message, sender, range_, scheme, protected):
        eye = message.new_ones(len(message), 1)
        rows, _, clipped = plain_messages(message, None, torch.arange(len(eye)), protected, range_, scheme)
        ctx.save_for_backward(clipped)
        return rows

    @staticmethod
    def backward(ctx, grad):
        return grad.masked_fill(ctx.saved_tensors[0], 0), None, None, None, None


@pytest.mark.parametrize("heads", [0, 2])
def test_gradients_are_those_of_gather_round_and_pygs_aggregation(heads):
    sender, receiver, senders, receivers = GRAPHS["random"]
    range_, scheme = torch.tensor([-1.0, 1.5]), INT4._replace(observe=False)
    protected = torch.rand(senders) < 0.3
    # Without weights ties are many, and zeros among the results: PyG shares the gradient with the zero it starts from.
    x = torch.randn(senders, 8).relu().requires_grad_()
    weight = torch.randn(len(sender), heads, requires_grad=True) if heads else None
    message = x[sender]
    if weight is not None:
        message = (message.view(len(sender), heads, -1) * weight.unsqueeze(2)).view_as(message)
    rounded = Rounded.apply(message, sender, range_, scheme, protected[sender])
    want = MaxAggregation()(rounded, receiver, dim_size=receivers)
    y = largest(GRAPHS["random"], x, weight, scheme, protected, range_.tolist())
    torch.testing.assert_close(y, want, rtol=0, atol=0)
    grad, leaves = torch.randn_like(y), [x] if weight is None else [x, weight]
    for one, two in zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True):
        torch.testing.assert_close(one, two)


def test_second_derivatives_go_through_torch():
    graph = GRAPHS["bipartite"]
    wide = Scheme(-(2**20), 2**20, symmetric=True, p=0.0, momentum=-1.0, observe=False, clip=False)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(60, 1, dtype=torch.float64, requires_grad=True)

    def square(x, weight):
        return largest(graph, x, weight, wide, ranges=(-9.0, 9.0)).square().sum()

    (to_x,) = torch.autograd.grad(square(x, weight), x, create_graph=True)
    (second,) = torch.autograd.grad(to_x.sum(), weight)
    assert second.shape == weight.shape
    assert second.isfinite().all()
    assert float(second.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_take_the_plain_way(dtype):
    graph = GRAPHS["random"]
    y = largest(graph, torch.randn(30, 4, dtype=dtype), None, INT4)
    assert y.dtype == dtype


def test_strides_do_not_matter():
    graph = GRAPHS["random"]
    x = torch.randn(8, 30).t()
    weight = torch.randn(2, 120).t()
    assert_as_defined(graph, x, weight, INT4, (torch.rand(60) < 0.3)[::2])


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_their_contract(dtype, heads):
    graph = GRAPHS["random"]
    x = torch.randn(30, 4, dtype=dtype, requires_grad=True)
    weight = torch.randn(120, heads, dtype=dtype, requires_grad=True) if heads else None
    args = arguments(graph, x, weight, INT4._replace(observe=False), ranges=(-1.0, 1.0))
    sent, messages, reduce, chain = args
    kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
    flat = (*sent, *messages, reduce, *chain)
    torch.library.opcheck(propagate_operator.registered, flat, test_utils=kinds)
    sent = sent._replace(x=x.detach(), weight=None if weight is None else weight.detach())
    results = [t.detach() for t in propagate_operator(*args)]
    *before, _, known, groups, reduce, ties, y, for_weight, plus = backwards(
        torch.randn_like(results[0]), results, (sent, messages)
    )
    back = (*before, *sent, *known, groups, reduce, ties, y, for_weight, plus)
    torch.library.opcheck(propagate_grad.registered, back, test_utils=("test_schema", "test_faketensor"))


def test_errors_name_what_does_not_fit():
    with pytest.raises(ValueError, match="senders_protected"):
        largest(GRAPHS["random"], torch.randn(30, 4), None, INT4, torch.zeros(3, dtype=torch.bool))

"""`quantize_chain`: the compiled loops against the plain definition, bit for bit; its gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from chain_cases import (
    ADDED,
    FINE,
    INT4,
    INT8,
    KINDS,
    NEVER,
    PLACES,
    SCHEMES,
    addends,
    as_ranges,
    assert_equal,
    by_place,
    chain_of,
    growing,
    masks,
    scheme,
    special,
)

from dqconvert.kernels import Chain, quantize_chain
from dqconvert.kernels.chain import plain_quantize_chain, quantize_chain_grad, quantize_chain_operator
from dqconvert.kernels.cpu.chain import serves


def assert_as_defined(steps, schemes, **options):
    """Several steps, each beginning with the ranges that the last one left."""
    ranges = list(NEVER) * len(schemes)
    for x in steps:
        chain = chain_of(schemes, ranges, **options)
        got = quantize_chain_operator(x, chain)
        assert_equal(got, plain_quantize_chain(x, chain))
        ranges = got[1].tolist()
    return ranges


@pytest.mark.sample(3)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_every_combination_of_parts(places, added, relu):
    x = growing((50, 16))
    options = addends(added, 50, 16)
    for protected in masks(50).values():
        assert_as_defined(x, dict.fromkeys(places, INT4), relu=relu, protected=protected, **options)


@pytest.mark.sample(3)
@pytest.mark.parametrize("second", SCHEMES)
@pytest.mark.parametrize("first", SCHEMES)
def test_every_pair_of_schemes_behind_the_sum(first, second):
    for relu in (False, True):
        schemes = {1: SCHEMES[first], 2: SCHEMES[second]}
        assert_as_defined(growing((60, 17)), schemes, relu=relu, protected=torch.rand(60) < 0.3)
        assert_as_defined(growing((60, 17)), {0: SCHEMES[second], **schemes}, relu=relu, bias=torch.randn(17))


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(0, 4), (1, 4), (5, 0), (7,), (40, 1), (40, 16), (700, 64), (120, 300), (2, 5000), (9, 3, 4)], ids=str
)
def test_shapes(shape, dtype):
    for protected in masks(shape[0]).values():
        other = torch.randn(shape, dtype=dtype)
        assert_as_defined(
            growing(shape, dtype=dtype), {0: INT8, 1: INT4, 2: INT8}, other=other, relu=True, protected=protected
        )


@pytest.mark.parametrize("shape", [(9, 3, 4), (9, 4, 1), (4,)], ids=str)
def test_a_bias_is_one_value_for_each_place_along_the_last_dimension(shape):
    assert_as_defined(growing(shape), {0: INT8, 1: INT8}, bias=torch.randn(shape[-1]))


@pytest.mark.sample(3)
@pytest.mark.parametrize("p", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("momentum", [-1.0, 0.01])
def test_many_values_on_one_thread_and_many(threads, p, momentum):
    """Enough values for the sampled and the carried bounds of the percentiles, and for a cut between threads."""
    one = scheme(p=p, momentum=momentum)
    two = scheme(bits=4, p=p, momentum=momentum)
    steps = [*growing((3000, 40)), torch.randn(3000, 40) / 4]  # the last lies within the ranges so far
    for protected in (None, torch.rand(3000) < 0.1):
        assert_as_defined(steps, {1: one, 2: two}, relu=True, protected=protected)
        assert_as_defined(steps, {0: two, 1: one}, bias=torch.randn(40), protected=protected)


@pytest.mark.parametrize("shift", [-6.0, -0.5, 0.5, 6.0])
@pytest.mark.parametrize("relu", [False, True])
def test_ranges_that_lie_anywhere(shift, relu):
    """The second of two ranges that are observed in one pass can be the one that a step exceeds."""
    steps = [torch.randn(1000, 30) * spread + shift for spread in (1, 0.5, 1.02, 2, 1)]
    assert_as_defined(steps, {1: INT8, 2: INT4}, relu=relu)
    assert_as_defined(steps, {1: INT4, 2: INT8}, relu=relu)


def test_averages_are_float32_step_by_step():
    """Batches far apart, where a last bit shows."""
    for spread in torch.rand(40).mul(8).exp().tolist():
        steps = [torch.randn(9, 4) * factor for factor in (1, spread, 0.1, 1)]
        assert_as_defined(steps, {1: SCHEMES["ema"], 2: SCHEMES["percentile ema"]})


@pytest.mark.parametrize("rows", [50, 2000])
@pytest.mark.parametrize("kind", KINDS)
def test_special_values(kind, rows):
    steps = [torch.randn(rows, 20), special(kind, (rows, 20)), special(kind, (rows, 20))]
    for order in (steps, steps[::-1]):
        assert_as_defined(order, {1: INT8}, relu=True)
        assert_as_defined(order, {0: INT4, 2: scheme()}, bias=torch.randn(20), protected=torch.rand(rows) < 0.2)


@pytest.mark.sample(3)
@pytest.mark.parametrize("rows", [50, 2000])
@pytest.mark.parametrize("kind", KINDS)
def test_special_values_that_pass_two_grids(kind, rows):
    steps = [special(kind, (rows, 20)), torch.randn(rows, 20), special(kind, (rows, 20))]
    for one, two in ((scheme(), scheme(bits=4)), (INT8, INT4), (INT8, INT8)):
        for relu in (False, True):
            assert_as_defined(steps, {1: one, 2: two}, relu=relu)


def test_nan_stays_nan_infinities_become_the_ends_and_neither_is_observed():
    x = torch.tensor([[math.nan, math.inf, -math.inf, -1.0, 2.0]])
    y, ends = quantize_chain(x, Chain.of((None, scheme(), None), as_ranges(NEVER)))
    assert ends.tolist() == [-1.0, 2.0]
    assert y[0, 0].isnan()
    assert y[0, 1] == pytest.approx(2.0, abs=0.01)
    assert y[0, 2] == pytest.approx(-1.0, abs=0.01)


def test_values_beyond_float32_are_not_observed():
    x = torch.randn(200, 100, dtype=torch.float64)
    x[3, 3], x[5, 7] = 1e300, -1e300
    assert_as_defined([x], {1: scheme()})
    assert_as_defined([x], {0: INT8}, relu=True)


@pytest.mark.parametrize(
    "view",
    [lambda t: t.t(), lambda t: t[::2], lambda t: t[:, 1::3], lambda t: t[:1].expand(40, -1), lambda t: t.t().flip(0)],
    ids=["transposed", "every other row", "some columns", "expanded", "flipped"],
)
def test_strides_do_not_matter(view):
    x, other = view(torch.randn(40, 40)), view(torch.randn(40, 40))
    bias = torch.randn(2 * x.size(1))[::2]
    protected = torch.rand(2 * x.size(0))[::2] < 0.3
    schemes = {0: INT4, 1: INT8, 2: INT8}
    assert_as_defined([x, 2 * x], schemes, bias=bias, relu=True, protected=protected)
    assert_as_defined([x, 2 * x], schemes, other=other, alpha=torch.tensor(0.5), protected=protected)
    y, _, passes = quantize_chain_operator(x, chain_of(schemes, NEVER * 3, relu=True))
    assert y.is_contiguous()
    grad = torch.randn_like(y).t().contiguous().t()
    assert_grad_equal(grad, passes, other, torch.tensor([0.5]))


def test_the_result_shares_no_memory():
    x = torch.randn(30, 8)
    y = quantize_chain(x, Chain.of((None, INT8, None), as_ranges(NEVER), protected=torch.ones(30) > 0))[0]
    assert torch.equal(x, y)
    assert x.data_ptr() != y.data_ptr()


@pytest.mark.parametrize("mixed", ["all bfloat16", "bias float32", "other float32", "float16"])
def test_other_types_take_the_plain_way(mixed):
    low = torch.float16 if mixed == "float16" else torch.bfloat16
    x = torch.randn(40, 8).to(low)
    bias = torch.randn(8).to(torch.float32 if mixed == "bias float32" else low)
    other = torch.randn(40, 8).to(torch.float32 if mixed == "other float32" else low)
    assert not serves(x.shape, x.dtype, (bias, None, None))
    assert_as_defined([x, 2 * x], {0: INT8, 1: INT4}, bias=bias)
    assert_as_defined([x, 2 * x], {0: INT8, 1: INT4}, other=other, relu=True)


def test_sixteen_bits_train():
    x = torch.randn(40, 8, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(8, dtype=torch.bfloat16, requires_grad=True)
    never = as_ranges(NEVER)
    y, _ = quantize_chain(x, Chain.of((INT4, INT8, None), never * 2, bias=bias))
    y.sum().backward()
    assert x.grad.dtype == bias.grad.dtype == torch.bfloat16
    assert 0 < x.grad.float().mean() < 1


# -- gradients ---------------------------------------------------------------------------------------------------


def assert_grad_equal(grad, passes, other=None, alpha=None, wanted=(True,) * 5):
    got = quantize_chain_grad(grad, passes, other, alpha, wanted)
    want = quantize_chain_grad.definition(grad, passes, other, alpha, wanted)
    for place, (one, two) in enumerate(zip(got, want, strict=True)):
        # What reaches the sum and `x` is passed on, the others are summed or multiplied.
        tolerance = 0 if place < 2 else 1e-5
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance * max(1, grad.numel() ** 0.5))


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (5, 0), (7,), (2500, 40), (9, 3, 4)], ids=str)
def test_gradients_pass_where_the_bits_say(shape, dtype, threads):
    passes = torch.tensor([0, 1, 3], dtype=torch.uint8)[torch.randint(3, shape)]
    grad = torch.randn(shape, dtype=dtype)
    other, alpha = torch.randn(shape, dtype=dtype), torch.tensor([1.3], dtype=dtype)
    for wanted in itertools.product((True, False), repeat=5):
        assert_grad_equal(grad, passes, other, alpha, wanted)
        assert_grad_equal(grad, passes, other, None, (*wanted[:4], False))
        assert_grad_equal(grad, passes, None, alpha, (*wanted[:4], False))


def test_what_does_not_pass_is_zero_even_where_the_gradient_is_not_finite():
    passes = torch.tensor([[0, 0, 1, 3]], dtype=torch.uint8)
    grad = torch.tensor([[math.nan, math.inf, 1.0, 2.0]])
    to_sum, to_x, to_bias, *_ = quantize_chain_grad(grad, passes, None, None, [True, True, True, False, False])
    assert to_sum.tolist() == [[0, 0, 1, 2]]
    assert to_x.tolist() == [[0, 0, 0, 2]]
    assert to_bias.tolist() == [0, 0, 1, 2]


class Rounded(torch.autograd.Function):
    """One grid, its gradient written out."""

    @staticmethod
    def forward(ctx, x, grid, protected, ends):
        y, _, _ = plain_quantize_chain(x, chain_of({1: grid._replace(observe=False)}, ends, protected=protected))
        lo, hi = (min(ends[0], 0), max(ends[1], 0))
        low, high = grid.quant_min, grid.quant_max
        scale = torch.tensor((hi - lo) / (high - low)).float().to(x.dtype)
        code = torch.round(x / scale + (low - round(lo / ((hi - lo) / (high - low)))))
        clipped = ((code <= low) | (code >= high)) & grid.clip
        ctx.save_for_backward(clipped if protected is None else clipped & ~protected.unsqueeze(1))
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad.masked_fill(ctx.saved_tensors[0], 0), None, None, None


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_gradients_are_those_of_the_parts(places, clip):
    grid = scheme(bits=4, p=0.05, clip=clip)
    protected = torch.rand(60) < 0.3
    leaves = [torch.randn(60, 12), torch.randn(60, 12), torch.tensor([1.2])]
    mine, theirs = ([t.clone().double().requires_grad_() for t in leaves] for _ in range(2))
    schemes = by_place(dict.fromkeys(places, grid))
    x, other, alpha = mine
    never = as_ranges(NEVER) * len(places)
    y, ends = quantize_chain(x, Chain.of(schemes, never, other=other, alpha=alpha, protected=protected, relu=True))
    pairs = iter(ends.view(-1, 2).tolist())

    def rounded(value, place):
        return Rounded.apply(value, grid, protected, next(pairs)) if place in places else value

    want = rounded(theirs[0], 0) + theirs[2] * theirs[1]
    want = rounded(rounded(want, 1).relu(), 2)
    assert torch.equal(y, want)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    want.backward(upstream)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7)


def test_gradients_of_a_bias():
    x, bias = torch.randn(3000, 12, requires_grad=True), torch.randn(12, requires_grad=True)
    never = as_ranges(NEVER) * 2
    y, _ = quantize_chain(x, Chain.of((INT4, INT4, None), never, bias=bias))
    upstream = torch.randn_like(y)
    y.backward(upstream)
    _, _, passes = plain_quantize_chain(x.detach(), chain_of({0: INT4, 1: INT4}, NEVER * 2, bias=bias.detach()))
    torch.testing.assert_close(bias.grad, torch.where(passes & 1 > 0, upstream, 0).sum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(x.grad, torch.where(passes & 2 > 0, upstream, 0))


def fine_chain(x, bias, other, alpha):
    ends = as_ranges((-1000.0, 1000.0)) * 3
    one, _ = quantize_chain(x, Chain.of((FINE, FINE, FINE), ends, bias=bias, relu=True))
    two, _ = quantize_chain(x, Chain.of((FINE, FINE, None), ends[:4], other=other, alpha=alpha))
    return one + two


def test_gradcheck():
    shapes = [(4, 3), (3,), (4, 3), (1,)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(fine_chain, leaves, eps=1e-4, atol=1e-3)


def test_second_derivatives():
    shapes = [(4, 3), (3,), (4, 3), (1,)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    squared = lambda *args: fine_chain(*args) ** 2  # noqa: E731
    assert torch.autograd.gradgradcheck(squared, leaves, eps=1e-4, atol=1e-2)


def test_without_gradients_no_bits_are_kept():
    x = torch.randn(40, 8, requires_grad=True)
    saved: list[torch.Tensor] = []
    never = as_ranges(NEVER)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with torch.no_grad():
            quantize_chain(x, Chain.of((None, INT8, None), never, relu=True))
        assert saved == []
        quantize_chain(x, Chain.of((None, INT8, None), never, relu=True))
    assert [t.dtype for t in saved] == [torch.uint8]


def test_errors_name_what_does_not_fit():
    never = as_ranges(NEVER)
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        quantize_chain(torch.arange(3), Chain.of((None, INT8, None), never))
    with pytest.raises(TypeError, match="protected must be a bool tensor"):
        quantize_chain(torch.randn(3, 2), Chain.of((None, INT8, None), never, protected=torch.ones(3)))
    with pytest.raises(ValueError, match="protected must have one entry per row"):
        quantize_chain(torch.randn(3, 2), Chain.of((None, INT8, None), never, protected=torch.ones(2) > 0))


@pytest.mark.sample(2)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("added", ["bias", "other"])
def test_operators_keep_their_contract(added, masked):
    x = torch.randn(5, 3, requires_grad=True)
    clip = scheme(clip=masked)
    options = {"bias": torch.randn(3, requires_grad=True)}
    if added == "other":
        options = {"other": torch.randn(5, 3, requires_grad=True), "alpha": torch.randn(1, requires_grad=True)}
    chain = chain_of({0: clip, 1: clip}, NEVER * 2, protected=torch.rand(5) < 0.5, masked=masked, **options)
    torch.library.opcheck(torch.ops.dqconvert.quantize_chain.default, (x, *chain))


def test_the_operator_of_the_gradient_keeps_its_contract():
    passes = torch.tensor([0, 1, 3], dtype=torch.uint8)[torch.randint(3, (5, 3))]
    for dtype in (torch.float32, torch.bfloat16):
        other, alpha = torch.randn(5, 3).to(dtype), torch.randn(1).to(dtype)
        for wanted in ((True,) * 5, (False, True, False, True, False), (False,) * 5):
            args = (torch.randn(5, 3).to(dtype), passes, other, alpha, wanted)
            torch.library.opcheck(torch.ops.dqconvert.quantize_chain_grad.default, args)

"""`quantize_parts`: several small tensors, each as if it went through a chain of one grid by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chain_cases import INT8, NEVER, SCHEMES
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels import Chain, quantize_chain, quantize_parts
from dqconvert.kernels.parts import plain_quantize_parts, quantize_parts_grad, quantize_parts_operator

SHAPES = [(64, 64), (1,), (7, 3, 2), (0,), (128, 40), ()]


def as_ranges(ends):
    return [torch.tensor(end) for end in ends]


def packed(schemes, masked):
    ints, floats = [int(masked)], []
    for scheme in schemes:
        more = scheme.packed()
        ints, floats = [*ints, *more[0]], [*floats, *more[1]]
    return ints, floats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_each_as_alone(name, dtype):
    """Result, range and gradient, bit for bit, while ranges grow and when they are settled."""
    scheme = SCHEMES[name]
    ranges = as_ranges((NEVER if scheme.observe else (-1.0, 1.5)) * len(SHAPES))
    for step in (1.0, 0.5, 1.5, 1.5):
        values = [(torch.randn(shape) * step).to(dtype).requires_grad_() for shape in SHAPES]
        results, ends = quantize_parts(values, [scheme] * len(SHAPES), ranges)
        for place, (value, result) in enumerate(zip(values, results, strict=True)):
            # A chain is of rows, and a scalar has none.
            before = ranges[2 * place : 2 * place + 2]
            want, new = quantize_chain(value.reshape(-1), Chain.of((None, scheme, None), before))
            assert torch.equal(result.reshape(-1), want)
            assert torch.equal(ends[2 * place : 2 * place + 2], new)
            upstream = torch.randn_like(value)
            (one,) = torch.autograd.grad(result, value, upstream, retain_graph=True)
            (two,) = torch.autograd.grad(want, value, upstream.reshape(-1))
            assert torch.equal(one, two)
        ranges = list(ends.unbind())


@settings(max_examples=60)
@given(st.data())
def test_the_definition(data):
    """Any number of parts of any size, of schemes that differ, with values that are not finite."""
    count = data.draw(st.integers(1, 6))
    sizes = [data.draw(st.integers(0, 300)) for _ in range(count)]
    schemes = [data.draw(st.sampled_from(list(SCHEMES.values()))) for _ in range(count)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**30)))
    x = torch.randn(sum(sizes), generator=generator)
    for special in (torch.nan, torch.inf, -torch.inf, 1e30, 0.0):
        x[torch.rand(x.shape, generator=generator) < 0.02] = special
    ranges = torch.tensor([data.draw(st.sampled_from([NEVER, (-1.0, 2.0), (0.5, 0.5)])) for _ in sizes]).flatten()
    ints, floats = packed(schemes, masked=True)
    got = quantize_parts_operator(x, sizes, ranges, ints, floats)
    want = plain_quantize_parts(x, sizes, ranges, ints, floats)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_gradients_of_clipped_values_are_zero_whatever_comes():
    x = torch.tensor([-2.0, 0.0, 0.3, 2.0], requires_grad=True)
    y, _ = quantize_parts([x], [INT8._replace(observe=False)], as_ranges((-1.0, 1.0)))
    y[0].backward(torch.tensor([torch.nan, 1.0, 2.0, torch.inf]))
    assert x.grad.tolist() == [0.0, 1.0, 2.0, 0.0]


def test_where_nothing_clips_nothing_is_kept():
    x = torch.randn(50, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantize_parts([x], [INT8._replace(clip=False)], as_ranges(NEVER))
    assert sum(t.numel() for t in kept) == 0


def test_second_gradients():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    fine = INT8._replace(quant_min=-(2**40), quant_max=2**40, symmetric=True, observe=False)
    ranges = as_ranges((-10.0, 10.0))
    assert torch.autograd.gradcheck(lambda t: quantize_parts([t], [fine], ranges)[0][0], x)
    assert torch.autograd.gradgradcheck(lambda t: quantize_parts([t], [fine], ranges)[0][0] ** 2, x)


def test_strided_values():
    x, y = torch.randn(6, 4).t(), torch.randn(9)[::3]
    (one, two), _ = quantize_parts([x, y], [INT8, INT8], as_ranges(NEVER * 2))
    (three, four), _ = quantize_parts([x.contiguous(), y.contiguous()], [INT8, INT8], as_ranges(NEVER * 2))
    assert torch.equal(one, three)
    assert torch.equal(two, four)


def test_operators_keep_their_contract():
    sizes, (ints, floats) = [5, 0, 4], packed([INT8._replace(observe=False)] * 3, masked=True)
    x, ranges = torch.randn(9, requires_grad=True), torch.tensor([-1.0, 1.0] * 3)
    torch.library.opcheck(quantize_parts_operator.registered, (x, sizes, ranges, ints, floats))
    torch.library.opcheck(quantize_parts_grad.registered, (torch.randn(9), torch.tensor([0, 1] * 4 + [1]).byte()))


def test_a_range_that_never_saw_a_value_stays_empty():
    (one, two), ends = quantize_parts([torch.empty(0), torch.tensor([np.nan])], [INT8, INT8], as_ranges(NEVER * 2))
    assert ends.tolist() == [math.inf, -math.inf] * 2
    assert one.shape == (0,)
    assert bool(two.isnan())

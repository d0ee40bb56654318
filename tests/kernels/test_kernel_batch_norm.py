"""`quantize_batch_norm`: the compiled loops against torch in double precision, and its chain against the definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dqconvert.kernels import Chain, Scheme, quantize_batch_norm, quantize_chain
from dqconvert.kernels.batch_norm import (
    batch_norm_grad,
    plain_batch_norm_grad,
    plain_quantize_batch_norm,
    quantize_batch_norm_operator,
)

INT8 = Scheme(-128, 127, symmetric=False, p=0.001, momentum=-1.0, observe=True, clip=True)
NEVER = [torch.tensor(math.inf), torch.tensor(-math.inf)]


def batch(rows, columns, dtype=torch.float32, spread=3.0, center=5.0):
    x = torch.randn(rows, columns) * spread + torch.randn(columns) * center
    return x.to(dtype), torch.randn(columns).to(dtype), torch.randn(columns).to(dtype)


def reference(x, weight, shift, eps=1e-5):
    return functional.batch_norm(x, None, None, weight, shift, training=True, eps=eps)


@pytest.mark.sample(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 1), (2, 70), (33, 1), (700, 64), (65, 300), (3, 5000), (90000, 3)], ids=str)
def test_it_is_torchs_in_double_precision(shape, dtype, threads):
    x, weight, shift = batch(*shape, dtype=dtype)
    y, ends, mean, var = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())
    wide = [t.double() for t in (x, weight, shift)]
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    torch.testing.assert_close(y.double(), reference(*wide), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mean.double(), wide[0].mean(0), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(var.double(), wide[0].var(0, correction=0), rtol=tolerance, atol=tolerance)
    assert y.dtype == mean.dtype == var.dtype == dtype
    assert ends.shape == (0,)


def test_a_far_mean_does_not_cancel_the_variance():
    x, weight, shift = batch(60000, 4, center=0.0, spread=1.0)
    far = x + 5000
    var = quantize_batch_norm(far, weight, shift, 1e-5, Chain.of())[3]
    torch.testing.assert_close(var.double(), far.double().var(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_gradients_are_torchs(affine, threads):
    x, *both = batch(1500, 40)
    leaves = [t.requires_grad_() for t in (x, *(t for t, used in zip(both, affine, strict=True) if used))]
    weight, shift = (t if used else None for t, used in zip(both, affine, strict=True))
    grad = torch.randn_like(x)
    got = torch.autograd.grad(quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())[0], leaves, grad)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    kept = iter(wide[1:])
    y = reference(wide[0], *(next(kept) if used else None for used in affine))
    for one, two in zip(got, torch.autograd.grad(y, wide, grad.double()), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5 * float(two.abs().max()))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("places", [p for n in (1, 2, 3) for p in itertools.combinations(range(3), n)], ids=str)
def test_its_rows_go_through_the_chain(places, relu):
    schemes = tuple(INT8 if place in places else None for place in range(3))
    ranges, options = NEVER * len(places), {"protected": torch.rand(800) < 0.2, "relu": relu}
    options |= {"other": torch.randn(800, 24), "alpha": torch.tensor([0.7])}
    for step in range(3):
        x, weight, shift = batch(800, 24)
        weight = weight * (1 + step)
        rows = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())[0]
        want, ends = quantize_chain(rows, Chain.of(schemes, ranges, **options))
        y, new, _, _ = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of(schemes, ranges, **options))
        assert torch.equal(y, want)
        assert torch.equal(new, ends)
        ranges = list(new.unbind())


def test_gradients_pass_the_chain():
    x, weight, shift = (t.requires_grad_() for t in batch(900, 16))
    other, alpha = torch.randn(900, 16, requires_grad=True), torch.tensor([1.3], requires_grad=True)
    leaves, ranges = (x, weight, shift, other, alpha), [torch.tensor(-2.0), torch.tensor(2.0)]
    frozen = INT8._replace(observe=False)
    options = {"other": other, "alpha": alpha, "relu": True}
    grad = torch.randn(900, 16)
    y = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of((None, frozen, None), ranges, **options))[0]
    rows = reference(x, weight, shift)
    want = quantize_chain(rows, Chain.of((None, frozen, None), ranges, **options))[0]
    assert float((y - want).detach().abs().max()) <= 4 / 255 + 1e-6  # one step, where a value lies half way
    for one, two in zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-3 * float(two.abs().max()))


@given(st.integers(2, 60), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_any_shape(rows, columns, seed):
    torch.manual_seed(seed)
    x, weight, shift = batch(rows, columns)
    y = quantize_batch_norm(x, weight, shift, 1e-3, Chain.of())[0]
    torch.testing.assert_close(
        y.double(), reference(x.double(), weight.double(), shift.double(), 1e-3), rtol=1e-4, atol=1e-4
    )


def test_strides_do_not_matter():
    x, weight, shift = batch(64, 20)
    strided = torch.stack([x, x], 2)[..., 0]
    assert not strided.is_contiguous()
    want = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())[0]
    assert torch.equal(quantize_batch_norm(strided, weight, shift, 1e-5, Chain.of())[0], want)


def test_nan_stays_in_its_column():
    x, weight, shift = batch(100, 3)
    x[7, 1] = torch.nan
    y = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())[0]
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2]].isfinite().all()


def test_gradcheck_and_second_derivatives():
    args = [t.requires_grad_() for t in batch(6, 3, torch.float64, spread=1.0, center=1.0)]

    def normed(x, weight, shift):
        return quantize_batch_norm(x, weight, shift, 1e-3, Chain.of())[0]

    assert torch.autograd.gradcheck(normed, args)
    assert torch.autograd.gradgradcheck(normed, args)


def test_sixteen_bits_take_the_plain_way():
    x, weight, shift = batch(50, 8, torch.bfloat16)
    y, *_ = quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), reference(x.double(), weight.double(), shift.double()), rtol=0.05, atol=0.1)


@pytest.mark.sample(3)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_their_contract(dtype, weighted):
    x, weight, shift = (t.requires_grad_() for t in batch(30, 5, dtype))
    weight, shift = (weight, shift) if weighted else (None, None)
    chain = Chain.of((INT8._replace(observe=False), None, None), [torch.tensor(-3.0), torch.tensor(3.0)], relu=True)
    args = (x, weight, shift, 1e-5, *chain)
    kinds = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        quantize_batch_norm_operator.registered, args, test_utils=kinds if dtype == torch.float32 else kinds[:3]
    )
    plain = [t if t is None else t.detach() for t in (x, weight)]
    passes = torch.randint(0, 4, (30, 5), dtype=torch.uint8)
    rest = (*plain, plain[0][0], plain[0][1].abs(), 1e-5)
    torch.library.opcheck(batch_norm_grad.registered, (torch.randn(30, 5, dtype=dtype), passes, 2, *rest))


@pytest.mark.parametrize("bit", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 1), (700, 64), (3, 5000), (90000, 3)], ids=str)
def test_the_gradient_counts_where_it_passes(shape, dtype, bit, threads):
    """As if it were zero elsewhere, whatever it is there."""
    x, weight, _ = batch(*shape, dtype=dtype)
    grad, passes = torch.randn_like(x), torch.randint(0, 4, shape, dtype=torch.uint8)
    stopped = (passes & bit) == 0
    grad[stopped] = torch.nan
    var, mean = torch.var_mean(x, 0, correction=0)
    got = batch_norm_grad(grad, passes, bit, x, weight, mean, var, 1e-5)
    want = plain_batch_norm_grad(*(t.double() for t in (grad.masked_fill(stopped, 0), x, weight, mean, var)), 1e-5)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=tolerance, atol=tolerance * 30)


def test_the_definition_is_torchs():
    x, weight, shift = batch(40, 6, torch.float64)
    y, *_ = plain_quantize_batch_norm(x, weight, shift, 1e-5, Chain.of())
    torch.testing.assert_close(y, reference(x, weight, shift))
    grad = torch.randn_like(x)
    leaves = [t.requires_grad_() for t in (x, weight, shift)]
    want = torch.autograd.grad(reference(*leaves), leaves, grad)
    var, mean = torch.var_mean(x, 0, correction=0)
    for one, two in zip(plain_batch_norm_grad(grad, x, weight, mean, var, 1e-5), want, strict=True):
        torch.testing.assert_close(one, two)


def test_errors_name_what_does_not_fit():
    x, weight, shift = batch(4, 2)
    with pytest.raises(ValueError, match="protected"):
        quantize_batch_norm(x, weight, shift, 1e-5, Chain.of(protected=torch.zeros(3, dtype=torch.bool)))

"""`qparams` and `fake_quantize` against the definition, written out with Python's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqconvert.kernels import fake_quantize, qparams

EPS = torch.finfo(torch.float32).eps


def codes_of(bits: int, signed: bool) -> tuple[int, int]:
    quant_min = -(2 ** (bits - 1)) if signed else 0
    return quant_min, quant_min + 2**bits - 1


def qparams_by_hand(lo: float, hi: float, bits: int, signed: bool, symmetric: bool) -> tuple[float, int]:
    quant_min, quant_max = codes_of(bits, signed)
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        return 1.0, 0
    if symmetric:
        return 2 * max(abs(lo), hi) / (quant_max - quant_min), 0 if signed else 2 ** (bits - 1)
    scale = max((hi - lo) / (quant_max - quant_min), EPS)
    return scale, max(quant_min, min(quant_max, quant_min - round(lo / scale)))


def quantize_by_hand(x: torch.Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int):
    """Value by value, each operation rounded to the dtype that is computed in; and what is clipped."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def rounded(value: float) -> float:
        return torch.tensor(value, dtype=torch.float64).to(dtype).item()

    scale = rounded(scale)
    values, clipped = [], []
    for value in x.flatten().tolist():
        code = round(rounded(rounded(value / scale) + zero_point))
        clipped.append(code <= quant_min or code >= quant_max)
        values.append(rounded((max(quant_min, min(quant_max, code)) - zero_point) * scale))
    return (
        torch.tensor(values, dtype=dtype).to(x.dtype).reshape(x.shape),
        torch.tensor(clipped, dtype=torch.bool).reshape(x.shape),
    )


finite = st.floats(-1e6, 1e6, width=32)


@given(a=finite, b=finite, bits=st.integers(2, 8), signed=st.booleans(), symmetric=st.booleans())
def test_qparams_are_the_definition(a, b, bits, signed, symmetric):
    lo, hi = min(a, b), max(a, b)
    scale, zero_point = qparams(torch.tensor(lo), torch.tensor(hi), *codes_of(bits, signed), symmetric)
    want_scale, want_zero_point = qparams_by_hand(lo, hi, bits, signed, symmetric)

    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    assert scale.item() == pytest.approx(want_scale, rel=1e-6, abs=1e-37)
    assert zero_point.item() == want_zero_point


def test_a_zero_point_half_way_between_two_codes_rounds_to_even():
    for hi in torch.rand(200).tolist():
        _, zero_point = qparams(torch.tensor(-hi), torch.tensor(hi), -128, 127, symmetric=False)
        assert zero_point.item() == qparams_by_hand(-hi, hi, 8, True, False)[1]


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 0.0), (math.inf, -math.inf)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_empty_range_has_scale_one(lo, hi, symmetric):
    scale, zero_point = qparams(torch.tensor(lo), torch.tensor(hi), 0, 255, symmetric)
    assert (scale.item(), zero_point.item()) == (1.0, 0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_denormal_range_still_has_a_scale(symmetric):
    scale, _ = qparams(torch.tensor(0.0), torch.tensor(1e-44), -128, 127, symmetric)
    assert scale.item() > 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_qparams_per_channel_are_those_of_each_channel(symmetric):
    lo, hi = -torch.rand(7), torch.rand(7)
    lo[2], hi[2] = 0, 0
    scale, zero_point = qparams(lo, hi, -8, 7, symmetric)
    for i in range(7):
        one = qparams(lo[i], hi[i], -8, 7, symmetric)
        assert (scale[i], zero_point[i]) == one


SHAPES = [(0,), (5,), (4, 3), (0, 3), (3, 0), (2, 3, 4)]


@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    grad=st.sampled_from(["ste", "clip"]),
    masking=st.sampled_from(["none", "random", "all", "no row"]),
    row_dim=st.integers(-3, 2),
    seed=st.integers(0, 10_000),
)
def test_values_and_gradients_are_the_definition(
    bits, signed, symmetric, shape, dtype, transposed, grad, masking, row_dim, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    if transposed:
        x = x.T if x.dim() == 2 else x.expand(2, *shape)  # strides that are not contiguous, or zero
    x = x.detach().requires_grad_()
    row_dim = max(-x.dim(), min(x.dim() - 1, row_dim))
    rows = x.size(row_dim)
    protected = {
        "none": None,
        "random": torch.rand(rows, generator=generator) < 0.5,
        "all": torch.ones(rows, dtype=torch.bool),
        "no row": torch.zeros(rows, dtype=torch.bool),
    }[masking]
    scale, zero_point = qparams(torch.tensor(-1.3), torch.tensor(2.1), *codes_of(bits, signed), symmetric)

    y = fake_quantize(x, scale, zero_point, *codes_of(bits, signed), protected, row_dim, grad=grad)
    upstream = torch.randn(y.shape, generator=generator).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)

    want, clipped = quantize_by_hand(x, scale.item(), zero_point.item(), *codes_of(bits, signed))
    want_gradient = upstream if grad == "ste" else torch.where(clipped, 0, upstream)
    if protected is not None:
        mask_shape = [1] * x.dim()
        mask_shape[row_dim] = rows
        mask = protected.reshape(mask_shape)
        want = torch.where(mask, x, want)
        want_gradient = torch.where(mask, upstream, want_gradient)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.equal(y, want)
    assert torch.equal(gradient, want_gradient)


@pytest.mark.parametrize("channel_dim", [0, 1, -1])
def test_per_channel_is_each_channel_alone(channel_dim):
    x = torch.randn(4, 5, 6)
    channels = x.size(channel_dim)
    scale, zero_point = qparams(-torch.rand(channels), torch.rand(channels), -8, 7, False)
    y = fake_quantize(x, scale, zero_point, -8, 7, channel_dim=channel_dim)
    for i in range(channels):
        alone = fake_quantize(x.select(channel_dim, i), scale[i], zero_point[i], -8, 7)
        assert torch.equal(y.select(channel_dim, i), alone)


def test_it_divides_by_the_scale():
    scale = torch.tensor(0.0237)
    x = (torch.arange(-127, 127) + 0.5) * scale  # half way between two codes
    y = fake_quantize(x, scale, torch.tensor(0), -128, 127)
    assert torch.equal(y, (x / scale).round() * scale)
    assert not torch.equal(y, (x * (1 / scale)).round() * scale), "the case tells the two apart"


def test_halves_round_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    y = fake_quantize(x, torch.tensor(1.0), torch.tensor(0), -8, 7)
    assert y.tolist() == [-2, -2, 0, 0, 2, 2]


def test_clip_zeroes_the_gradient_at_the_ends_of_the_grid_too():
    """Just beyond, at, and just inside of either end; exactly zero even for infinite and NaN gradients."""
    x = torch.tensor([-8.4, -8.0, -7.6, -7.4, 6.4, 6.6, 7.0, 7.4], requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), torch.tensor(0), -8, 7, grad="clip").backward(
        torch.tensor([1.0, math.inf, math.nan, 2.0, 3.0, math.inf, math.nan, 1.0])
    )
    assert x.grad.tolist() == [0, 0, 0, 2, 3, 0, 0, 0]


@pytest.mark.parametrize("grad", ["ste", "clip"])
def test_nan_stays_nan_and_infinities_become_the_ends_of_the_grid(grad):
    x = torch.tensor([math.nan, math.inf, -math.inf], requires_grad=True)
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(1), -8, 7, grad=grad)
    assert y[0].isnan()
    assert y[1:].tolist() == [3.0, -4.5]


def test_second_derivatives_of_a_straight_through_gradient_are_those_of_the_identity():
    def quantized_square(x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, torch.tensor(1e-9), torch.tensor(0), -(2**40), 2**40) ** 2

    # On so fine a grid the function is its own straight-through estimate to within gradcheck's tolerance.
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quantized_square, (x,), eps=1e-4, atol=1e-3)
    assert torch.autograd.gradgradcheck(quantized_square, (x,), eps=1e-4, atol=1e-3)


def test_ste_saves_nothing_and_clip_one_bool_a_value():
    saved: list[torch.Tensor] = []
    x = torch.randn(64, 8, requires_grad=True)
    grid = torch.tensor(0.1), torch.tensor(0), -8, 7
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fake_quantize(x, *grid, grad="ste")
        assert saved == []
        fake_quantize(x, *grid, grad="clip")
    assert [t.dtype for t in saved] == [torch.bool]


def test_the_result_never_shares_memory_with_the_input():
    x = torch.randn(3, 2)
    y = fake_quantize(x, torch.tensor(0.1), torch.tensor(0), -8, 7, torch.ones(3, dtype=torch.bool))
    assert torch.equal(x, y)
    assert x.data_ptr() != y.data_ptr()


GRID = torch.tensor(0.1), torch.tensor(0), -8, 7


def test_errors_name_what_does_not_fit():
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"grad='lsq': must be 'ste' or 'clip'"):
        fake_quantize(x, *GRID, grad="lsq")
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        fake_quantize(torch.arange(3), *GRID)
    with pytest.raises(TypeError, match=r"protected must be a bool tensor, got torch\.float32"):
        fake_quantize(x, *GRID, torch.ones(3))
    with pytest.raises(ValueError, match=r"per row \(dimension 0\).*got shape \(2,\) for values of shape \(3, 2\)"):
        fake_quantize(x, *GRID, torch.ones(2, dtype=torch.bool))


@pytest.mark.sample(3)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("channel_dim", [None, 1])
@pytest.mark.parametrize("operator", ["fake_quantize_ste", "fake_quantize_clip"])
def test_operators_keep_their_contract(operator, channel_dim, masked):
    x = torch.randn(2, 5).T.requires_grad_()
    shape = () if channel_dim is None else (2,)
    scale, zero_point = torch.full(shape, 0.1), torch.zeros(shape, dtype=torch.int32)
    protected = torch.rand(5) < 0.5 if masked else None
    op = getattr(torch.ops.dqconvert, operator).default
    torch.library.opcheck(op, (x, scale, zero_point, -8, 7, protected, 0, channel_dim))

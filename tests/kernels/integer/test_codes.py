"""Values to codes and back: compiled loops against the definitions, and the training kernels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqconvert.kernels import fake_quantize, qparams
from dqconvert.kernels.integer.codes import (
    check_numbers,
    dequantize,
    plain_dequantize,
    plain_quantize,
    quantize,
)
from dqconvert.kernels.integer.finish import unpack

OPS = torch.ops.dqconvert
GRIDS = {
    "int8": [0.05, 119.0, 255.0, 0.0],
    "int4": [0.7, 6.0, 15.0, 0.0],
    "of training": [0.05, 119.0, 255.0, -128.0],
}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def special(*shape):
    """Values around the grid, some of them exactly between two codes, infinite or not a number."""
    x = torch.randn(shape) * 8
    x[torch.rand(shape) < 0.2] = 0.025
    for value in (math.nan, math.inf, -math.inf, 3e38, -0.0, 1e-45):
        x[torch.rand(shape) < 0.02] = value
    return x


@given(
    rows=st.integers(0, 70),
    columns=st.integers(0, 70),
    dtype=st.sampled_from(FLOATS),
    grid=st.sampled_from(list(GRIDS)),
    packed=st.booleans(),
    strided=st.booleans(),
)
def test_codes_are_as_defined(rows, columns, dtype, grid, packed, strided):
    x = special(columns, rows).T if strided else special(rows, columns)
    x, ends = x.to(dtype), torch.tensor(GRIDS["int4" if packed else grid])
    got, want = quantize(x, ends, packed=packed), plain_quantize(x, ends, None, packed)
    assert got.dtype == torch.uint8
    assert got.is_contiguous()
    assert torch.equal(got, want)
    if packed:
        assert torch.equal(unpack(got, columns), quantize(x, ends))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5), (0, 4)])
def test_any_shape(shape):
    x, grid = torch.randn(shape), torch.tensor(GRIDS["int8"])
    codes = quantize(x, grid)
    assert codes.shape == shape
    assert torch.equal(codes, plain_quantize(x, grid, None, False))
    assert torch.equal(dequantize(codes, grid), plain_dequantize(codes, grid, None))


def test_large_tensors_on_threads(threads):
    x, grid = special(1000, 301), torch.tensor(GRIDS["int8"])
    codes = quantize(x, grid)
    assert torch.equal(codes, plain_quantize(x, grid, None, False))
    assert torch.equal(dequantize(codes, grid), plain_dequantize(codes, grid, None))
    small = torch.tensor(GRIDS["int4"])
    assert torch.equal(quantize(x, small, packed=True), plain_quantize(x, small, None, True))


def test_what_is_no_number_has_the_code_of_zero():
    x = torch.tensor([math.nan, 0.0, math.inf, -math.inf])
    assert quantize(x, torch.tensor(GRIDS["int4"])).tolist() == [6, 6, 15, 0]


@given(
    lo=st.floats(-100, 0),
    hi=st.floats(0, 100),
    bits=st.sampled_from([4, 8]),
    signed=st.booleans(),
    symmetric=st.booleans(),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 100),
)
def test_values_are_those_of_training(lo, hi, bits, signed, symmetric, dtype, seed):
    """With the lowest code in the grid, to the last bit: also for values that lie between two codes."""
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    scale, zero_point = qparams(torch.tensor(lo), torch.tensor(hi), low, high, symmetric)
    generator = torch.Generator().manual_seed(seed)
    between = torch.randint(-300, 300, (1000,), generator=generator).double() + 0.5
    x = torch.cat([torch.randn(1000, generator=generator).double() * 50, between * scale.double()]).to(dtype)
    x = torch.cat([x, torch.nextafter(x, torch.zeros_like(x)), torch.tensor([math.inf, -math.inf], dtype=dtype)])
    grid = torch.stack([scale, (zero_point - low).float(), torch.tensor(high - low), torch.tensor(low)])
    want = fake_quantize(x, scale, zero_point, low, high)
    codes = quantize(x, grid)
    wide = x.dtype if dtype == torch.float64 else torch.float32
    assert torch.equal(((codes.to(wide) + low - zero_point) * scale.to(wide)).to(dtype), want)
    if dtype == torch.float32:
        assert torch.equal(dequantize(codes, grid), want)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_grid_for_each_channel(dim):
    x = torch.randn(5, 7)
    channels = x.size(dim)
    scale, zero_point = qparams(torch.rand(channels) - 1.5, torch.rand(channels) + 0.5, -8, 7, symmetric=False)
    ends = [torch.full((channels,), float(end)) for end in (15, -8)]
    grid = torch.stack([scale, (zero_point + 8).float(), *ends])
    values = dequantize(quantize(x, grid, dim), grid, dim)
    assert torch.equal(values, fake_quantize(x, scale, zero_point, -8, 7, channel_dim=dim))


def test_what_does_not_fit_is_an_error():
    x, codes = torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.uint8)
    for grid, dim in ((torch.ones(3), None), (torch.ones(4, 4), None), (torch.ones(4, 4), 0), (torch.ones(4), 1)):
        with pytest.raises(ValueError, match="the grid must have shape"):
            quantize(x, grid, dim)
        with pytest.raises(ValueError, match="the grid must have shape"):
            dequantize(codes, grid, dim)
    with pytest.raises(ValueError, match="only matrices are packed"):
        quantize(x[0], torch.ones(4), packed=True)
    with pytest.raises(TypeError, match="floating"):
        quantize(codes, torch.ones(4))


def test_operators_are_registered_right():
    x, grid = torch.randn(6, 5), torch.tensor(GRIDS["int4"])
    codes, channels = quantize(x, grid), torch.rand(4, 5) + 1
    for args in ((x, grid, None, False), (x.double(), grid, None, True), (x.T, channels, 0, False)):
        torch.library.opcheck(OPS.quantize_codes.default, args)
    for more in ((codes, grid, None), (codes, channels, 1)):
        torch.library.opcheck(OPS.dequantize_codes.default, more)


@pytest.mark.parametrize("shape", [(1,), (7, 3), (4000, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_nan_is_an_error_where_values_have_a_name(shape, dtype, packed):
    x, grid = torch.randn(shape).to(dtype), torch.tensor(GRIDS["int4"])
    packed = packed and x.dim() == 2
    assert torch.equal(quantize(x, grid, packed=packed, name="x"), quantize(x, grid, packed=packed))
    for place in (0, x.numel() // 2, -1):
        wrong = x.clone()
        wrong.view(-1)[place] = torch.nan
        quantize(wrong, grid, packed=packed)
        with pytest.raises(ValueError, match="some values holds NaN"):
            quantize(wrong, grid, packed=packed, name="some values")
        with pytest.raises(ValueError, match="NaN"):
            plain_quantize(wrong, grid, None, packed, "some values")
        with pytest.raises(ValueError, match="NaN"):
            check_numbers(wrong, "some values")
    assert check_numbers(x, "x") is x
